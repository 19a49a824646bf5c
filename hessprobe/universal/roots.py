"""Eigenvalues from their elementary symmetric functions, and which of them an error there leaves indistinct."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError

# Roots count as one multiple root up to this many times the radius to which a change of the polynomial by its error
# spreads a multiple root: the bound on the change is met within such a factor.
_SPREAD = 2.0
# Roundings in an integral: those of a dozen eigenvalues and logarithms.
ROUNDING = 4.0
# Standard errors that an integral from random directions may be off by.
_SIGMAS = 2.0


@dataclass(frozen=True, eq=False)
class SymmetricSystem:
    """f of the eigenvalues l_i of a matrix from integrals y_k = det(I + s_k H)^(-1/2).

    Attributes:
        f: (d,) eigenvalues, descending -> number.
        solve: (u, m) matrix that takes y^(-2) - 1 to e_1, ..., e_u, the elementary symmetric functions of l / scale.
        dim: d >= u; eigenvalues beyond the u-th are 0.
        scale: bound on the eigenvalues, > 0.
    """

    f: Callable[[Tensor], Tensor]
    solve: Tensor
    dim: int
    scale: float

    def value(self, y: Tensor, slack: Tensor | None = None) -> Tensor:
        """Return f of the eigenvalues behind ``y`` (m,); see ``eigenvalues`` for ``slack`` (u,)."""
        found = eigenvalues(self._symmetric(y), slack) * self.scale
        padded = torch.cat([found, found.new_zeros(self.dim - len(found))])
        return self.f(padded.sort(descending=True).values)

    def indistinct(self, y: Tensor, slack: Tensor) -> bool:
        """Return whether some of the eigenvalues behind ``y`` cannot be told apart; see ``eigenvalues``."""
        found = _roots(self._symmetric(y))
        return len(_groups(found, slack)) < len(found)

    def rounding_error(self, y: Tensor) -> Tensor:
        """Return how far rounding of ``y`` may move each e_j, (u,)."""
        size = self.solve.to(y.device).abs() @ (y.detach() ** -2).abs()
        return ROUNDING * torch.finfo(torch.float64).eps * size

    def sampling_error(self, samples: Tensor) -> Tensor:
        """Return how far the mean of ``samples`` (n, m) may move each e_j, to first order: two standard errors."""
        mean = samples.mean(0)
        influence = (-2 * mean**-3 * (samples - mean)) @ self.solve.to(samples.device).T
        return _SIGMAS * influence.std(0) / math.sqrt(len(samples))

    def _symmetric(self, y: Tensor) -> Tensor:
        return self.solve.to(y.device) @ (y**-2 - 1)


def eigenvalues(symmetric: Tensor, slack: Tensor | None = None) -> Tensor:
    """Return the real parts of the roots of p(x) = x^m - e_1 x^(m-1) + e_2 x^(m-2) - ..., descending.

    An error of size delta in p moves a simple root in proportion, and spreads a k-fold one into a ring of radius about
    delta^(1/k), whose center moves in proportion again. Roots that ``slack`` leaves indistinct are therefore replaced
    by their mean, each of them.

    Differentiable in ``symmetric``: where k roots equal c, p(c + t) = t^k q(t), a change dp of p changes the factor
    with these roots by the terms of dp(c + t) / q(t) below t^k, and so their mean by -1/k times the coefficient of
    t^(k-1); for k = 1 that is -dp(c) / p'(c).

    Args:
        symmetric: (e_1, ..., e_m), fp64.
        slack: (m,) >= 0, how far each e_j may be off; None for exact ones, where only equal roots are one.

    Raises:
        NonFiniteError: an entry is nan or infinite.
    """
    found = _roots(symmetric.detach())
    groups = _groups(found, torch.zeros_like(symmetric) if slack is None else slack)
    means = torch.cat([found[i:j].mean().expand(j - i) for i, j in groups])
    if not symmetric.requires_grad:
        return means.real
    signs = (-1.0) ** torch.arange(1, len(symmetric) + 1, dtype=symmetric.dtype, device=symmetric.device)
    coefficients = torch.cat([symmetric.new_ones(1), signs * symmetric]).to(means.dtype)
    moved = []
    for i, j in groups:
        k, center = j - i, means[i]
        inverse = _inverse_series([_taylor(coefficients.detach(), center, n) for n in range(k, 2 * k)])
        change = sum((_taylor(coefficients, center, n) * inverse[k - 1 - n] for n in range(k)), start=0 * center)
        moved.append((center - (change - change.detach()) / k).expand(k))
    return torch.cat(moved).real


def _roots(symmetric: Tensor) -> Tensor:
    """Return the complex roots as they come, by descending real part."""
    size = len(symmetric)
    signs = (-1.0) ** torch.arange(size, dtype=torch.float64, device=symmetric.device)
    companion = torch.diag(torch.ones(size - 1, dtype=torch.float64, device=symmetric.device), -1)
    companion = torch.cat([(signs * symmetric)[None, :], companion[1:]])
    if not bool(torch.isfinite(companion).all()):
        raise NonFiniteError("E psi must be positive and finite; got 0, nan or inf. Draw more, or lower scale=.")
    values: Tensor = torch.linalg.eigvals(companion)
    return values[values.real.argsort(descending=True)]


def _groups(values: Tensor, slack: Tensor) -> list[tuple[int, int]]:
    """Return (start, stop) of the runs of sorted roots that an error of p within ``slack`` makes of one root.

    The largest run goes first; what lies on either side of it is divided in the same way.
    """
    points, errors = values.cpu().tolist(), slack.detach().cpu().tolist()
    open_runs, done = [(0, len(points))], []
    while open_runs:
        start, stop = open_runs.pop()
        i, j = next(
            (i, i + size)
            for size in range(stop - start, 0, -1)
            for i in range(start, stop - size + 1)
            if size == 1 or _one_root(points, errors, i, i + size)
        )
        done.append((i, j))
        open_runs += [run for run in ((start, i), (j, stop)) if run[0] < run[1]]
    return sorted(done)


def _one_root(points: list[complex], errors: list[float], start: int, stop: int) -> bool:
    """Return whether points[start:stop] lie as near their mean as a multiple root spreads."""
    size = stop - start
    mean = sum(points[start:stop]) / size
    change = sum(error * abs(mean) ** (len(points) - 1 - power) for power, error in enumerate(errors))
    apart = math.prod(abs(mean - other) for other in (*points[:start], *points[stop:]))
    width = max(abs(point - mean) for point in points[start:stop])
    # As powers: the product may be 0 where further roots are at the mean, too.
    return (width / _SPREAD) ** size * apart <= change


def _taylor(coefficients: Tensor, center: Tensor, order: int) -> Tensor:
    """Return the coefficient of (x - center)^order of a polynomial given by its coefficients, highest power first."""
    degree = len(coefficients) - 1
    if order > degree:
        return torch.zeros_like(center)
    powers = [center ** (degree - i - order) * math.comb(degree - i, order) for i in range(degree - order + 1)]
    total: Tensor = (coefficients[: degree - order + 1] * torch.stack(powers)).sum()
    return total


def _inverse_series(series: list[Tensor]) -> list[Tensor]:
    """Return the first coefficients of 1 / sum_n s_n t^n, as many as there are s_n."""
    inverse = [1 / series[0]]
    for n in range(1, len(series)):
        inverse.append(-sum((series[i] * inverse[n - i] for i in range(1, n + 1)), start=0 * series[0]) / series[0])
    return inverse
