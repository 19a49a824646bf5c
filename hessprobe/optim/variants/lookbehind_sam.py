"""Lookbehind SAM."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList, Update
from hessprobe.optim.engine.sharded import beside, whole
from hessprobe.optim.schedules import Schedule


class LookbehindSAM(SharpnessAware):
    """Lookbehind: k ascent steps, k descent steps with the gradients found on the way, then part of the way back.

        e_0 = 0,    e_i = e_{i-1} + rho u(grad L_B(w + e_{i-1})),    g_i = grad L_B(w + e_i),        i = 1, ..., k
        fast weights: k base steps in a row from w, with g_1, ..., g_k
        w <- w + alpha (fast - w)

    k + 1 gradients a step (the authors' script computes 2 k, half of them twice), k vectors of memory during the step.
    k = 1 with alpha = 1 is SAM. ``alpha="adaptive"`` takes (cos + 1)/2 for each tensor, cos between the first fast
    step and all of them, as the authors' code. The learning-rate schedule sees one step, the base's own step counter k.
    All k gradients are of the step's own batch. ``clip_grad_norm`` bounds each of them.

    A step is k base steps on one batch: for k above 2 the learning rate wants to be lower than SAM's by about that
    factor. The digits network (20 % wrong labels, batches of 32, momentum 0.9) ends at chance in most runs with lr 0.1
    and k = 5, and at 97.0 to 97.5 % with lr 0.02; the authors' loop written out by itself does the same.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 of each ascent step, or a schedule.
        k: number of ascent steps >= 1; 2 to 10 in the paper.
        alpha: in (0, 1], or "adaptive".
        **engine: see ``SharpnessAware``; ``sync="local"`` is not supported.

    References:
        Mordido et al., Lookbehind-SAM: k Steps Back, 1 Step Forward, ICML 2024.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        k: int = 2,
        alpha: float | str = 0.5,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.k = checks.positive_int("k", k)
        self.is_adaptive = isinstance(alpha, str)
        if isinstance(alpha, str):
            checks.one_of("alpha", alpha, ("adaptive",))
            self.alpha = 1.0
        else:
            self.alpha = checks.real("alpha", alpha, low=0, low_open=True, high=1)
        if self.sync == "local":
            raise ValueError("sync must be 'global' for LookbehindSAM, which takes k base steps at once; got 'local'.")

    def rule(self) -> Rule:
        """See the class."""
        latest = yield At()
        found: list[TensorList] = []
        where: Displacement | TensorList | None = None
        for _ in range(self.k):
            further = self.ascent(latest.gradient)
            where = further if where is None else _together(where, further)
            latest = yield At(where)
            found.append(latest.gradient)
        if self.k == 1 and self.alpha == 1:
            return found[0]
        start = self.weights.original().clone()
        return Update(found[0], then=lambda: self._go_on(start, found[1:]))

    def _go_on(self, start: TensorList, gradients: list[TensorList]) -> None:
        parameters = self.parameters()
        first = [p.detach().clone() for p in parameters] if self.is_adaptive else None
        for gradient in gradients:
            for parameter, tensor in zip(parameters, gradient.tensors, strict=True):
                parameter.grad = None if parameter.grad is None else tensor
            self.clip_gradients()
            self.base_optimizer.step()
        for index, (parameter, slow) in enumerate(zip(parameters, start.tensors, strict=True)):
            way = parameter.detach() - slow
            part = self.alpha if first is None else _agreement(whole(first[index] - slow), whole(way))
            parameter.copy_(slow + way * beside(part, way))


def _together(first: Displacement | TensorList, second: Displacement) -> TensorList:
    return (first if isinstance(first, TensorList) else first.dense()) + second.dense()


def _agreement(first: Tensor, total: Tensor) -> Tensor:
    cosine = torch.nn.functional.cosine_similarity(first.reshape(1, -1), total.reshape(1, -1))
    return (cosine.reshape(()) + 1) / 2
