from __future__ import annotations

import math

import pytest

from hessprobe.comparison import correlate
from hessprobe.estimate import ErrorParts, Estimate


def values(*numbers, error=0.0):
    return {f"n{i}": {"trace": Estimate(x, ErrorParts(solver=error))} for i, x in enumerate(numbers)}


def gaps(*numbers, name="loss"):
    return {f"n{i}": {name: float(x)} for i, x in enumerate(numbers)}


def test_a_measure_that_orders_as_the_gap_does_rises_with_it():
    found = list(correlate(values(1, 2, 3, 4, 5, 6, 7), gaps(2, 3, 5, 7, 11, 13, 17)))
    (one,) = found
    assert (one.measure, one.gap, one.ranks.tau, one.verdict) == ("trace", "loss", 1.0, "rises")
    assert (one.undecided, one.pairs) == (0, 21)
    (other,) = correlate(values(7, 6, 5, 4, 3, 2, 1), gaps(2, 3, 5, 7, 11, 13, 17))
    assert other.verdict == "falls"
    (none,) = correlate(values(1, 5, 2, 4, 3), gaps(1, 2, 3, 4, 5))
    assert none.verdict == "no order shown"


def test_pairs_within_error_are_counted():
    # Bounds of 0.3 on either side: neighbours at a distance of 0.5 are not told apart, those at 1 are.
    (one,) = correlate(values(1, 1.5, 2, 2.5, 3, error=0.3), gaps(1, 2, 3, 4, 5))
    assert (one.undecided, one.pairs) == (4, 10)


def test_checkpoints_without_a_gap_or_a_value_are_left_out():
    known = gaps(1, 2, 3, 4, 5, 6)
    del known["n5"]
    (one,) = correlate(values(1, 2, 3, 4, 5, 0), known)
    assert (one.ranks.count, one.ranks.tau) == (5, 1.0)
    assert list(correlate(values(1, 2, 3, 4, math.nan), gaps(1, 2, 3, 4, 5))) == []
    assert list(correlate(values(1, 2, 3, 4), gaps(1, 2, 3, 4))) == []


def test_every_gap_that_is_known_is_used():
    both = {f"n{i}": {"loss": float(i), "accuracy": float(-i)} for i in range(6)}
    found = {one.gap: one.ranks.tau for one in correlate(values(*range(6)), both)}
    assert found == {"loss": 1.0, "accuracy": -1.0}


def test_confidence_is_checked():
    with pytest.raises(ValueError, match="confidence must be"):
        list(correlate(values(*range(6)), gaps(*range(6)), confidence=2))
