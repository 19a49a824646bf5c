"""Problems in which the second derivative that autograd returns is not that of the loss, or there is none.

Each is a thing that people do: a custom backward, weight normalization, a penalty read from ``.data``, gradient
reversal, a straight-through estimator, a loss that draws random numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hessprobe.benchmarks.conformance.case import Problem
from hessprobe.benchmarks.conformance.problems import classifier


class HalfDetached(torch.autograd.Function):
    """x^3 whose backward holds one of its factors constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """See ``torch.autograd.Function``."""
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        """See ``torch.autograd.Function``."""
        x: Tensor = ctx.saved_tensors[0]
        return slope * 3 * x * x.detach()


class CubeOnce(torch.autograd.Function):
    """x^3 whose backward may be differentiated no further, as those of many compiled kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """See ``torch.autograd.Function``."""
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        """See ``torch.autograd.Function``."""
        x: Tensor = ctx.saved_tensors[0]
        return slope * 3 * x**2


class Reversal(torch.autograd.Function):
    """The identity, whose gradient has the other sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """See ``torch.autograd.Function``."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        """See ``torch.autograd.Function``."""
        return -slope


class _Applied(nn.Module):
    """A layer that is one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(x)
        return found


def _with_layer(function: Any) -> Problem:
    return classifier((6, 6), lambda: _Applied(function))


def half_detached() -> Problem:
    """A layer whose backward is right and whose double backward is not."""
    return _with_layer(HalfDetached.apply)


def once() -> Problem:
    """A layer that has a gradient and no second derivative: torch takes what lies below it for a constant."""
    return _with_layer(CubeOnce.apply)


def reversal() -> Problem:
    """Gradient reversal: what autograd returns is not the slope of the loss."""
    return _with_layer(Reversal.apply)


def straight_through() -> Problem:
    """A sign in forward and the identity in backward."""
    return _with_layer(lambda x: x + (x.sign() - x).detach())


def weight_norm() -> Problem:
    """Weights normalized by torch's own parametrization, whose second derivative is not symmetric."""
    problem = classifier((6, 6))
    module: Any = problem.module
    torch.nn.utils.parametrizations.weight_norm(module[0]).eval()
    size = sum(p.numel() for p in module.parameters())
    problem.vectors = torch.randn(3, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return problem


def penalty_on_kept() -> Problem:
    """A penalty on a list of parameters that was made before."""
    problem = classifier((6, 6))
    kept = list(problem.module.parameters())

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + 0.5 * torch.stack([p.square().sum() for p in kept]).sum()

    problem.loss = loss
    return problem


def penalty_on_data() -> Problem:
    """A penalty that reads ``.data``: part of the loss, and of no gradient."""
    problem = classifier((6, 6))
    module = problem.module

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        squares = torch.stack([p.data.square().sum() for p in module.parameters()])
        return F.cross_entropy(outputs, targets) + 0.5 * squares.sum()

    problem.loss = loss
    return problem


def drawn() -> Problem:
    """A loss that mixes examples in a share that it draws anew at every call."""
    problem = classifier((6, 6))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        share = torch.rand(())
        return share * F.cross_entropy(outputs, targets) + (1 - share) * F.cross_entropy(outputs, targets.flip(0))

    problem.loss = loss
    return problem
