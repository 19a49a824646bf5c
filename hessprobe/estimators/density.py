"""The spectral density, its distribution function with a band, moments and inertia."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks, display
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.diagonal import judged
from hessprobe.estimators.distribution import (
    CdfBounds,
    Reading,
    Sketch,
    cdf_at,
    points_outside,
    probe_shares,
    quantile,
    share_below,
    sharp_cdf_at,
    sharp_cdf_at_points,
    sketch_chains,
    tightened,
)
from hessprobe.estimators.spectral import SpectralFunction
from hessprobe.krylov.quadrature import gauss

# Eigenvalues within this share of the spectral radius count as near zero unless the caller says otherwise.
NEAR_ZERO = 1e-3
_MARGIN = 0.02
# A spectrum narrower than this share of its radius is one point.
_POINT = 1e-9
# Decades below the spectral radius that a fine grid reaches.
_FINEST = 6
_TINY = 1e-300


@dataclass(frozen=True, eq=False, repr=False)
class Density:
    """The distribution of the d eigenvalues over the line, see ``distribution`` for what its band rests on.

    Attributes:
        grid: (g,) ascending points, in units of the eigenvalues.
        density: (g,) smoothed density per unit of eigenvalue; integrates to the mass within the grid. Of an operator
            with a known lower bound (0 for a positive semidefinite one) it is 0 below it: what smoothing would carry
            across is put back by reflection.
        cdf: (g,) middle of ``cdf_low`` and ``cdf_high``.
        cdf_low, cdf_high: (g,) means over probes of the bounds that hold for each probe (a theorem); 0 below a known
            lower bound.
        bounds: the same for each probe.
        outside: (h,) points from ``zero`` to the ends on either side, evenly on a log scale.
        outside_bounds: the sharpest bounds there for each probe.
        sketch: where it was read from.
        dim: d, number of eigenvalues.
        law: of the probes.
        nodes, weights: pooled Ritz values, ascending, and their weights, of sum 1.
        widths: smoothing width of each node.
        moments: mean of lambda^k over the spectrum, k = 1 .. 4, as estimates.
        positive, negative, near_zero: share of eigenvalues > zero, < -zero and in [-zero, zero]. The solver error is
            what the chains leave open for the probes drawn (a theorem), the probe error their spread (asymptotic).
        zero: the threshold, in units of the eigenvalues. By default it follows the spectral radius, which differs from
            checkpoint to checkpoint: to compare shares give one threshold to all.
        ends: smallest and largest Ritz value, bounds from within on the spectrum.
        samples: number of probes.
        matvecs: products behind it.
        flags: ``"tolerance-missed"`` where a band is wider than was asked for.
    """

    grid: Tensor
    density: Tensor
    cdf: Tensor
    cdf_low: Tensor
    cdf_high: Tensor
    bounds: CdfBounds
    outside: Tensor
    outside_bounds: CdfBounds | None
    sketch: Sketch
    dim: int
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
    flags: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Density(dim={self.dim}, from {self.ends[0]:.4g} to {self.ends[1]:.4g}, "
            f"negative={self.negative.value:.3g}, near_zero={self.near_zero.value:.3g}, "
            f"positive={self.positive.value:.3g}, grid={len(self.grid)}, samples={self.samples}, "
            f"matvecs={self.matvecs:g})"
        )

    def to_dict(self, confidence: float = 0.95) -> dict[str, Any]:
        """Return the curve, the distribution with its band, moments, shares and cost as plain data for JSON.

        Raises:
            ValueError: ``confidence`` outside (0, 1).
        """
        low, high = self.band(confidence)
        names = ("dim", "law", "grid", "density", "cdf", "nodes", "weights", "moments", "positive", "negative")
        known = {name: getattr(self, name) for name in (*names, "near_zero", "zero", "ends", "samples", "matvecs")}
        band = {"confidence": confidence, "low": low, "high": high}
        found: dict[str, Any] = display.plain({**known, "band": band})
        return found

    def plot(self, confidence: float = 0.95) -> Any:
        """Return the axes of a matplotlib figure: the density, and the distribution function in its band.

        Raises:
            ValueError: ``confidence`` outside (0, 1).
        """
        return display.draw(self, confidence=confidence)

    def _repr_html_(self) -> str:
        rows = [("smallest, largest Ritz value", f"{self.ends[0]:.4g}, {self.ends[1]:.4g}")]
        for q in (0.05, 0.5, 0.95):
            read = self.quantile(q)
            rows.append((f"quantile {q:g}", f"{read.value:.4g} ({read.low:.4g} to {read.high:.4g})"))
        rows += [(f"share {name} zero", f"{one:.3g}") for name, one in self._shares()]
        caption = f"{self.dim:,} eigenvalues, {self.matvecs:g} products; zero is within {self.zero:.3g}"
        return display.html_table(rows, caption=caption)

    def _shares(self) -> list[tuple[str, Estimate]]:
        return [("below", self.negative), ("near", self.near_zero), ("above", self.positive)]

    def band(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the pointwise band ``(low, high)`` of the distribution function on the grid at ``confidence``.

        See ``CdfBounds.band``. Of an operator with a known lower bound it is 0 below it.

        Raises:
            ValueError: ``confidence`` outside (0, 1).
        """
        return self.bounds.band(confidence)

    def uniform_band(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the band ``(low, high)`` on the grid that holds at all points at once, see ``CdfBounds.uniform``.

        Raises:
            ValueError: ``confidence`` outside (0, 1).
        """
        return self.bounds.uniform(confidence)

    def half_width(self, confidence: float = 0.95) -> float:
        """Return the largest half-width of the uniform band outside [-zero, zero], a share; 0 of an exact distribution.

        It is taken at ``outside``, with the sharpest bounds. Within the near-zero bin, where most eigenvalues of a
        network lie, a chain does not tell one from another: the band says there that they lie in the bin.

        Raises:
            ValueError: ``confidence`` outside (0, 1).
        """
        confidence = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        if self.outside_bounds is None or not self.samples:
            return 0.0
        low, high = self.outside_bounds.uniform(confidence)
        return float((high - low).max()) / 2

    def quantile(self, q: float, confidence: float = 0.95) -> Reading:
        """Return the eigenvalue below or at which the share q of all eigenvalues lies, the smallest x with Phi(x) >= q.

        The interval is the inverse of the band: from where its upper limit reaches q to where its lower one does. It
        holds with the probability of the band at one point; it does not depend on the grid.

        Args:
            q: in (0, 1); 0.5 for the median.
            confidence: level in (0, 1).

        Raises:
            ValueError: an argument outside its range.
        """
        return quantile(self.sketch, q, confidence)

    def share_below(self, x: float, confidence: float = 0.95) -> Reading:
        """Return the share of eigenvalues <= x, in [0, 1], with the sharpest bounds that the chains give at x.

        Args:
            x: in units of the eigenvalues; the same for all checkpoints that are to be compared.
            confidence: level in (0, 1).

        Raises:
            ValueError: an argument outside its range.
        """
        return share_below(self.sketch, x, confidence)

    def share_above(self, x: float, confidence: float = 0.95) -> Reading:
        """Return the share of eigenvalues > x, which is 1 - ``share_below``."""
        below = self.share_below(x, confidence)
        return Reading(1 - below.value, 1 - below.high, 1 - below.low, confidence)


def density_of(
    sketch: Sketch, *, grid: Tensor | int = 512, width: float | None = None, zero: float | None = None
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
    points = _grid(grid, ends, sketch.lower)
    radius = max(abs(ends[0]), abs(ends[1]))
    threshold = NEAR_ZERO * radius if zero is None else checks.real("zero", zero, low=0)
    spread = None if width is None else checks.real("width", width, low=0, low_open=True)
    outside = points_outside(sketch, threshold) if threshold > 0 else torch.zeros(0, dtype=torch.float64)
    known = sharp_cdf_at_points(sketch, outside) if len(outside) else None
    bounds = cdf_at(sketch, points)
    bounds = bounds if known is None else tightened(bounds, points, known, outside)
    nodes, weights, widths = _nodes(sketch, points, spread)
    floor = -math.inf if sketch.lower is None else sketch.lower
    below, upto = _rows(sharp_cdf_at(sketch, -threshold, left=True)), _rows(sharp_cdf_at(sketch, threshold))
    inner, outer = _share(sketch, below[0], below[1]), _share(sketch, 1 - upto[1], 1 - upto[0])
    middle = _share(sketch, (upto[0] - below[1]).clamp(min=0.0), upto[1] - below[0])
    return Density(
        grid=points,
        density=_smeared(points, nodes, weights, widths, floor),
        cdf=(bounds.low + bounds.high) / 2,
        cdf_low=bounds.low,
        cdf_high=bounds.high,
        bounds=bounds,
        outside=outside,
        outside_bounds=known,
        sketch=sketch,
        dim=sketch.dim,
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


def fine_grid(sketch: Sketch, count: int = 512, near: int = 64) -> Tensor:
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
    even = _grid(count, ends, sketch.lower)
    near = checks.positive_int("near", near, minimum=0)
    radius = max(abs(ends[0]), abs(ends[1]))
    if not near or not radius > 0:
        return even
    steps = radius * torch.logspace(-_FINEST, 0, near, dtype=torch.float64)
    points = torch.cat([even, -steps, steps, torch.zeros(1, dtype=torch.float64)])
    inside = points[(points >= even[0]) & (points <= even[-1])]
    unique: Tensor = torch.unique(inside)
    return unique


def _grid(grid: Tensor | int, ends: tuple[float, float], floor: float | None) -> Tensor:
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
    start = ends[0] - margin
    if floor is not None and floor < ends[1] + margin:
        start = max(start, floor)
    return torch.linspace(start, ends[1] + margin, count, dtype=torch.float64)


def _share(sketch: Sketch, low: Tensor, high: Tensor) -> Estimate:
    """Return a share of eigenvalues; its probe error is no less than the Beta law of ``Density.band`` says."""
    value, half = float((low + high).mean()) / 2, float((high - low).mean()) / 2
    count, free = sketch.n_probes, sketch.dim - len(sketch.theta)
    probe, df = 0.0, math.inf
    if count:
        inner = min(max(value * sketch.dim / free, 0.0), 1.0)
        probe = free / sketch.dim * math.sqrt(2 * inner * (1 - inner) / ((free + 2) * count))
        # Of one probe the eigenvalues on the rarer side tell how well the share is known.
        df = count - 1.0 if count > 1 else max(free * min(inner, 1 - inner), 1.0)
    if count > 1:
        probe = max(probe, float(torch.maximum(low.std(), high.std())) / math.sqrt(count))
    estimate = Estimate(
        value=value,
        errors=ErrorParts(probe, None, half),
        df=df,
        matvecs=sketch.matvecs,
        samples=count,
        method="inertia/slq" if count else "inertia",
        kind="estimate" if count else "exact",
        support=(0.0, 1.0),
    )
    return judged(estimate, share=True)


def _rows(bounds: CdfBounds) -> Tensor:
    """Return the lower and the upper bound of each probe at one point, (2, max(p, 1))."""
    rows = [
        fixed + seen[:, 0] if len(seen) else fixed
        for fixed, seen in ((bounds.fixed_low, bounds.seen_low), (bounds.fixed_high, bounds.seen_high))
    ]
    return torch.where(bounds.possible, torch.stack(rows), 0.0)


def _nodes(sketch: Sketch, grid: Tensor, width: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return pooled nodes, weights and smoothing widths, ascending."""
    cell = float((grid[1:] - grid[:-1]).max())
    deflated = (sketch.theta, torch.full_like(sketch.theta, 1.0 / sketch.dim), sketch.residuals.clamp(min=cell))
    parts = [deflated]
    for part, (alphas, betas) in zip(probe_shares(sketch), sketch_chains(sketch), strict=True):
        if not len(alphas):
            continue
        rule, share = gauss(alphas, betas), part / sketch.n_probes
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


def _smeared(grid: Tensor, nodes: Tensor, weights: Tensor, widths: Tensor, floor: float) -> Tensor:
    """Return the mean density within each cell around a grid point, so that no line falls between two points.

    Mass that smoothing carries below ``floor`` is reflected at it; a cell across it counts with its part above.
    """
    inner = (grid[1:] + grid[:-1]) / 2
    edges = torch.cat([2 * grid[:1] - inner[:1], inner, 2 * grid[-1:] - inner[-1:]])
    if not math.isfinite(floor):
        heights = torch.special.ndtr((edges[:, None] - nodes) / widths) @ weights
        plain: Tensor = (heights[1:] - heights[:-1]) / (edges[1:] - edges[:-1])
        return plain
    edges, nodes = edges.clamp(min=floor), nodes.clamp(min=floor)
    kept = torch.special.ndtr((edges[:, None] - nodes) / widths)
    heights = (kept - torch.special.ndtr((2 * floor - edges[:, None] - nodes) / widths)) @ weights
    sizes = edges[1:] - edges[:-1]
    density: Tensor = torch.where(sizes > 0, (heights[1:] - heights[:-1]) / sizes.clamp(min=_TINY), 0.0)
    return density


def _moment(sketch: Sketch, order: int) -> Estimate:
    def power(x: Tensor) -> Tensor:
        return x**order

    return sketch.evaluate(SpectralFunction(power, f"moment-{order}", degree=order)).scaled(1.0 / sketch.dim)
