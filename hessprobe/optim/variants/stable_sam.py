"""Stable SAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.schedules import Schedule


class StableSAM(SharpnessAware):
    """Stable SAM: SAM's direction with the length of the gradient at w.

        g_t = grad L_B(w + rho u(g)),        base step with (norm(g)/norm(g_t)) g_t

    or the same after USAM's ascent, w + rho g, with ``normalize=False``. The authors' code has both forms, and is
    followed by both; its instructions show the second. Two gradients a step; norms are over all parameters. Not Sparse
    SAM, which shares the name SSAM.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        normalize: ascend by rho along the gradient, rather than by rho times the gradient.
        **engine: see ``SharpnessAware``.

    References:
        Tan et al., Stabilizing Sharpness-Aware Minimization Through A Simple Renormalization Strategy, JMLR 2025.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        normalize: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.normalize = normalize

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self.ascent(here.gradient) if self.normalize else self.displacement(here.gradient))
        length = there.gradient.norm()
        ratio = here.gradient.norm() / length.clamp_min(torch.finfo(length.dtype).tiny)
        return there.gradient * torch.where(length > 0, ratio, 0.0)
