"""LightSAM."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hessprobe import checks
from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.bsam import decay_rates

_VECTORS: dict[str, tuple[str, ...]] = {"adagrad-norm": (), "adagrad": ("u", "v"), "adam": ("u", "v", "r", "m")}


class LightSAM(SharpnessAware):
    """LightSAM: both the ascent and the descent of SAM with step sizes that adapt to the gradients seen.

    With s_t = grad L(w) and g_t = grad L(w + e), u_0 = v_0 = eps_root^2, squares and divisions elementwise in the last
    two:

        adagrad-norm:  u += norm(s)^2,               e = rho s/sqrt(u),    v += norm(g)^2,               d = g/sqrt(v)
        adagrad:       u += s^2,                     e = rho s/sqrt(u),    v += g^2,                     d = g/sqrt(v)
        adam:          u = b2 u + (1 - b2) s^2,      e = rho r/sqrt(u),    v = b2 v + (1 - b2) g^2,      d = m/sqrt(v)
                       r = b1 r + (1 - b1) s,                              m = b1 m + (1 - b1) g

    and w <- w - lr d. It owns its update (it takes parameters, not a base optimizer); ``step()`` without a closure is a
    plain gradient step. Two gradients a step; none, two or four vectors of memory. rho is no length here.

    The paper's text was not at hand: the three forms are as restated in the public ``sam_sps`` repository of other
    authors; a second independent account agrees on adagrad-norm.

    Args:
        params: parameters or parameter groups.
        rho: >= 0 or a schedule.
        lr: >= 0; None is 3 for ``"adagrad-norm"``, whose rate falls with all gradients seen, and 0.1 for the others.
        method: ``"adagrad-norm"``, ``"adagrad"`` or ``"adam"``.
        betas: (b1, b2) in [0, 1), for ``"adam"``.
        eps_root: > 0.
        **engine: see ``SharpnessAware``.

    References:
        Cheng et al., LightSAM: Parameter-Agnostic Sharpness-Aware Minimization, 2025.
    """

    numbers: ClassVar[Mapping[str, float]] = MappingProxyType({"u": 0.0, "v": 0.0})

    usual_lr = 3.0

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.05,
        *,
        lr: float | None = None,
        method: str = "adagrad-norm",
        betas: tuple[float, float] = (0.9, 0.999),
        eps_root: float = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        self.method = checks.one_of("method", method, tuple(_VECTORS))
        lr = (self.usual_lr if method == "adagrad-norm" else 0.1) if lr is None else lr
        self.vectors = _VECTORS[method]
        super().__init__(torch.optim.SGD(params, lr=checks.real("lr", lr, low=0)), rho, **engine)
        self.betas = decay_rates(betas)
        self.eps_root = checks.real("eps_root", eps_root, low=0, low_open=True)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self._displacement(here.gradient))
        if self.method == "adagrad-norm":
            return there.gradient * self._inverse_norm("v", there.gradient)
        return self._scaled("v", "m", there.gradient)

    def _displacement(self, gradient: TensorList) -> Displacement:
        if self.method == "adagrad-norm":
            return self.displacement(gradient, self._inverse_norm("u", gradient))
        return self.displacement(self._scaled("u", "r", gradient))

    def _inverse_norm(self, name: str, gradient: TensorList) -> Tensor:
        total: Tensor = gradient.dot(gradient) + self.memory.number(name)
        self.memory.remember_number(name, total)
        return 1.0 / (total + self.eps_root**2).sqrt()

    def _scaled(self, squares: str, average: str, gradient: TensorList) -> TensorList:
        total = self.recall(squares) or gradient.map(lambda g: torch.full_like(g, self.eps_root**2))
        if self.method == "adagrad":
            total, numerator = total + gradient * gradient, gradient
        else:
            b1, b2 = self.betas
            total = (total * b2).add_(gradient * gradient, alpha=1 - b2)
            numerator = ((self.recall(average) or gradient.zeros()) * b1).add_(gradient, alpha=1 - b1)
            self.remember(average, numerator)
        self.remember(squares, total)
        return numerator / total.map(_root)


def _root(square: Tensor) -> Tensor:
    # Where no gradient ever came the average of squares decays to zero, and 0/0 is not.
    return square.sqrt().clamp_min(torch.finfo(square.dtype).tiny)
