"""Intervals: which errors enter, and how."""

from __future__ import annotations

import pytest
from scipy import stats

from hessprobe.estimate import ErrorParts, Estimate


def test_the_interval_is_student_t_plus_solver() -> None:
    estimate = Estimate(10.0, ErrorParts(probe=1.0, data=2.0, solver=0.5), df=7)
    t = stats.t.ppf(0.975, 7)
    assert estimate.interval() == pytest.approx((10 - t - 0.5, 10 + t + 0.5))
    wide = estimate.half_width(0.9, include_data=True)
    assert wide == pytest.approx(stats.t.ppf(0.95, 7) * 5**0.5 + 0.5)
    assert estimate.std_error == 1.0


def test_the_interval_is_cut_to_what_is_possible() -> None:
    estimate = Estimate(0.5, ErrorParts(probe=1.0), df=30, support=(0.0, 1.0))
    assert estimate.interval() == (0.0, 1.0)


def test_exact_values_have_no_interval() -> None:
    assert Estimate(3.0).interval() == (3.0, 3.0)


def test_scaling() -> None:
    estimate = Estimate(2.0, ErrorParts(1.0, None, 0.5), kind="lower bound", bracket=(2.0, 3.0), support=(0.0, 9.0))
    turned = estimate.scaled(-2.0)
    assert (turned.value, turned.errors, turned.kind) == (-4.0, ErrorParts(2.0, None, 1.0), "upper bound")
    assert (turned.bracket, turned.support) == ((-6.0, -4.0), (-18.0, 0.0))


def test_wrong_questions() -> None:
    with pytest.raises(ValueError, match=r"confidence must be a number in \(0, 1\); got 1"):
        Estimate(0.0).interval(1)
    with pytest.raises(ValueError, match="include_data must be False where the data error is unknown"):
        Estimate(0.0, ErrorParts(1.0)).interval(include_data=True)
