"""Quartiles of timings, where there are enough of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quartiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the lower and the upper quartile; None and None for one value, which has no spread that is known."""
    if len(values) < 2:
        return None, None
    low, _, high = statistics.quantiles(values, n=4)
    return low, high
