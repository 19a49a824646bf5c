"""What the measure ``density`` says: a curve with its band, quantiles and shares; its one number is the median."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.density import Density
from hessprobe.estimators.distribution import Reading

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
# The same for every matrix, in units of the eigenvalues: shares beyond them can be compared between checkpoints.
THRESHOLDS = (-10.0, -1.0, -0.1, -0.01, -0.001, 0.001, 0.01, 0.1, 1.0, 10.0)
_MEDIAN = LEVELS.index(0.5)


def median(density: Density, confidence: float) -> Estimate:
    """Return the median eigenvalue, the smallest x with Phi(x) >= 1/2, in the bracket that the band gives.

    The bracket holds with probability ``confidence`` (see ``Density.band``), and is the whole line on a side where the
    band says nothing.

    Args:
        density: the distribution.
        confidence: level in (0, 1).
    """
    found = density.quantile(0.5, confidence)
    # Of a matrix that was written out, or deflated to nothing, only rounding is left.
    exact = density.samples == 0
    return Estimate(
        found.value,
        ErrorParts(solver=max(found.value - found.low, found.high - found.value)),
        samples=density.samples,
        method="eigenvalues" if exact else "band of the distribution",
        kind="exact" if exact else "bracket",
        bracket=(found.low, found.high),
        bracket_confidence=1.0 if exact else confidence,
    )


def curve(density: Density, confidence: float) -> dict[str, Tensor]:
    """Return the density, the distribution function and its band on the grid, and the pooled Ritz values."""
    low, high = density.band(confidence)
    return {
        "grid": density.grid,
        "density": density.density,
        "cdf": density.cdf,
        "cdf_band_low": low,
        "cdf_band_high": high,
        "nodes": density.nodes,
        "weights": density.weights,
    }


def quantiles(density: Density, confidence: float) -> dict[str, Tensor]:
    """Return the quantiles at ``LEVELS``, each with the ends of its interval."""
    found = [density.quantile(level, confidence) for level in LEVELS]
    return {"quantile_levels": _row(LEVELS), **_columns("quantile", found)}


def shares(density: Density, confidence: float) -> dict[str, Tensor]:
    """Return the shares of eigenvalues below each negative and above each positive one of ``THRESHOLDS``."""
    found = [density.share_above(x, confidence) if x > 0 else density.share_below(x, confidence) for x in THRESHOLDS]
    return {"share_thresholds": _row(THRESHOLDS), **_columns("share_beyond", found)}


def sentences(arrays: dict[str, Tensor], confidence: float) -> tuple[str, ...]:
    """Return quantiles and shares for a reader: the shares that the spectrum reaches and the band narrows down."""
    at = [
        f"{100 * float(level):g} % at {_reading(arrays, 'quantile', i)}"
        for i, level in enumerate(arrays["quantile_levels"])
        if i != _MEDIAN
    ]
    said = [f"quantiles with {100 * confidence:g} % intervals: {'; '.join(at)}"]
    beyond = []
    for i, x in enumerate(arrays["share_thresholds"].tolist()):
        low, high = float(arrays["share_beyond_low"][i]), float(arrays["share_beyond_high"][i])
        if high > 0 and high - low < 0.5 and _reached(arrays, x):
            side = "above" if x > 0 else "below"
            beyond.append(f"{side} {x:g} {_reading(arrays, 'share_beyond', i, 100)} %")
    if beyond:
        said.append(f"shares of eigenvalues: {'; '.join(beyond)}")
    return tuple(said)


def _reached(arrays: dict[str, Tensor], x: float) -> bool:
    nodes = arrays["nodes"]
    return float(nodes[-1]) >= x if x > 0 else float(nodes[0]) <= x


def _reading(arrays: dict[str, Tensor], name: str, index: int, factor: float = 1.0) -> str:
    value, low, high = (factor * float(arrays[f"{name}{end}"][index]) for end in ("", "_low", "_high"))
    if not high > low:
        return f"{value:.3g}"
    below, above = (f"{end:.3g}" if math.isfinite(end) else "no bound" for end in (low, high))
    return f"{value:.3g} ({below} to {above})"


def _columns(name: str, found: list[Reading]) -> dict[str, Tensor]:
    return {
        name: _row(tuple(one.value for one in found)),
        f"{name}_low": _row(tuple(one.low for one in found)),
        f"{name}_high": _row(tuple(one.high for one in found)),
    }


def _row(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
