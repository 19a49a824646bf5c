"""The infinitesimal jackknife against textbook formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hessprobe.jackknife import infinitesimal_jackknife


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


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="values must be as many as weights; got 1 and 2"):
        infinitesimal_jackknife([0.5, 0.5], [1.0])
    with pytest.raises(ValueError, match="values must be finite"):
        infinitesimal_jackknife([0.5, 0.5], [1.0, math.nan])
