"""AdaSAM."""

from __future__ import annotations

from typing import Unpack

import torch
from torch.optim.optimizer import ParamsT

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.bsam import decay_rates


class AdaSAM(SharpnessAware):
    """AdaSAM: the perturbed gradient through AMSGrad without bias correction.

    Squares, roots and maxima elementwise, m_0 = 0, v_0 = vhat_0 = eps_root^2:

        g_e = grad L(w + rho u(g)),    m <- b1 m + (1 - b1) g_e,    v <- b2 v + (1 - b2) g_e^2,
        vhat <- max(vhat, v),          w <- w - lr (m/sqrt(vhat) + wd w)

    It owns its update (it takes parameters, not a base optimizer); ``step()`` without a closure is a plain gradient
    step. Two gradients a step, three vectors of memory. The rule is the one restated in the public ``sam_sps``
    repository of other authors; the decoupled weight decay is ours and off by default.

    Args:
        params: parameters or parameter groups.
        rho: radius >= 0 or a schedule.
        lr: >= 0; 1e-3 in the paper.
        betas: (b1, b2) in [0, 1).
        eps_root: > 0; takes the place of an eps in the denominator.
        weight_decay: >= 0.
        **engine: see ``SharpnessAware``.

    References:
        Sun et al., AdaSAM: Boosting Sharpness-Aware Minimization with Adaptive Learning Rate and Momentum for Training
        Deep Neural Networks, Neural Networks 2024.
    """

    vectors = ("first", "second", "largest")

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.05,
        *,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps_root: float = 1e-8,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        decay = checks.real("weight_decay", weight_decay, low=0)
        base = torch.optim.SGD(params, lr=checks.real("lr", lr, low=0), weight_decay=decay)
        super().__init__(base, rho, **engine)
        self.betas = decay_rates(betas)
        self.eps_root = checks.real("eps_root", eps_root, low=0, low_open=True)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self.ascent(here.gradient))
        slope, (b1, b2), least = there.gradient, self.betas, self.eps_root**2
        first = self.recall("first") or slope.zeros()
        second = self.recall("second") or slope.map(lambda g: torch.full_like(g, least))
        largest = self.recall("largest") or second
        first = (first * b1).add_(slope, alpha=1 - b1)
        second = (second * b2).add_(slope * slope, alpha=1 - b2)
        largest = largest.map(torch.maximum, second)
        for name, vector in (("first", first), ("second", second), ("largest", largest)):
            self.remember(name, vector)
        return first / largest.map(_root)


def _root(square: torch.Tensor) -> torch.Tensor:
    # In half precision eps_root^2 may be zero, and 0/0 is not.
    return square.sqrt().clamp_min(torch.finfo(square.dtype).tiny)
