"""Round numbers that cover a range: where contours run and what is written on an axis of values."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hessprobe.landscape.result import spans_decades

Floats = NDArray[np.float64]
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
