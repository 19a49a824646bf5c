"""AE-LookSAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.ae_sam import FIRST_AVERAGES, AdaptivePolicy
from hessprobe.optim.variants.looksam import sharp_direction, with_sharp_part


class AELookSAM(SharpnessAware):
    """AE-LookSAM: SAM steps chosen as in AE-SAM, and in between LookSAM's part of the last one used again.

        where norm(g)^2 >= mu_t + c_t s_t:   g_s = grad L(w + rho u(g)), g_v its part orthogonal to g; base step: g_s
        else:                                base step with g + alpha (norm(g)/norm(g_v)) g_v

    The paper's alpha = 0.7 wants a lower learning rate than SAM: the digits network described in ``LookSAM`` ends at
    chance, 50 % and 92 % with lr 0.1; the default trains at SAM's.

    1 to 2 gradients a step, one vector of memory. Reconstructed from the paper's description and its two parts
    (``AESAM``, ``LookSAM``); no code of the authors was at hand.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        steps: length of the run, >= 1.
        alpha: weight >= 0 of the part used again; 0 is AE-SAM.
        delta: forgetting of the averages, in [0, 1).
        lambda1, lambda2: threshold at the end and at the beginning, in standard deviations.
        **engine: see ``SharpnessAware``.

    References:
        Jiang, Yang, Zhang, Kwok, An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023.
    """

    vectors = ("sharp",)
    numbers = FIRST_AVERAGES

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        steps: int,
        alpha: float = 0.2,
        delta: float = 0.9,
        lambda1: float = -1.0,
        lambda2: float = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.policy = AdaptivePolicy(steps, delta, lambda1, lambda2)
        self.alpha = checks.real("alpha", alpha, low=0)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        if not self.policy.wants(self, float(here.gradient.norm())):
            return with_sharp_part(here.gradient, self.recall("sharp"), self.alpha)
        there = yield At(self.ascent(here.gradient))
        self.remember("sharp", sharp_direction(there.gradient, here.gradient))
        return there.gradient
