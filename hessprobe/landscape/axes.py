"""Where the points of a grid lie on an axis, the round numbers written on it, and distances inside a plane."""

from __future__ import annotations

import math

import numpy as np

from hessprobe import checks
from hessprobe.landscape.result import Floats, spans_decades

# How far a line between two checkpoints goes on beyond them, and a trajectory beyond its points.
MARGIN = 0.25


def axis(size: int, low: float, high: float) -> Floats:
    """Return ``size`` evenly spaced coordinates that cover [low, high] and hold 0 exactly.

    x_i = (i - c) h for the smallest step h with which some c fits. For low = -high an odd size is symmetric about 0 and
    ends at low and high; an even one has no point in its middle, so that its last point is one step beyond high.

    Args:
        size: number of points, >= 3.
        low: < 0.
        high: > 0.

    Raises:
        TypeError, ValueError: arguments outside their ranges.
    """
    size = checks.positive_int("size", size, minimum=3, hint="The center and a point on each side.")
    low = checks.real("low", low, high=0, high_open=True)
    high = checks.real("high", high, low=0, low_open=True)
    before = np.arange(1, size - 1)
    steps = np.maximum(-low / before, high / (size - 1 - before))
    best = int(np.argmin(steps))
    coordinates: Floats = np.arange(-before[best], size - before[best], dtype=np.float64) * steps[best]
    # Multiples of a rounded step may miss the ends by a bit.
    for end in (low, high):
        coordinates[np.isclose(coordinates, end, rtol=1e-14, atol=0)] = end
    return coordinates


def share_axis(size: int, margin: float = MARGIN) -> Floats:
    """Return ``size`` evenly spaced coordinates about [0, 1] that hold 0 and 1 exactly.

    Args:
        size: >= 3.
        margin: >= 0, how far to go beyond 0 and 1, met as nearly as the size allows.

    Raises:
        TypeError, ValueError: arguments outside their ranges.
    """
    size = checks.positive_int("size", size, minimum=3, hint="Both ends and a point between or beyond them.")
    margin = checks.real("margin", margin, low=0)
    inside = max(int((size - 1) / (1 + 2 * margin) + 1e-9), 1)
    before = (size - 1 - inside) // 2
    coordinates: Floats = np.arange(-before, size - before, dtype=np.float64) / inside
    return coordinates


def covering_axis(size: int, values: Floats, margin: float = MARGIN) -> Floats:
    """Return an axis that covers 0 and all ``values``, and ``margin`` times their range beyond on either side."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    room = margin * (high - low) or 1.0
    return axis(size, low - room, high + room)


# Levels at least and at most.
_LEAST, _MOST = 7, 13
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
# Numbers that levels begin with, from few to many a decade.
_BEGINNINGS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
# Numbers that are written.
_TICKS = 6


def levels(values: Floats, name: str) -> tuple[Floats, bool]:
    """Return round numbers that cover the finite ``values`` of a quantity, and whether they are spaced by ratio.

    They are by ratio where ``spans_decades`` holds. Values that are all the same are given room around them.
    """
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    by_ratio = spans_decades(values, name)
    return (_decades(low, high) if by_ratio else _even(low, high)), by_ratio


def ticks(every: Floats, kept: float | None = None) -> Floats:
    """Return every so many of the levels, so that about six are left, ``kept`` among them."""
    step = -(-len(every) // _TICKS)
    first = 0 if kept is None else int(np.argmin(np.abs(every - kept))) % step
    return every[first::step]


def text(value: float) -> str:
    """Return a level in print."""
    return f"{value:.4g}".replace("-", "\u2212")


def _even(low: float, high: float) -> Floats:
    """Return the multiples of the smallest round step of which so few cover [low, high]."""
    power = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    for step in (each * scale for scale in (power, 10 * power) for each in _STEPS):
        # Rounding may put an end that is a multiple beside it.
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < _MOST:
            break
    return np.asarray(np.arange(first, last + 1) * step, dtype=np.float64)


def _decades(low: float, high: float) -> Floats:
    """Return round numbers that cover [low, high], by ratio: as few beginnings as give enough of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = np.array([low, high])
    for beginnings in _BEGINNINGS:
        every = np.array([beginning * 10.0**power for power in powers for beginning in beginnings])
        first, last = np.searchsorted(every, low, "right") - 1, np.searchsorted(every, high, "left")
        found = every[max(first, 0) : last + 1]
        if len(found) >= _LEAST:
            break
    return found


def circle(gram: Floats, radius: float, points: int = 181) -> Floats:
    """Return coordinates (points, 2) of the points at Euclidean distance ``radius`` from the origin.

    With G = L L^T the dot products of the directions, the point x lies at distance norm(L^T x).

    Args:
        gram: G (2, 2), positive definite.
        radius: >= 0.
        points: how many.
    """
    angles = np.linspace(0, 2 * math.pi, points)
    around = radius * np.stack([np.cos(angles), np.sin(angles)])
    ring: Floats = np.linalg.solve(np.linalg.cholesky(gram).T, around).T
    return ring
