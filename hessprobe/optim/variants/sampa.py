"""SAMPa: SAM with two gradients that do not wait for each other."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import Apply, At, EngineOptions, Rule, SharpnessAware, TensorList, Update
from hessprobe.optim.schedules import Schedule


class SAMPa(SharpnessAware):
    """SAMPa: the ascent follows the gradient at an auxiliary point y, known since the step before.

        with h = grad L_A(y) of the step before, on its batch A:
        x~ = w + rho u(h),    y = w - lr h
        base step with (1 - lam) grad L_A(x~) + lam grad L_B(y),        and grad L_B(y) is the next h

    The gradient at x~ is that of the *previous* batch, on which its direction was found: an ascent along one batch says
    little of another. It is taken at the end of the previous ``step``, from the weights which that leads to and with
    its radius, so that no batch has to be kept; where that evaluation fails the step itself has gone through, and the
    next one starts afresh. Two gradients a step, in the first one (h is not known: the step is the base's) too; they
    could run in parallel, here they run one after the other. Two vectors of memory. The loss that ``step`` returns is
    the one at y (at w in the first step). The weights must not be changed between steps by anything but ``step``.

    convention "code": y = w - lr (h + weight_decay w + momentum b) where the base has a momentum buffer b, as in the
    authors' script for SGD; "paper": as above.

    Args:
        base_optimizer: see ``SharpnessAware``; its groups need ``lr``.
        rho: radius >= 0 or a schedule.
        lam: in [0, 1]; 0 is SAMPa without the gradient at y in its step.
        convention: "paper" or "code".
        **engine: see ``SharpnessAware``.

    References:
        Xie, Pethick and Cevher, SAMPa: Sharpness-aware Minimization Parallelized, NeurIPS 2024.
    """

    vectors = ("auxiliary", "ascended")

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        lam: float = 0.2,
        convention: str = "paper",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.lam = checks.real("lam", lam, low=0, high=1)
        self.convention = checks.one_of("convention", convention, ("paper", "code"))

    def rule(self) -> Rule:
        """See the class."""
        known, ascended = self.recall("auxiliary"), self.recall("ascended")
        if known is None or ascended is None:
            here = yield At()
            auxiliary = direction = here.gradient
        else:
            ahead = yield At(self._trial_step(known))
            auxiliary, direction = ahead.gradient, ascended.map(self._mixed, ahead.gradient)
        self.remember("auxiliary", auxiliary)
        self.forget("ascended")
        yield Apply(Update(direction))
        there = yield At(self.ascent(auxiliary))
        self.remember("ascended", there.gradient)
        return None

    def _mixed(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.lerp(first, second, self.lam)

    def _trial_step(self, known: TensorList) -> TensorList:
        groups = zip(*(self.group_values(name, 0.0) for name in ("lr", "weight_decay", "momentum")), strict=True)
        steps = []
        for slope, parameter, weight, (lr, decay, momentum) in zip(
            known.tensors, self.parameters(), self.weights.original().tensors, groups, strict=True
        ):
            buffer = self.state[parameter].get("momentum_buffer") if self.convention == "code" else None
            whole = slope if buffer is None else slope + weight * decay + buffer * momentum
            steps.append(whole * -float(lr))
        return TensorList(steps, known.foreach)
