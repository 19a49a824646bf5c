"""SAM with stochastic Polyak step sizes."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList, Update
from hessprobe.optim.engine.ranks import average_of_numbers
from hessprobe.optim.schedules import Schedule


class SAMSPS(SharpnessAware):
    """SAM with stochastic Polyak step sizes: the loss itself says how far to go.

        e = rho (1 - lam + lam/norm(g)) g,      g_e = grad L(w + e),
        gamma_t = clip((L(w + e) - lower - <g_e, e>)/norm(g_e)^2, 0, gamma_max),      w <- w - gamma_t (g_e + wd w)

    lam = 1 displaces as SAM, lam = 0 as USAM. It owns its update (it takes parameters, not a base optimizer), has no
    momentum, and ``lr`` of the groups plays no part; ``step()`` without a closure is a gradient step of length
    gamma_max. Two gradients a step; ``last.extra["step_size"]`` is gamma_t. The closure must return the loss unscaled.
    With lam = 1 and wd = 0, where the cap is reached, it is SAM on SGD with lr = gamma_max.

    Args:
        params: parameters or parameter groups.
        rho: >= 0 or a schedule; a length for lam = 1.
        lam: in [0, 1].
        lower: a lower bound of the loss on a batch; 0 for losses that are never negative.
        gamma_max: cap > 0 on the step size; 1 in the paper, at which the digits network ends a point lower.
        weight_decay: >= 0.
        **engine: see ``SharpnessAware``.

    References:
        Oikonomou and Loizou, Adaptive Sharpness-Aware Minimization with a Polyak-type Step Size: A Theory-Grounded
        Scheduler, arXiv 2606.01827; rule as in the authors' ``sam_sps`` package.
    """

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.1,
        *,
        lam: float = 1.0,
        lower: float = 0.0,
        gamma_max: float = 0.3,
        weight_decay: float = 5e-4,
        **engine: Unpack[EngineOptions],
    ) -> None:
        self.gamma_max = checks.real("gamma_max", gamma_max, low=0, low_open=True)
        decay = checks.real("weight_decay", weight_decay, low=0)
        super().__init__(torch.optim.SGD(params, lr=self.gamma_max, weight_decay=decay), rho, **engine)
        self.lam = checks.real("lam", lam, low=0, high=1)
        self.lower = checks.real("lower", lower)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        norm = self.perturbed(here.gradient).norm()
        displacement = self.displacement(here.gradient, 1 - self.lam + self.lam / (norm + self.eps))
        there = yield At(displacement)
        excess = there.loss - self.lower - there.gradient.dot(displacement.dense())
        return Update(there.gradient, lr=lambda slope: self._step_size(excess, slope))

    def _step_size(self, excess: Tensor, slope: TensorList) -> Tensor:
        square = slope.dot(slope)
        size = average_of_numbers(excess) / square.clamp_min(torch.finfo(square.dtype).tiny)
        self.last.extra["step_size"] = size = size.clamp(0.0, self.gamma_max)
        return size
