"""Intervals: which errors enter, and how."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from hessprobe.estimate import ErrorParts, Estimate, student_quantile
from hessprobe.influence import Batches, Influence


def test_the_interval_is_student_t_plus_solver() -> None:
    estimate = Estimate(10.0, ErrorParts(probe=1.0, data=2.0, solver=0.5), df=7)
    t = stats.t.ppf(0.975, 7)
    assert estimate.interval() == pytest.approx((10 - t - 0.5, 10 + t + 0.5))
    assert estimate.std_error == 1.0


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_data_part_has_degrees_of_freedom_of_its_own(scale: float) -> None:
    estimate = Estimate(0.0, ErrorParts(probe=scale, data=2 * scale, solver=scale / 2, data_df=3), df=7)
    t = stats.t.ppf(0.95, 25 / (1 / 7 + 16 / 3))
    assert estimate.half_width(0.9, include_data=True) == pytest.approx((t * 5**0.5 + 0.5) * scale)
    exact = Estimate(0.0, ErrorParts(data=2 * scale, data_df=3))
    assert exact.half_width(0.9, include_data=True) == pytest.approx(2 * scale * stats.t.ppf(0.95, 3))
    unknown = Estimate(0.0, ErrorParts(data=scale, data_df=0))
    assert math.isinf(unknown.half_width(0.9, include_data=True))


def test_a_norm_has_the_interval_of_the_reciprocal_of_its_square() -> None:
    t = student_quantile(0.975, 10)
    whole = Estimate(8.0, ErrorParts(probe=0.25 * 8 / t), df=10, known_square=0.0)
    assert whole.interval() == pytest.approx((8 / 1.5**0.5, 8 / 0.5**0.5))
    assert whole.interval()[0] ** -2 - 8**-2 == pytest.approx(8**-2 - whole.interval()[1] ** -2)
    assert whole.half_width() == pytest.approx(2.0)
    # 13^2 = 12^2 + 5^2: the sampled part alone is 5 -+ 0.2 * 5, whatever is known, and 13 ds / 5 is the error of 5.
    part = Estimate(13.0, ErrorParts(probe=0.2 * 5 * 5 / 13 / t), df=10, known_square=144.0)
    assert part.interval() == pytest.approx((math.hypot(12, 5 / 1.4**0.5), math.hypot(12, 5 / 0.6**0.5)))
    assert part.scaled(2).interval() == pytest.approx([2 * end for end in part.interval()])
    assert part.scaled(-1).interval() == pytest.approx((-13 - part.half_width(), -13 + part.half_width()))
    assert whole.scaled(1e200).interval() == pytest.approx((8e200 / 1.5**0.5, 8e200 / 0.5**0.5))
    # Nothing sampled that is positive: a value corrected below zero, or one below what is known.
    for odd in (whole.with_(value=-1.0), whole.with_(known_square=65.0)):
        assert odd.interval() == pytest.approx((odd.value - 2, odd.value + 2))
    # Wide ones stay finite, and a statement about the data is symmetric as before.
    widest = whole.with_(errors=ErrorParts(probe=8 / t)).interval()
    assert widest == pytest.approx((8 / 3**0.5, 8 * (0.4**-0.5 + 1.4)))
    # The two parts together have the ten degrees of freedom of the first: 0.5^4 / 10 = 0.3^4 / 10 + 0.4^4 / x.
    parts = ErrorParts(probe=0.3 / t, data=0.4 / t, solver=0.1, data_df=0.4**4 / (0.5**4 / 10 - 0.3**4 / 10))
    wide = whole.with_(errors=parts)
    assert wide.interval(include_data=True) == pytest.approx((7.4, 8.6))
    assert wide.interval() == pytest.approx((8 / (1 + 0.6 / 8) ** 0.5 - 0.1, 8 / (1 - 0.6 / 8) ** 0.5 + 0.1))
    assert Estimate(3.0, ErrorParts(probe=1.0), df=0.0, known_square=0.0, support=(0, math.inf)).interval()[0] == 0


def test_the_interval_is_cut_to_what_is_possible() -> None:
    estimate = Estimate(0.5, ErrorParts(probe=1.0), df=30, support=(0.0, 1.0))
    assert estimate.interval() == (0.0, 1.0)


def test_exact_values_have_no_interval() -> None:
    assert Estimate(3.0).interval() == (3.0, 3.0)


def test_scaling() -> None:
    estimate = Estimate(2.0, ErrorParts(1.0, None, 0.5), kind="lower bound", bracket=(2.0, 3.0), support=(0.0, 9.0))
    turned = estimate.scaled(-2.0)
    assert (turned.value, turned.errors, turned.kind) == (-4.0, ErrorParts(2.0, None, 1.0), "upper bound")
    assert estimate.with_(errors=ErrorParts(1.0, 3.0, 0.5, 7.0)).scaled(-2.0).errors == ErrorParts(2.0, 6.0, 1.0, 7.0)
    assert (turned.bracket, turned.support) == ((-6.0, -4.0), (-18.0, 0.0))


def test_wrong_questions() -> None:
    with pytest.raises(ValueError, match=r"confidence must be a number in \(0, 1\); got 1"):
        Estimate(0.0).interval(1)
    with pytest.raises(ValueError, match="include_data must be False where the data error is unknown"):
        Estimate(0.0, ErrorParts(1.0)).interval(include_data=True)


def test_without_data_nothing_is_said_of_the_data_and_nothing_else_is_lost() -> None:
    batches = Batches(torch.ones(2).double() / 2, torch.ones(1, 2).double(), shared=True)
    influence = Influence({"probe": torch.ones(1, 4).double()}, batches=batches)
    flags = ("weak", "data-error-noisy", "data-error-unresolved")
    told = Estimate(2.0, ErrorParts(0.1, 0.3, 0.01, 5.0), df=9, flags=flags, influence=influence)
    bare = told.without_data()
    assert bare.errors == ErrorParts(0.1, None, 0.01)
    assert bare.flags == ("weak",)
    assert bare.influence is not None
    assert (bare.influence.batches, bare.influence.rows) == (None, influence.rows)
    assert bare.interval() == told.interval()
