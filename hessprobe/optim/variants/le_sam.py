"""Loss-equated SAM."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.tensors import Scalar
from hessprobe.optim.schedules import Schedule


class LESAM(SharpnessAware):
    """Loss-equated SAM: the ascent is as long as it takes to raise the (linearized) loss by sigma, rho at most.

        e = min(sigma_t/norm(g), rho) u(g),        base step with grad L_B(w + e)

    Two gradients a step. A large sigma gives SAM. The formula is that of the authors' code. Its numbers differ from
    place to place: sigma 0.35 with rho at most 0.3 in the training script, without a bound in the instructions, 0.1
    and 0.05 in the class. The script raises sigma from 0 over the first 10 epochs and lowers it to 0 by a cosine over
    the last 40 of 200 (give a schedule). The defaults here are ours.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: greatest radius >= 0 or a schedule.
        sigma: rise of the loss >= 0, or a schedule (t, lr) -> sigma.
        **engine: see ``SharpnessAware``.

    References:
        Wang et al., Fix the Loss, Not the Radius: Rethinking the Adversarial Perturbation of Sharpness-Aware
        Minimization, ICML 2026.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.5,
        *,
        sigma: float | Schedule = 0.1,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.sigma = sigma if callable(sigma) else checks.real("sigma", sigma, low=0)

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        inverse = 1.0 / (self.perturbed(gradient).norm() + self.eps)
        bound = inverse.square() * self._rise()

        def capped(factor: Scalar) -> Scalar:
            if isinstance(factor, Tensor):
                return torch.minimum(factor, bound.to(factor))
            return min(factor, float(bound))

        return self.displacement(gradient, inverse).mapped(capped)

    def _rise(self) -> float:
        if not callable(self.sigma):
            return self.sigma
        return checks.real("sigma", self.sigma(self.t, float(self.param_groups[0].get("lr", 0.0))), low=0)
