"""The Lanczos polynomial bounds: closed forms, scaling, ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hessprobe.krylov.certificates import (
    excludes_above,
    log_polynomial_sum,
    log_start_quantile,
    lower_bound,
    upper_bound,
)


def tridiagonal(m: int) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(m)
    return rng.normal(size=m).tolist(), rng.uniform(0.3, 1.0, size=m).tolist()


def test_polynomial_sum_is_that_of_the_three_term_recurrence() -> None:
    alphas, betas = tridiagonal(6)
    for x in (3.0, 5.0, 40.0):
        p, previous, beta = [1.0], 0.0, 0.0
        for alpha, after in zip(alphas, betas, strict=True):
            p.append(((x - alpha) * p[-1] - beta * previous) / after)
            previous, beta = p[-2], after
        assert log_polynomial_sum(alphas, betas, x) == pytest.approx(math.log(sum(v * v for v in p)), rel=1e-12)


def test_no_overflow_and_minus_infinity_at_or_below_the_largest_ritz_value() -> None:
    alphas, betas = [0.0] * 500, [1e-3] * 500
    assert 2 * 500 * math.log(1e9) < log_polynomial_sum(alphas, betas, 1e6) < 2 * 501 * math.log(1e9)
    assert log_polynomial_sum(alphas, betas, 1e-3) == -math.inf
    assert log_polynomial_sum([1.0, 2.0], [0.5, 0.0], 3.0) == math.inf


def test_bound_solves_the_equation_and_mirrors_and_scales() -> None:
    alphas, betas = [0.1, -0.1] * 4, [0.7] + [0.5] * 7
    T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    ends = np.linalg.eigvalsh(T)
    log_c = log_start_quantile(1000, 0.01)
    high = upper_bound(alphas, betas, ends[-1], log_c)
    assert high > ends[-1]
    assert log_polynomial_sum(alphas, betas, high) == pytest.approx(-2 * log_c, rel=1e-9)
    assert excludes_above(alphas, betas, high * (1 + 1e-9), log_c)
    assert not excludes_above(alphas, betas, high * (1 - 1e-9), log_c)
    low = lower_bound(alphas, betas, ends[0], log_c)
    mirrored = upper_bound([-a for a in alphas], betas, -ends[0], log_c)
    assert low == -mirrored < ends[0]
    small = upper_bound([1e-12 * a for a in alphas], [1e-12 * b for b in betas], 1e-12 * ends[-1], log_c)
    assert small == pytest.approx(1e-12 * high, rel=1e-9)
    assert upper_bound([2.0], [0.0], 2.0, log_c) == 2.0


def test_start_quantile_is_that_of_a_random_direction() -> None:
    draws = np.random.default_rng(0).normal(size=(40000, 7))
    first = np.abs(draws[:, 0]) / np.linalg.norm(draws, axis=1)
    share = float(np.mean(first < math.exp(log_start_quantile(7, 0.2))))
    assert share == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 40000))
    wide = log_start_quantile(10**8, 0.01)
    assert math.exp(wide) * 1e4 == pytest.approx(stats.norm.ppf(0.505), rel=1e-4)
    assert log_start_quantile(1, 0.01) == 0.0


def test_warm_start_quantile_holds_for_the_worst_guess_and_is_not_wasteful() -> None:
    rng = np.random.default_rng(1)
    tau, dim, delta = 0.1, 9, 0.2
    r = rng.normal(size=(40000, dim))
    r /= np.linalg.norm(r, axis=1, keepdims=True)
    c = math.exp(log_start_quantile(dim, delta, tau))
    for cosine in (0.0, 0.05, 0.5):
        y = np.zeros(dim)
        y[:2] = cosine, math.sqrt(1 - cosine**2)
        v = math.sqrt(1 - tau**2) * y + tau * r
        share = float(np.mean(np.abs(v[:, 0]) / np.linalg.norm(v, axis=1) < c))
        assert share < delta + 0.01
        assert cosine > 0 or share > 0.75 * delta
    assert log_start_quantile(2, delta, tau) is None
