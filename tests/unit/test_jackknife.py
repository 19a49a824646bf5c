"""The infinitesimal jackknife against textbook formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hessprobe.estimate import correction, data_error, infinitesimal_jackknife, jackknife_df


def test_equal_weights_give_the_textbook_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=13)
    expected = values.std(ddof=1) / math.sqrt(13)
    assert infinitesimal_jackknife([1 / 13] * 13, values.tolist()) == pytest.approx(expected, rel=1e-13)


def test_tensors_on_lower_precision_are_taken() -> None:
    se = infinitesimal_jackknife(torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([1.0, 3.0]))
    assert se == pytest.approx(1.0)


def test_weights_of_different_size_agree_with_simulation() -> None:
    rng = np.random.default_rng(1)
    means, squares = [], []
    for _ in range(3000):
        sizes = rng.integers(5, 60, size=40)
        values = rng.normal(loc=sizes / 10, scale=3 / np.sqrt(sizes))
        weights = sizes / sizes.sum()
        means.append(weights @ values)
        squares.append(infinitesimal_jackknife(weights.tolist(), values.tolist()) ** 2)
    # Linearisation leaves a bias of order 1/B = 1/40, 3000 repetitions a relative error of 1.3 %.
    assert math.sqrt(np.mean(squares)) / np.std(means) == pytest.approx(1.0, abs=0.06)


def test_scale_and_degenerate_cases() -> None:
    tiny = infinitesimal_jackknife([0.25, 0.75], [1e-200, 3e-200])
    assert tiny == pytest.approx(1e-200 * infinitesimal_jackknife([0.25, 0.75], [1.0, 3.0]), rel=1e-12)
    assert infinitesimal_jackknife([0.5, 0.5], [2.0, 2.0]) == 0.0
    assert infinitesimal_jackknife([1.0], [2.0]) is None
    assert infinitesimal_jackknife([1.0, -1.0], [2.0, 3.0]) is None
    assert infinitesimal_jackknife([1.0, 0.0], [2.0, 3.0]) is None


@pytest.mark.parametrize("sizes", [(256, 17), (256, 256, 1), (5, 5, 5, 5), (100, 60, 30, 8, 2), (64,) * 9 + (3,)])
def test_square_and_degrees_of_freedom_are_those_of_means_over_examples(sizes: tuple[int, ...]) -> None:
    rng, runs = np.random.default_rng(2), 40_000
    weights = np.array(sizes) / sum(sizes)
    means = rng.normal(size=(runs, len(sizes))) / np.sqrt(sizes)
    squares = np.array([infinitesimal_jackknife(weights.tolist(), row.tolist()) for row in means[:300]]) ** 2
    centred = weights * (means - (means @ weights)[:, None])
    direct = correction(weights.tolist()) * (centred**2).sum(1)
    assert squares == pytest.approx(direct[:300], rel=1e-12)
    truth = 1 / sum(sizes)
    assert direct.mean() == pytest.approx(truth, abs=4 * direct.std() / math.sqrt(runs))
    # The variance of a variance from 40,000 draws is known to a few percent.
    assert 2 * truth**2 / direct.var() == pytest.approx(jackknife_df(weights.tolist()), rel=0.08)


def test_degrees_of_freedom_of_equal_groups() -> None:
    assert jackknife_df([3.0] * 16) == pytest.approx(15.0)
    assert jackknife_df([1.0]) == 0.0
    assert correction([2.0] * 4) == pytest.approx(4 / 3)


def test_noise_is_taken_off_and_costs_degrees_of_freedom() -> None:
    weights, values = [0.25] * 4, [1.0, 2.0, 4.0, 7.0]
    raw = data_error(weights, values)
    assert raw is not None
    assert raw == (infinitesimal_jackknife(weights, values), pytest.approx(3.0))
    # A noise of 3/4 * se^2 / f leaves half of the standard error, and 1/16 of the degrees of freedom.
    noisy = data_error(weights, values, 0.75 * raw.std_error**2 * 3 / 4)
    assert noisy == (pytest.approx(raw.std_error / 2), pytest.approx(3 / 16))
    assert data_error(weights, values, 2 * raw.std_error**2) is None
    assert data_error([0.5, -0.5], [1.0, 2.0]) is None
    assert data_error([0.5, 0.5], [1.0, 1.0]) == (0.0, pytest.approx(1.0))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="values must be as many as weights; got 1 and 2"):
        infinitesimal_jackknife([0.5, 0.5], [1.0])
    with pytest.raises(ValueError, match="values must be finite"):
        infinitesimal_jackknife([0.5, 0.5], [1.0, math.nan])
