"""What several claims share: functions as objectives, real optimizers run on them, and means over runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessprobe.objective.analytic import AnalyticTerm
from hessprobe.objective.base import Objective
from hessprobe.optim.engine import SharpnessAware
from hessprobe.vectors import ParameterLayout

Array = NDArray[Any]
Function = Callable[[Tensor], Tensor]


class FunctionObjective(Objective):
    """A function of theta (d,) as an objective, measured at ``theta``; fp64 on the CPU.

    Args:
        function: theta -> scalar, twice differentiable by torch.
        theta: where.
    """

    def __init__(self, function: Function, theta: Sequence[float] | Tensor) -> None:
        self.theta = torch.as_tensor(theta, dtype=torch.float64).detach().clone()
        self.dim, self.dtype, self.device = len(self.theta), self.theta.dtype, self.theta.device
        self.layout = ParameterLayout(("theta",), (self.theta.shape,))
        self._function = function

    def terms(self) -> Iterator[AnalyticTerm]:
        """Yield the function as one term."""
        yield AnalyticTerm(self._function)

    def hessian(self) -> Tensor:
        """Return the Hessian (d, d) at theta, by autograd."""
        return hessian(self._function, self.theta)


def hessian(function: Function, theta: Tensor) -> Tensor:
    """Return the Hessian (d, d) of a function of theta (d,)."""
    matrix: Tensor = torch.func.hessian(function)(theta)
    return matrix.detach()


def optimize(
    make: Callable[[list[Tensor]], SharpnessAware],
    loss: Callable[[Tensor, int], Tensor],
    start: Sequence[float] | Tensor,
    steps: int,
) -> Tensor:
    """Return the points (steps + 1, ...), fp64, that an optimizer of ``hessprobe.optim`` goes through.

    Args:
        make: the optimizer on a list of parameters.
        loss: (x, t) -> scalar, t = 1, 2, ... the step.
        start: of any shape. Rows may be independent runs, under a rule without norms and a loss that is their sum.
        steps: how many.
    """
    x = torch.as_tensor(start, dtype=torch.float64).clone().requires_grad_()
    optimizer = make([x])
    points = torch.empty(steps + 1, *x.shape, dtype=torch.float64)
    points[0] = x.detach()
    for t in range(1, steps + 1):

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            value = loss(x, t)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return value

        if optimizer.needs_loss:
            optimizer.step(loss=lambda t=t: loss(x, t))  # type: ignore[misc]  # defaults bind
        else:
            optimizer.step(closure)
        points[t] = x.detach()
    return points


def direction(make: Callable[[list[Tensor]], SharpnessAware], closure: Callable[[Tensor], Any], at: Tensor) -> Tensor:
    """Return the gradient (d,) that an optimizer hands to its base at a point, from a step of length 1.

    Args:
        make: the optimizer on a list of parameters, around gradient descent with lr = 1.
        closure: x -> what the optimizer's closure returns; backward is called here where that is a loss.
        at: (d,).
    """
    x = at.detach().clone().requires_grad_()
    optimizer = make([x])

    def run() -> Any:
        optimizer.zero_grad()
        value = closure(x)
        if isinstance(value, Tensor):
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return value

    optimizer.step(run)
    return at - x.detach()


def plain_sgd(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """Return gradient descent without momentum or weight decay."""
    return torch.optim.SGD(parameters, lr=lr)


def mean_and_error(runs: Array) -> tuple[Array, Array]:
    """Return mean and standard error over the first axis, the independent runs."""
    return runs.mean(0), runs.std(0, ddof=1) / math.sqrt(len(runs))


def relative_gap(one: Any, other: Any) -> float:
    """Return max |one - other| / max |other|."""
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return float(np.abs(first - second).max() / np.abs(second).max())
