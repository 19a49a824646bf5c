"""Intervals: which errors enter, and how."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from hessprobe.estimate import Batches, ErrorParts, Estimate, Influence, student_quantile


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


def test_the_interval_of_a_ratio_is_made_from_both_intervals() -> None:
    t = student_quantile(0.975, 10)
    top, bottom = Estimate(30.0, ErrorParts(3.0 / t), df=10), Estimate(6.0, ErrorParts(0.5 / t), df=10)
    whole = Estimate(25.0, ErrorParts(1.0, solver=0.125), ratio=(top, bottom), support=(0.0, math.inf))
    low = 5 * math.exp(-math.hypot(math.log(30 / 27), math.log(6.5 / 6)))
    high = 5 * math.exp(math.hypot(math.log(33 / 30), math.log(6 / 5.5)))
    assert whole.interval() == pytest.approx((low**2 - 0.125, high**2 + 0.125))
    assert whole.with_(ratio=(top.scaled(-1), bottom)).interval() == pytest.approx(whole.interval())
    ends = whole.with_(errors=ErrorParts(1.0)).scaled(4).interval()
    assert ends == pytest.approx((4 * low**2, 4 * high**2))
    assert whole.scaled(-1).ratio is None
    # A numerator that may be 0, and one that is.
    near = whole.with_(ratio=(top.with_(value=1.0), bottom)).interval()
    assert near[0] == 0.0
    assert near[1] == pytest.approx((math.exp(math.hypot(math.log(4), math.log(6 / 5.5))) / 6) ** 2 + 0.125)
    none = whole.with_(ratio=(top.with_(value=0.0), bottom)).interval()
    assert none == pytest.approx((0.0, (3 / 6) ** 2 + 0.125))
    assert whole.with_(ratio=(top.with_(value=1e-300), bottom)).interval() == pytest.approx(none, rel=1e-4)
    assert whole.with_(ratio=(top, bottom.with_(errors=ErrorParts(0.0)))).interval()[0] == pytest.approx(4.5**2 - 0.125)
    assert whole.with_(ratio=(top, bottom.with_(support=(0.0, 9.0), value=0.1))).interval()[1] == math.inf


def test_the_interval_of_a_skewed_value_has_a_longer_arm_on_its_long_tail() -> None:
    t, a = student_quantile(0.975, 9), 0.25
    skewed = Estimate(5.0, ErrorParts(2.0, solver=0.125, data=1.0, data_df=20), df=9, skewness=a)
    low, high = skewed.interval()
    # With T = (value - truth) / std_error, T + a T^2 / 3 + a^2 T^3 / 27 is t at the lower end, -t at the upper one.
    for end, wanted in ((low + 0.125, t), (high - 0.125, -t)):
        T = (5.0 - end) / 2
        assert T + a * T**2 / 3 + a**2 * T**3 / 27 == pytest.approx(wanted)
    assert high - 5 > 5 - low
    # Turned round, the arms change places; scaled, they scale.
    mirrored = skewed.scaled(-3)
    assert mirrored.skewness == -a
    assert mirrored.interval() == pytest.approx((-3 * high, -3 * low))
    assert skewed.scaled(3).interval() == pytest.approx((3 * low, 3 * high))
    # Where 1 - a t falls below 0.35 the slope stays as it is there.
    ends = [skewed.with_(skewness=0.6).interval(level)[1] for level in (0.9, 0.95)]
    quantiles = [student_quantile(0.95, 9), t]
    assert 1 - 0.6 * quantiles[0] < 0.35
    assert ends[1] - ends[0] == pytest.approx(2 * 0.35 ** (-2 / 3) * (quantiles[1] - quantiles[0]))
    near = 0.65 / 0.6
    inner = skewed.with_(df=math.inf, skewness=0.6)
    sides = [inner.interval(2 * float(stats.norm.cdf(near + shift)) - 1)[1] for shift in (-1e-7, 1e-7)]
    assert sides[1] - sides[0] == pytest.approx(0, abs=1e-5)
    # The data part is not skewed.
    even = skewed.with_(skewness=0.0).interval(include_data=True)
    assert skewed.interval(include_data=True) == even
    assert skewed.with_(errors=ErrorParts(0.0)).interval() == (5.0, 5.0)


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
