"""Intervals that include the data part hold the value of the law that the examples are drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hessprobe.estimate import ErrorParts, Estimate, data_error

_RUNS = 2000


def covered(groups: np.ndarray, sizes: np.ndarray, probe: float = 0.0, df: int = 7, seed: int = 1) -> float:
    """Return how often the 95 % interval about the weighted mean of groups (runs, B) of true mean 0 holds 0.

    Args:
        groups: means over examples.
        sizes: (B,) numbers of examples.
        probe: standard deviation of the error of probes that is added, its standard error known to ``df``.
        df: degrees of freedom of that.
        seed: of the probes.
    """
    rng, weights = np.random.default_rng(seed), sizes / sizes.sum()
    hits = 0
    for means in groups:
        found = data_error(weights.tolist(), means.tolist())
        spread = probe * math.sqrt(rng.chisquare(df) / df)
        value = float(weights @ means) + probe * rng.normal()
        low, high = Estimate(value, ErrorParts(spread).with_data(found), df=df).interval(include_data=True)
        hits += low <= 0 <= high
    return hits / len(groups)


# Four binomial standard deviations of a share of 0.95.
_SLACK = 4 * math.sqrt(0.95 * 0.05 / _RUNS)


@pytest.mark.parametrize("count", [2, 4, 8, 16])
@pytest.mark.parametrize("last", [1.0, 0.25])
def test_exact_values_with_few_batches(count: int, last: float) -> None:
    sizes = np.full(count, 64.0)
    sizes[-1] *= last
    rng = np.random.default_rng(count)
    groups = rng.normal(size=(_RUNS, count)) / np.sqrt(sizes)
    share = covered(groups, sizes)
    # Degrees of freedom that are no whole number are Satterthwaite's approximation, for a last batch of 1/4 of two.
    lowest = 0.95 - _SLACK if last == 1.0 or count > 2 else 0.90
    assert lowest < share < 0.95 + _SLACK, share


@pytest.mark.parametrize("probe", [0.3, 1.0, 3.0])
def test_probes_and_data_together(probe: float) -> None:
    sizes = np.full(4, 64.0)
    groups = np.random.default_rng(3).normal(size=(_RUNS, 4)) / 8
    share = covered(groups, sizes, probe / 16)
    assert 0.95 - _SLACK - 0.015 < share < 0.975, share


@pytest.mark.parametrize("examples", [16, 90])
def test_skewed_examples_in_sixteen_groups(examples: int) -> None:
    # Exponential squares: skewness 6.6 an example, as losses and curvatures of single examples have.
    rng = np.random.default_rng(examples)
    raw = rng.exponential(size=(_RUNS, 16, examples)) ** 2 - 2
    share = covered(raw.mean(2), np.full(16, float(examples)))
    # Few skewed examples cost coverage, whatever the degrees of freedom; the normal quantile would lose 3 % more.
    assert (0.88 if examples == 16 else 0.92) < share < 0.965, share
