"""Weighted SAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, Update
from hessprobe.optim.schedules import Schedule


class WSAM(SharpnessAware):
    """Weighted SAM: sharpness as a regularizer of weight a = gamma/(1 - gamma).

    With g_t = grad L(w + rho u(g)):

        decoupled:  base step with g, then w <- w - lr a (g_t - g)
        coupled:    base step with (1 - a) g + a g_t

    Two gradients a step. gamma = 1/2 coupled is SAM, gamma = 0 the base optimizer.

    Args:
        base_optimizer: see ``SharpnessAware``; its groups need ``lr``.
        rho: radius >= 0 or a schedule.
        gamma: in [0, 1); 0.8 to 0.95 is usual.
        decouple: keep the sharpness term out of the base's momentum and preconditioning.
        **engine: see ``SharpnessAware``.

    References:
        Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term, KDD 2023.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        gamma: float = 0.9,
        decouple: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.gamma = checks.real("gamma", gamma, low=0, high=1, high_open=True)
        self.decouple = decouple

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self.ascent(here.gradient))
        alpha, sharpness = self.gamma / (1 - self.gamma), there.gradient - here.gradient
        if not self.decouple:
            return here.gradient + sharpness * alpha
        return Update(here.gradient, decoupled=sharpness * alpha)
