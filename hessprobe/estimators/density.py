"""The spectral density, its distribution function with a rigorous band, moments and inertia."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import betainc
from torch import Tensor

from hessprobe import checks
from hessprobe.estimate import ErrorParts, Estimate, student_quantile
from hessprobe.estimators import budget
from hessprobe.estimators.informative import judged
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.spectral import SpectralFunction
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.krylov.quadrature import QuadratureRule, cdf_bounds, gauss, step_bounds

# Eigenvalues within this share of the spectral radius count as near zero unless the caller says otherwise.
_NEAR_ZERO = 1e-3
_MARGIN = 0.02
# A spectrum narrower than this share of its radius is one point.
_POINT = 1e-9
# Decades below the spectral radius that a fine grid reaches.
_FINEST = 6


@dataclass(frozen=True, eq=False, repr=False)
class Density:
    """The distribution of the d eigenvalues over the line.

    Phi(x) is the share of eigenvalues <= x. Each probe sees a weighted Psi_c with E Psi_c = Phi; its chain encloses
    low_c <= Psi_c <= high_c rigorously (Chebyshev, Markov, Stieltjes). The law of Psi_c(x) is known for
    rotation-invariant probes: q eigenvalues <= x of n take a Beta(q / 2, (n - q) / 2) share of the squared length.
    ``band`` inverts it.

    Attributes:
        grid: (g,) ascending points, in units of the eigenvalues.
        density: (g,) smoothed density per unit of eigenvalue; integrates to the mass within the grid.
        cdf: (g,) middle of ``cdf_low`` and ``cdf_high``.
        cdf_low, cdf_high: (g,) means over probes of the rigorous bounds.
        cdf_low_error, cdf_high_error: (g,) standard errors of these means over probes.
        deflated_low, deflated_high: (g,) the part of ``cdf_low`` and ``cdf_high`` that is deflated, and exact.
        dim: d, number of eigenvalues.
        sampled_dim: n, dimension of the complement that the probes sample; 0 for an exact density.
        law: of the probes.
        nodes, weights: pooled Ritz values, ascending, and their weights, of sum 1.
        widths: smoothing width of each node.
        moments: mean of lambda^k over the spectrum, k = 1 .. 4, as estimates.
        positive, negative, near_zero: share of eigenvalues > zero, < -zero and in [-zero, zero]; rigorous bounds are
            in the solver error.
        zero: the threshold, in units of the eigenvalues.
        ends: smallest and largest Ritz value, bounds from within on the spectrum.
        samples: number of probes.
        matvecs: products behind it.
    """

    grid: Tensor
    density: Tensor
    cdf: Tensor
    cdf_low: Tensor
    cdf_high: Tensor
    cdf_low_error: Tensor
    cdf_high_error: Tensor
    deflated_low: Tensor
    deflated_high: Tensor
    dim: int
    sampled_dim: int
    law: str
    nodes: Tensor
    weights: Tensor
    widths: Tensor
    moments: tuple[Estimate, ...]
    positive: Estimate
    negative: Estimate
    near_zero: Estimate
    zero: float
    ends: tuple[float, float]
    samples: int
    matvecs: float

    def __repr__(self) -> str:
        return (
            f"Density(dim={self.dim}, from {self.ends[0]:.4g} to {self.ends[1]:.4g}, "
            f"negative={self.negative.value:.3g}, near_zero={self.near_zero.value:.3g}, "
            f"positive={self.positive.value:.3g}, grid={len(self.grid)}, samples={self.samples}, "
            f"matvecs={self.matvecs:g})"
        )

    def band(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the pointwise band ``(low, high)`` of the distribution function on the grid at ``confidence``.

        The mean of p independent Beta shares is taken as a Beta share in p (n + 2) - 2 dimensions, which has its mean
        and variance; the limits are those shares of eigenvalues for which what was seen lies at a tail of
        (1 - confidence) / 2. Unlike a multiple of the spread over probes this holds in the tails of the spectrum and
        for two probes. For Rademacher probes, whose law depends on the eigenvectors, it is Student's t over the probes.

        Raises:
            ValueError: ``confidence`` outside (0, 1).
        """
        confidence = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        if not self.sampled_dim:
            return self.cdf_low, self.cdf_high
        if self.law == "rademacher":
            t = student_quantile(0.5 + confidence / 2, self.samples - 1)
            low, high = self.cdf_low - t * self.cdf_low_error, self.cdf_high + t * self.cdf_high_error
            return low.clamp(0.0, 1.0), high.clamp(0.0, 1.0)
        dim = self.sampled_dim / self.dim
        tail = (1 - confidence) / 2
        seen_low = ((self.cdf_low - self.deflated_low) / dim).clamp(0.0, 1.0)
        seen_high = ((self.cdf_high - self.deflated_high) / dim).clamp(0.0, 1.0)
        size = self.samples * (self.sampled_dim + 2) - 2
        high = self.deflated_high + dim * _largest_share(seen_high, size, tail)
        low = self.deflated_low + dim * (1 - _largest_share(1 - seen_low, size, tail))
        return low.clamp(0.0, 1.0), high.clamp(0.0, 1.0)


def spectral_density(
    A: Any,
    *,
    n_probes: int | None = None,
    steps: int | None = None,
    deflate: Any = None,
    seed: int | torch.Generator = 0,
    law: str = "sphere",
    method: str = "auto",
    grid: Tensor | int = 512,
    width: float | None = None,
    zero: float | None = None,
    callback: budget.Callback | None = None,
) -> Density:
    """Return the spectral density of A by Lanczos quadrature, with a rigorous band for its distribution function.

    Args:
        A: symmetric operator, or what ``aslinearoperator`` takes.
        n_probes: number of chains; for large d two already give the mean, more are needed for the error bars.
        steps: Lanczos steps, on which the resolution rests.
        deflate: directions to treat exactly, see ``spectral_sketch``.
        seed: integer or generator.
        law: of the probes, see ``spectral_sketch``.
        method: ``"auto"``, ``"slq"`` or ``"exact"``, see ``spectral_sketch``.
        grid: see ``density_of``.
        width: see ``density_of``.
        zero: see ``density_of``.
        callback: see ``spectral_sketch``.

    Raises:
        TypeError, ValueError: bad arguments.

    References:
        Chen, Trogdon, Ubaru (2021), "Analysis of stochastic Lanczos quadrature for spectrum approximation".
    """
    sketch = spectral_sketch(
        A,
        n_probes=n_probes,
        steps=steps,
        deflate=deflate,
        seed=seed,
        law=law,
        method=method,
        callback=callback,
    )
    return density_of(sketch, grid=grid, width=width, zero=zero)


def density_of(
    sketch: SpectralSketch, *, grid: Tensor | int = 512, width: float | None = None, zero: float | None = None
) -> Density:
    """Return the density of a sketch, without another product.

    Smoothing: each node is spread by a Gaussian. Its width is the residual of its Ritz value, within which an
    eigenvalue lies, but no more than half the distance between its neighbours and no less than one grid cell: a
    converged outlier stays a line, the bulk is smoothed at the resolution of the chain. Nothing else depends on it;
    read numbers off ``cdf`` and its band.

    Args:
        sketch: from ``spectral_sketch``.
        grid: (g,) ascending points, or their number >= 2 on an even grid over the Ritz values with a margin.
        width: one Gaussian width for all nodes instead, > 0.
        zero: threshold of ``near_zero``, >= 0; by default 1e-3 of the spectral radius.

    Raises:
        ValueError: a grid that is not ascending and finite, or an argument outside its range.
    """
    ends = sketch.ritz_range()
    points = _grid(grid, ends)
    radius = max(abs(ends[0]), abs(ends[1]))
    threshold = _NEAR_ZERO * radius if zero is None else checks.real("zero", zero, low=0)
    spread = None if width is None else checks.real("width", width, low=0, low_open=True)
    chains = [sketch.chain(c) for c in range(sketch.n_probes)]
    rules = [gauss(*chain) if len(chain[0]) else None for chain in chains]
    base_low, base_high, seen_low, seen_high = _cdf(sketch, chains, rules, points)
    low, high = base_low + seen_low.mean(0), base_high + seen_high.mean(0)
    nodes, weights, widths = _nodes(sketch, chains, rules, points, spread)
    below, upto = _at(sketch, chains, -threshold, left=True), _at(sketch, chains, threshold, left=False)
    inner, outer = _share(sketch, below[0], below[1]), _share(sketch, 1 - upto[1], 1 - upto[0])
    middle = _share(sketch, (upto[0] - below[1]).clamp(min=0.0), upto[1] - below[0])
    return Density(
        grid=points,
        density=_smeared(points, nodes, weights, widths),
        cdf=(low + high) / 2,
        cdf_low=low,
        cdf_high=high,
        cdf_low_error=_mean_error(seen_low),
        cdf_high_error=_mean_error(seen_high),
        deflated_low=base_low,
        deflated_high=base_high,
        dim=sketch.dim,
        sampled_dim=sketch.dim - len(sketch.theta) if chains else 0,
        law=sketch.law,
        nodes=nodes,
        weights=weights,
        widths=widths,
        moments=tuple(_moment(sketch, k) for k in range(1, 5)),
        positive=outer,
        negative=inner,
        near_zero=middle,
        zero=threshold,
        ends=ends,
        samples=sketch.n_probes,
        matvecs=sketch.matvecs,
    )


def fine_grid(sketch: SpectralSketch, count: int = 512, near: int = 64) -> Tensor:
    """Return ``count`` even points over the Ritz values and ``near`` more on either side of 0, ever denser towards it.

    The bulk of a trained network's spectrum lies within a few cells of an even grid; with these points a logarithmic
    axis shows it. The smoothing width, that of the largest cell, stays as it is.

    Args:
        sketch: from ``spectral_sketch``.
        count: see ``grid`` of ``density_of``.
        near: >= 0; geometrically spaced down to a millionth of the spectral radius.

    Raises:
        TypeError, ValueError: arguments outside their ranges.
    """
    ends = sketch.ritz_range()
    even = _grid(count, ends)
    near = checks.positive_int("near", near, minimum=0)
    radius = max(abs(ends[0]), abs(ends[1]))
    if not near or not radius > 0:
        return even
    steps = radius * torch.logspace(-_FINEST, 0, near, dtype=torch.float64)
    points = torch.cat([even, -steps, steps, torch.zeros(1, dtype=torch.float64)])
    inside = points[(points >= even[0]) & (points <= even[-1])]
    unique: Tensor = torch.unique(inside)
    return unique


def _grid(grid: Tensor | int, ends: tuple[float, float]) -> Tensor:
    if isinstance(grid, Tensor):
        points = grid.detach().to(device="cpu", dtype=torch.float64)
        good = points.ndim == 1 and len(points) >= 2 and bool(torch.isfinite(points).all())
        if not good or not bool((points[1:] > points[:-1]).all()):
            raise ValueError(
                f"grid must be finite, ascending points (g,), g >= 2; got shape {tuple(grid.shape)}. Sort it."
            )
        return points
    count = checks.positive_int("grid", grid, minimum=2)
    radius, span = max(abs(ends[0]), abs(ends[1])), ends[1] - ends[0]
    margin = _MARGIN * (span if span > _POINT * radius else radius) or 1.0
    return torch.linspace(ends[0] - margin, ends[1] + margin, count, dtype=torch.float64)


def _cdf(
    sketch: SpectralSketch,
    chains: list[tuple[Tensor, Tensor]],
    rules: list[QuadratureRule | None],
    x: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return bounds of the deflated part of Phi at ``x`` (g,), and of each probe's part, (max(p, 1), g)."""
    slack = sketch.noise
    base = [(sketch.theta[:, None] <= x + side).sum(0).double() / sketch.dim for side in (-slack, slack)]
    bounds = [torch.zeros(2, len(x), dtype=torch.float64)] if not chains else []
    for share, (_, betas), rule in zip(_shares(sketch), chains, rules, strict=True):
        if rule is None:
            bounds.append(torch.zeros(2, len(x), dtype=torch.float64))
            continue
        bounds.append(share * torch.stack(step_bounds(rule, x, exact=float(betas[-1]) == 0.0, slack=slack)))
    low, high = torch.stack(bounds, dim=1)
    return base[0], base[1], low, high


def _shares(sketch: SpectralSketch) -> list[float]:
    """Return the share of Phi that each probe stands for: that of the complement, up to its length if Rademacher."""
    if sketch.law == "rademacher":
        shares: list[float] = (sketch.norms**2 / sketch.dim).tolist()
        return shares
    return [(sketch.dim - len(sketch.theta)) / sketch.dim] * sketch.n_probes


def _mean_error(rows: Tensor) -> Tensor:
    return rows.std(0) / math.sqrt(len(rows)) if len(rows) > 1 else torch.zeros_like(rows[0])


def _largest_share(seen: Tensor, size: float, tail: float) -> Tensor:
    """Return the largest q with P(Beta(size q / 2, size (1 - q) / 2) <= seen) >= tail, by bisection."""
    low, high = seen.numpy().copy(), np.ones(len(seen))
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(all="ignore"):
            inside = betainc(size * middle / 2, size * (1 - middle) / 2, seen.numpy()) >= tail
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return torch.from_numpy(np.where(seen.numpy() >= 1.0, 1.0, high))


def _at(sketch: SpectralSketch, chains: list[tuple[Tensor, Tensor]], x: float, *, left: bool) -> Tensor:
    """Return sharp bounds on Phi(x) (on Phi(x-) if ``left``) for each probe, (2, max(p, 1))."""
    slack, theta = sketch.noise, sketch.theta
    base = [float((theta < x + side if left else theta <= x + side).sum()) / sketch.dim for side in (-slack, slack)]
    rows = [base] if not chains else []
    for share, (alphas, betas) in zip(_shares(sketch), chains, strict=True):
        pair = cdf_bounds(alphas, betas, x, slack, left=left) if len(alphas) else (0.0, 0.0)
        rows.append([b + share * part for b, part in zip(base, pair, strict=True)])
    return torch.tensor(rows, dtype=torch.float64).T


def _share(sketch: SpectralSketch, low: Tensor, high: Tensor) -> Estimate:
    """Return a share of eigenvalues; its probe error is no less than the Beta law of ``Density.band`` says."""
    value, half = float((low + high).mean()) / 2, float((high - low).mean()) / 2
    count, free = sketch.n_probes, sketch.dim - len(sketch.theta)
    probe = 0.0
    if count > 1:
        inner = min(max(value * sketch.dim / free, 0.0), 1.0)
        law = free / sketch.dim * math.sqrt(2 * inner * (1 - inner) / ((free + 2) * count))
        probe = max(law, float(torch.maximum(low.std(), high.std())) / math.sqrt(count))
    estimate = Estimate(
        value=value,
        errors=ErrorParts(probe, None, half),
        df=count - 1 if count else math.inf,
        matvecs=sketch.matvecs,
        samples=count,
        method="inertia/slq" if count else "inertia",
        kind="estimate" if count else "exact",
        support=(0.0, 1.0),
    )
    return judged(estimate, share=True)


def _nodes(
    sketch: SpectralSketch,
    chains: list[tuple[Tensor, Tensor]],
    rules: list[QuadratureRule | None],
    grid: Tensor,
    width: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pooled nodes, weights and smoothing widths, ascending."""
    cell = float((grid[1:] - grid[:-1]).max())
    deflated = (sketch.theta, torch.full_like(sketch.theta, 1.0 / sketch.dim), sketch.residuals.clamp(min=cell))
    parts = [deflated]
    for part, (_, betas), rule in zip(_shares(sketch), chains, rules, strict=True):
        if rule is None:
            continue
        share = part / sketch.n_probes
        gaps = torch.cat([rule.nodes[:1] - cell, rule.nodes, rule.nodes[-1:] + cell])
        local = ((gaps[2:] - gaps[:-2]) / 2).clamp(min=cell)
        residual = float(betas[-1]) * rule.vectors[-1].abs()
        parts.append((rule.nodes, share * rule.weights, torch.minimum(residual, local).clamp(min=cell)))
    nodes, weights, widths = (torch.cat(column) for column in zip(*parts, strict=True))
    order = nodes.argsort()
    if width is not None:
        widths = torch.full_like(widths, width)
    weights = weights / weights.sum()
    return nodes[order], weights[order], widths[order]


def _smeared(grid: Tensor, nodes: Tensor, weights: Tensor, widths: Tensor) -> Tensor:
    """Return the mean density within each cell around a grid point, so that no line falls between two points."""
    inner = (grid[1:] + grid[:-1]) / 2
    edges = torch.cat([2 * grid[:1] - inner[:1], inner, 2 * grid[-1:] - inner[-1:]])
    heights = torch.special.ndtr((edges[:, None] - nodes) / widths) @ weights
    density: Tensor = (heights[1:] - heights[:-1]) / (edges[1:] - edges[:-1])
    return density


def _moment(sketch: SpectralSketch, order: int) -> Estimate:
    def power(x: Tensor) -> Tensor:
        return x**order

    return sketch.evaluate(SpectralFunction(power, f"moment-{order}", degree=order)).scaled(1.0 / sketch.dim)
