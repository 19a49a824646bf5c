"""Statistical assertions shared by the tests."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hessprobe.estimate import Estimate


def assert_agrees(estimate: Estimate, truth: float, precision: float) -> None:
    """Fail unless |value - truth| < 4 errors *and* 4 errors are below ``precision`` (absolute)."""
    error = estimate.errors.probe + estimate.errors.solver / 4
    floor = 1e-12 * abs(truth) + 1e-300
    assert abs(estimate.value - truth) < 4 * error + floor, (estimate.value, truth, error)
    assert 4 * error < precision, (4 * error, precision)


def coverage(estimates: Iterable[Estimate], truth: float, confidence: float = 0.95) -> float:
    """Return the share of intervals that contain ``truth``."""
    hits = [low <= truth <= high for low, high in (e.interval(confidence) for e in estimates)]
    return sum(hits) / len(hits)


def z_score(value: float, truth: float, std_error: float) -> float:
    """Return (value - truth) / std_error."""
    return (value - truth) / std_error if std_error > 0 else math.inf
