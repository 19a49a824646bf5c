"""Weighted SAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList, Update
from hessprobe.optim.schedules import Schedule


class WSAM(SharpnessAware):
    """Weighted SAM: sharpness as a regularizer of weight a = gamma/(1 - gamma).

    With g_t = grad L(w + rho u(g)):

        decoupled:  base step with g, then w <- w - lr a (g_t - g)
        coupled:    base step with (1 - a) g + a g_t

    ``clip_grad_norm`` bounds g and g_t, each by itself, as in the authors' code: a step of plain SGD is at most
    lr (1 + 2 a) clip_grad_norm long decoupled, and lr (|1 - a| + a) clip_grad_norm coupled.

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
        return lambda: self._update(here.gradient, there.gradient)

    def _update(self, first: TensorList, second: TensorList) -> Update:
        slope, alpha = self.clipped(first), self.gamma / (1 - self.gamma)
        sharpness = (self.clipped(second) - slope) * alpha
        if self.decouple:
            return Update(slope, decoupled=sharpness, is_clipped=True)
        return Update(slope + sharpness, is_clipped=True)
