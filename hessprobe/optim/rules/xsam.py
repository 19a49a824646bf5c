"""XSAM: steps towards the highest loss between the ascent direction and SAM's gradient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NumericalWarning
from hessprobe.optim.engine import At, EngineOptions, Evaluation, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.ranks import mean_over_ranks
from hessprobe.optim.schedules import Schedule

# Below this the two directions are parallel as far as the arithmetic can tell.
_PARALLEL = 1e-8


class XSAM(SharpnessAware):
    """XSAM: steps along the direction of highest loss in the plane of the ascent and of the gradient at its end.

    With w_0 = w, K ascent steps w_{s+1} = w_s + (rho/K) u(grad L(w_s)), g_K = grad L(w_K), v_0 = u(w_K - w),
    v_1 = u(g_K) and psi the angle between them:

        v(alpha) = (sin((1 - alpha) psi) v_0 + sin(alpha psi) v_1)/sin(psi)
        alpha* = argmax of L(w + rho_max v(alpha)) over {0, alpha_step, ..., alpha_max}, once an epoch
        base step with norm(g_K) v(alpha*)

    alpha = 1 is SAM (with K steps), alpha = 0 goes along the ascent. For psi = 0, v(alpha) is its limit (1 - alpha) v_0
    + alpha v_1; for psi = pi the arc is not defined, and v_1 is taken (the authors' code averages v_0 and v_1 in both
    cases, which is zero in the second). Where groups have ``perturb=False``, the angle and the turn are those of the
    other groups, and these step along g_K.

    K + 1 gradients a step, and a forward pass for each alpha of a search: forward only when ``loss=`` is given to
    ``step``; the closure's gradients are computed and dropped otherwise. This is not X-SAM, see ``EigenCorrectedSAM``.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: length >= 0 of the whole ascent, or a schedule.
        steps: K >= 1.
        rho_max: radius > 0 of the search; by default twice rho. On a quadratic the search prefers v_1 to v_0 only above
            a threshold, which is a quarter of rho in the middle and half of rho in 95 % of random cases.
        alpha: a number >= 0 fixes it; by default it is searched.
        alpha_max, alpha_step: the grid, 0 < alpha_step <= alpha_max.
        steps_per_epoch: steps N >= 1 from one search to the next; the first step searches.
        **engine: see ``SharpnessAware``.

    Warns:
        NumericalWarning: the best alpha is the largest tried (once for an optimizer).

    References:
        Chen and Zhou, Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation, ICLR 2026.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import XSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = XSAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6396, -1.9099]])
    """

    numbers: ClassVar[Mapping[str, Any]] = MappingProxyType({"alpha": -1.0})  # none yet

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.15,
        *,
        steps: int = 1,
        rho_max: float | None = None,
        alpha: float | None = None,
        alpha_max: float = 2.0,
        alpha_step: float = 0.1,
        steps_per_epoch: int = 100,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.steps = checks.positive_int("steps", steps)
        self.rho_max = None if rho_max is None else checks.real("rho_max", rho_max, low=0, low_open=True)
        self.alpha = None if alpha is None else checks.real("alpha", alpha, low=0)
        self.alpha_max = checks.real("alpha_max", alpha_max, low=0, low_open=True)
        self.alpha_step = checks.real("alpha_step", alpha_step, low=0, high=self.alpha_max, low_open=True)
        self.steps_per_epoch = checks.positive_int("steps_per_epoch", steps_per_epoch)
        self._warned = False

    def rule(self) -> Rule:
        """See the class."""
        end = yield At()
        moved = end.gradient.zeros()
        for _ in range(self.steps):
            leg = self.ascent(end.gradient)
            moved.add_(leg.dense(), alpha=1 / self.steps)
            end = yield At(leg if self.steps == 1 else moved)
        size = self._length(end.gradient)
        start, unit = moved * _inverse(self._length(moved)), end.gradient * _inverse(size)
        # Not the arc cosine, which loses half of the digits of a small angle.
        angle = 2 * torch.atan2(self._length(unit - start), self._length(unit + start))
        alpha = self.alpha
        if alpha is None:
            alpha = float(self.memory.number("alpha", -1.0))
            if alpha < 0 or (self.t - 1) % self.steps_per_epoch == 0:
                alpha = yield from self._search(start, unit, angle)
                self.memory.remember_number("alpha", alpha)
        self.last.extra.update(alpha=alpha, angle=angle)
        return self._turned(start, end.gradient, size, angle, alpha)

    def _turned(self, start: TensorList, gradient: TensorList, size: Tensor, angle: Tensor, alpha: float) -> TensorList:
        """Return norm(g_K) v(alpha) in the perturbed groups, written so that alpha = 1 is g_K to the last bit."""
        first, second = _slerp(angle, alpha)
        turned = (gradient * second).add_(start, alpha=first * size)
        keep = self.group_values("perturb")
        pairs = zip(turned.tensors, gradient.tensors, keep, strict=True)
        return TensorList([t if moves else g for t, g, moves in pairs], gradient.foreach)

    def _search(self, start: TensorList, end: TensorList, angle: Tensor) -> Generator[At, Evaluation, float]:
        losses = []
        grid = [round(i * self.alpha_step, 12) for i in range(math.floor(self.alpha_max / self.alpha_step + 1e-9) + 1)]
        for alpha in grid:
            first, second = _slerp(angle, alpha)
            direction = (end * second).add_(start, alpha=first)
            if self.rho_max is None:
                there = yield At(self.displacement(direction, 2.0), loss_only=True)
            else:
                there = yield At(self.displacement(direction, radius=self.rho_max), loss_only=True)
            losses.append(there.loss)
        best = int(mean_over_ranks(self, torch.stack(losses)).argmax())
        if best == len(grid) - 1 and not self._warned:
            self._warned = True
            warnings.warn(
                f"XSAM's best alpha is the largest tried, {grid[best]:g}. Raise alpha_max, or lower rho_max.",
                NumericalWarning,
                stacklevel=2,
            )
        return grid[best]

    def _length(self, vector: TensorList) -> Tensor:
        return self.perturbed(vector).norm()


def _inverse(length: Tensor) -> Tensor:
    return torch.where(length > 0, 1 / length.clamp_min(torch.finfo(length.dtype).tiny), 0 * length)


def _slerp(angle: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the coefficients of v_0 and v_1 in v(alpha)."""
    sine = torch.sin(angle)
    parallel, opposed = sine < _PARALLEL, angle > math.pi / 2
    safe = torch.where(parallel, torch.ones_like(sine), sine)
    first, second = torch.sin((1 - alpha) * angle) / safe, torch.sin(alpha * angle) / safe
    one = torch.ones_like(sine)
    limits = torch.where(opposed, 0 * one, (1 - alpha) * one), torch.where(opposed, one, alpha * one)
    return torch.where(parallel, limits[0], first), torch.where(parallel, limits[1], second)
