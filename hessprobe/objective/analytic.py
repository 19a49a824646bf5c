"""Objectives whose gradient and Hessian are known in closed form: the oracles of everything above."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.vectors import ParameterLayout


@dataclass(frozen=True, eq=False)
class AnalyticTerm(BatchLoss):
    """One summand of an analytic objective.

    Attributes:
        function: theta (d,) -> scalar, twice differentiable by torch.
        weight: share in the objective.
        size: number of units it stands for.
    """

    function: Callable[[Tensor], Tensor]
    weight: float = 1.0
    size: float = 1.0

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the value of the summand, a scalar, at ``theta`` (d,)."""
        return self.function(theta)


class Quadratic(Objective):
    """L(theta) = (theta - c)^T A (theta - c) / 2 for a symmetric A.

    With ``terms = n > 1`` it is a weighted sum of n different quadratics with the same minimiser, whose weights
    w_i = 2 (i + 1)/(n (n + 1)) differ as those of ragged batches do: A = sum_i w_i A_i with
    A_i = A + spread max|A| (E_i - sum_j w_j E_j), E_i = (N + N^T)/2 for N with standard normal entries.

    Args:
        matrix: A (d, d), symmetric, floating point.
        center: c, a number or (d,).
        terms: n >= 1.
        theta: (d,) point at which to measure; ones by default.
        spread: size of the differences between the A_i, relative to the largest entry of A.
        seed: of the E_i.

    Attributes:
        matrix: A.
        matrices: A_i, one a term.
        weights: w_i, one a term.

    Raises:
        ValueError: a matrix that is not square and symmetric, or other arguments of the wrong shape or range.
    """

    def __init__(
        self,
        matrix: Tensor,
        center: float | Tensor = 0.0,
        terms: int = 1,
        *,
        theta: Tensor | None = None,
        spread: float = 1.0,
        seed: int = 0,
    ) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not torch.allclose(matrix, matrix.T):
            raise ValueError(
                f"matrix must be square and symmetric; got shape {tuple(matrix.shape)}. Use (A + A.T) / 2."
            )
        self.n_terms = checks.positive_int("terms", terms)
        self.matrix = matrix
        self.center = torch.zeros_like(matrix[0]) + center
        _place(self, _point(theta, torch.ones_like(matrix[0])), {"theta": matrix.shape[:1]})
        total = self.n_terms * (self.n_terms + 1) / 2
        self.weights = tuple((i + 1) / total for i in range(self.n_terms))
        self.matrices = tuple(matrix + part for part in self._differences(spread, checks.resolve_seed(seed)))

    def _differences(self, spread: float, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        scale = spread * float(self.matrix.abs().max()) if self.n_terms > 1 else 0.0
        noise = torch.randn(self.n_terms, self.dim, self.dim, generator=generator, dtype=torch.float64)
        noise = ((noise + noise.mT) * (scale / 2)).to(self.matrix)
        mean = sum(
            (weight * part for weight, part in zip(self.weights, noise, strict=True)), torch.zeros_like(noise[0])
        )
        return list(noise - mean)

    def terms(self) -> Iterator[AnalyticTerm]:
        """Yield the n quadratics."""
        for weight, matrix in zip(self.weights, self.matrices, strict=True):

            def function(theta: Tensor, matrix: Tensor = matrix) -> Tensor:
                offset = theta - self.center
                return offset @ (matrix @ offset) / 2

            yield AnalyticTerm(function, weight, float(self.n_terms) * weight)

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return A (theta - c), shape (d,)."""
        return self.matrix @ (_point(theta, self.theta) - self.center)

    def hessian(self, theta: Tensor | None = None) -> Tensor:
        """Return A (d, d), the same at every ``theta``."""
        del theta
        return self.matrix


class Saddle(Objective):
    """L(theta) = sum_i c_i theta_i^2 / 2: a saddle at 0 where the curvatures c_i have both signs.

    Args:
        curvatures: c_i, the eigenvalues of the Hessian, d >= 1 of them.
        theta: (d,) point at which to measure; 0, the saddle itself, by default.
        dtype: of theta.
        device: of theta.
    """

    def __init__(
        self,
        curvatures: Sequence[float] = (1.0, -1.0),
        theta: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.curvatures = torch.tensor(curvatures, dtype=dtype, device=device)
        _place(self, _point(theta, torch.zeros_like(self.curvatures)), {"theta": self.curvatures.shape})

    def terms(self) -> Iterator[AnalyticTerm]:
        """Yield the objective as one term."""
        yield AnalyticTerm(lambda theta: (self.curvatures * theta**2).sum() / 2)

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return c * theta, shape (d,)."""
        return self.curvatures * _point(theta, self.theta)

    def hessian(self, theta: Tensor | None = None) -> Tensor:
        """Return diag(c) (d, d), the same at every ``theta``."""
        del theta
        return self.curvatures.diag()


class ScaleInvariantProduct(Objective):
    """L(u, v) = (<u, v> - t)^2 / 2: a two-layer linear net, unchanged by (u, v) -> (a u, v / a) for any a != 0.

    All points with <u, v> = t are minima of the same function, but their Hessians differ: at a minimum the only
    eigenvalue other than 0 is |u|^2 + |v|^2.

    Args:
        width: length of u and of v, >= 1.
        target: t.
        theta: (2 width,) point at which to measure, u first; u = 1, 1, ... and v = 2, 2, ... by default.
        dtype: of theta.
        device: of theta.
    """

    def __init__(
        self,
        width: int = 1,
        target: float = 1.0,
        theta: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.width, self.target = checks.positive_int("width", width), checks.real("target", target)
        default = torch.ones(2, self.width, dtype=dtype, device=device)
        default[1] *= 2
        shape = torch.Size((self.width,))
        _place(self, _point(theta, default.reshape(-1)), {"u": shape, "v": shape})

    def terms(self) -> Iterator[AnalyticTerm]:
        """Yield the objective as one term."""
        yield AnalyticTerm(lambda theta: (theta[: self.width] @ theta[self.width :] - self.target) ** 2 / 2)

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return r (v, u) with r = <u, v> - t, shape (d,)."""
        u, v = _point(theta, self.theta).view(2, self.width)
        slope: Tensor = (u @ v - self.target) * torch.cat([v, u])
        return slope

    def hessian(self, theta: Tensor | None = None) -> Tensor:
        """Return g g^T + r [[0, I], [I, 0]] with g = (v, u), (d, d)."""
        u, v = _point(theta, self.theta).view(2, self.width)
        slope = torch.cat([v, u])
        swap = torch.eye(self.dim, dtype=self.dtype, device=self.device).roll(self.width, 0)
        matrix: Tensor = torch.outer(slope, slope) + (u @ v - self.target) * swap
        return matrix


class Rosenbrock(Objective):
    """L(x) = sum_{i < d} 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2, as d - 1 terms of equal weight.

    Args:
        dim: d >= 2.
        theta: (d,) point at which to measure; -1.2, 1, -1.2, ... by default.
        dtype: of theta.
        device: of theta.

    References:
        Rosenbrock (1960), "An automatic method for finding the greatest or least value of a function".
    """

    def __init__(
        self,
        dim: int = 2,
        theta: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        checks.positive_int("dim", dim, minimum=2)
        default = torch.ones(dim, dtype=dtype, device=device)
        default[::2] = -1.2
        _place(self, _point(theta, default), {"x": default.shape})
        self.n_terms = dim - 1

    def terms(self) -> Iterator[AnalyticTerm]:
        """Yield the summands, each times d - 1 and with weight 1/(d - 1)."""
        for i in range(self.n_terms):

            def function(x: Tensor, i: int = i) -> Tensor:
                value: Tensor = 100 * (x[i + 1] - x[i] ** 2) ** 2 + (1 - x[i]) ** 2
                return value * self.n_terms

            yield AnalyticTerm(function, 1 / self.n_terms)

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return the gradient, shape (d,)."""
        x = _point(theta, self.theta)
        gap = x[1:] - x[:-1] ** 2
        slope = torch.zeros_like(x)
        slope[:-1] = -400 * x[:-1] * gap - 2 * (1 - x[:-1])
        slope[1:] += 200 * gap
        return slope

    def hessian(self, theta: Tensor | None = None) -> Tensor:
        """Return the tridiagonal Hessian (d, d)."""
        x = _point(theta, self.theta)
        diagonal = torch.zeros_like(x)
        diagonal[:-1] = 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
        diagonal[1:] += 200
        beside = -400 * x[:-1]
        return diagonal.diag() + beside.diag(1) + beside.diag(-1)


def _point(theta: Tensor | None, default: Tensor) -> Tensor:
    if theta is None:
        return default
    if theta.shape != default.shape:
        raise ValueError(
            f"theta must have shape {tuple(default.shape)}; got {tuple(theta.shape)}. Pass one entry a parameter."
        )
    return theta.detach().to(default)


def _place(objective: Objective, theta: Tensor, shapes: dict[str, torch.Size]) -> None:
    objective.theta = theta.clone()
    objective.dim, objective.dtype, objective.device = len(theta), theta.dtype, theta.device
    objective.layout = ParameterLayout(tuple(shapes), tuple(shapes.values()))
