"""Sharpness-aware minimization."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.schedules import Schedule


class SAM(SharpnessAware):
    """Sharpness-aware minimization: the gradient at the end of an ascent step of length rho.

    With g = grad L_B(w) and u(v) = v/norm(v):

        e = rho u(g),        base step at w with grad L_B(w + e)

    Two gradients a step. With ``adaptive=True`` it is adaptive SAM as most packages have it, on all tensors alike:

        e = rho T^2 g/norm(T g),        T = diag(abs(w))

    (``ASAM(..., eta=0, exclude_bias=False)``; see that class for the paper's form).

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule; 0.05 to 0.2 is usual (vision transformers 0.1 to 0.2), and about 2 where
            adaptive.
        adaptive: see above.
        **engine: see ``SharpnessAware``.

    References:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021.
        Kwon et al., ASAM, ICML 2021.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        adaptive: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.adaptive = adaptive

    def rule(self) -> Rule:
        """See the class."""
        if self.adaptive:
            there = yield At(self._stretched((yield At()).gradient))
            return there.gradient
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self.ascent((yield At()).gradient))
        return there.gradient

    def _stretched(self, gradient: TensorList) -> Displacement:
        scale = self.weights.original().map(torch.abs)
        scaled = gradient * scale
        return self.ascent(scaled * scale, self.perturbed(scaled).norm())
