"""Statistical assertions shared by the tests."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hessprobe.estimate import Estimate, student_quantile


def assert_agrees(estimate: Estimate, truth: float, precision: float) -> None:
    """Fail unless |value - truth| < 4 errors *and* 4 errors are below ``precision`` (absolute).

    With few degrees of freedom it is as many errors as one in a thousand answers is off by, 6.9 with five.
    """
    far = max(4.0, student_quantile(0.9995, estimate.df))
    error = estimate.errors.probe + estimate.errors.solver / 4
    floor = 1e-12 * abs(truth) + 1e-300
    assert abs(estimate.value - truth) < far * error + floor, (estimate.value, truth, error)
    assert 4 * error < precision, (4 * error, precision)


def coverage(estimates: Iterable[Estimate], truth: float, confidence: float = 0.95) -> float:
    """Return the share of intervals that contain ``truth``."""
    hits = [low <= truth <= high for low, high in (e.interval(confidence) for e in estimates)]
    return sum(hits) / len(hits)


def z_score(value: float, truth: float, std_error: float) -> float:
    """Return (value - truth) / std_error."""
    return (value - truth) / std_error if std_error > 0 else math.inf
