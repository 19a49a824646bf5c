"""Sample sizes, tolerances and their flags."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from hessprobe.errors import NumericalWarning
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators import budget


@pytest.mark.parametrize(("std", "half"), [(1.0, 0.5), (3.0, 0.1), (1e-6, 1e-7), (0.2, 10.0)])
def test_required_samples_is_the_smallest_that_is_enough(std: float, half: float) -> None:
    n = budget.required_samples(std, half, 0.95, minimum=3)

    def width(m: int) -> float:
        return float(stats.t.ppf(0.975, m - 1)) * std / math.sqrt(m)

    assert width(n) <= half
    assert n == 3 or width(n - 1) > half


def test_required_samples_never_falls_below_the_minimum_and_needs_none_without_spread() -> None:
    assert budget.required_samples(1.0, 100.0, 0.95) == 8
    assert budget.required_samples(0.0, 0.0, 0.95, minimum=5) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 1.0, 0.95), "std must be"),
        ((math.nan, 1.0, 0.95), "std must be"),
        ((1.0, 0.0, 0.95), "half_width must be"),
        ((1.0, 1.0, 1.0), "confidence must be"),
    ],
)
def test_required_samples_refuses(arguments: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget.required_samples(*arguments)


@pytest.mark.parametrize(
    ("rtol", "atol", "n_probes", "message"),
    [
        (0.0, None, None, "rtol must be a finite number > 0; got 0"),
        (math.nan, None, None, "rtol must be"),
        (None, -1.0, None, "atol must be"),
        (None, None, 1, "n_probes must be an integer >= 2; got 1. One sample has no standard error"),
        (None, None, -4, "n_probes must be"),
        (0.1, None, 8, "n_probes must be None where rtol or atol is given; got 8"),
    ],
)
def test_goal_refuses(rtol: float | None, atol: float | None, n_probes: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget.goal(rtol, atol, n_probes)


def test_the_larger_tolerance_counts() -> None:
    asked = budget.goal(0.1, 3.0, None)
    assert asked.target(10.0) == 3.0
    assert asked.target(-100.0) == 10.0
    assert budget.goal(None, None, None).n_probes == budget.DEFAULT_PROBES


def test_a_cut_sample_warns_and_a_missed_tolerance_is_flagged() -> None:
    estimate = Estimate(10.0, ErrorParts(1.0), df=20.0)
    asked = budget.goal(0.01, None, None, max_probes=50)
    with pytest.warns(NumericalWarning, match="max_probes must be larger for this tolerance; got 50"):
        cut = budget.settled(estimate, asked, 50, 50)
    assert cut.flags == ("tolerance-missed", "budget-exhausted")
    assert budget.settled(estimate, asked, 30, 30).flags == ("tolerance-missed",)
    assert budget.settled(estimate, budget.goal(0.5, None, None), 30, 30).flags == ()


def test_pilots_pool_terms_and_upper_std_is_the_chi_square_limit() -> None:
    assert [budget.pilot_passes(b) for b in (1, 2, 4, 28)] == [12, 6, 3, 2]
    assert [budget.minimum_passes(b) for b in (1, 2, 4, 28)] == [8, 8, 6, 2]
    assert budget.upper_std(2.0, math.inf) == 2.0
    assert budget.upper_std(2.0, 11) == pytest.approx(2.0 * math.sqrt(11 / stats.chi2.ppf(0.2, 11)))


def test_the_cheapest_way_runs_unless_d_products_are_as_cheap() -> None:
    ways = [budget.Way(80.0, lambda: "dear"), budget.Way(50.0, lambda: "cheap", "because")]
    assert budget.carried_out(56, ways, lambda sampled: f"exact for {sampled:g}") == ("cheap", "because")
    found, why = budget.carried_out(55, ways, lambda sampled: f"exact for {sampled:g}")
    assert (found, why) == ("exact for 50", "55 products give it exactly, sampling would take 50")
    assert budget.carried_out(2, ways, None) == ("cheap", "because")
