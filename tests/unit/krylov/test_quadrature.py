"""Gauss and Gauss-Radau rules: exactness, brackets, bounds on the distribution function, rates."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import SPECTRA, eigenvalues, symmetric
from torch import Tensor

from hessprobe.krylov.lanczos import lanczos
from hessprobe.krylov.quadrature import (
    cdf_bounds,
    gauss,
    gauss_radau,
    step_bounds,
    steps_for_log,
    steps_for_smoothed_log,
)
from hessprobe.operators import DenseOperator
from hessprobe.vectors import ProbeStream


def measure(kind: str, dim: int, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return eigenvalues, the weights of one unit start on them, and its chain."""
    values = eigenvalues(kind, dim)
    matrix = symmetric(values)
    values, vectors = torch.linalg.eigh(matrix)
    start = ProbeStream(dim, seed=2, law="sphere").block(0, 1)
    weights = (start[0] @ vectors) ** 2 / dim
    run = lanczos(DenseOperator(matrix), start, steps)
    return values, weights, run.alphas[0], run.betas[0]


@pytest.mark.parametrize("kind", SPECTRA)
def test_gauss_is_exact_to_degree_2m_minus_1_and_no_further(kind: str) -> None:
    m = 4
    values, weights, alphas, betas = measure(kind, 60, m)
    scale = float(values.abs().max())
    rule = gauss(alphas, betas)
    for degree in range(2 * m):
        exact = float((weights * (values / scale) ** degree).sum())
        assert rule.integrate(lambda x, n=degree: (x / scale) ** n) == pytest.approx(exact, abs=1e-13)
    beyond = float((weights * values ** (2 * m)).sum()) - rule.integrate(lambda x: x ** (2 * m))
    # The error is the square of the norm of the monic orthogonal polynomial: the product of all betas squared.
    assert beyond == pytest.approx(float((betas**2).prod()), rel=1e-6)


@pytest.mark.parametrize("kind", SPECTRA)
def test_radau_is_exact_to_degree_2m_and_has_the_node(kind: str) -> None:
    m = 4
    values, weights, alphas, betas = measure(kind, 60, m)
    scale = float(values.abs().max())
    node = float(values[0]) - 0.1 * scale
    rule = gauss_radau(alphas, betas, node)
    assert float(rule.nodes[0]) == pytest.approx(node, abs=1e-12 * scale)
    for degree in range(2 * m + 1):
        exact = float((weights * (values / scale) ** degree).sum())
        assert rule.integrate(lambda x, n=degree: (x / scale) ** n) == pytest.approx(exact, abs=1e-13)


@pytest.mark.parametrize("kind", ["decaying", "flat"])
def test_radau_and_gauss_bracket_the_logarithm_at_every_m(kind: str) -> None:
    shift = 1e-2
    values, weights, alphas, betas = measure(kind, 60, 25)
    exact = float((weights * torch.log(values + shift)).sum())
    widths = []
    for m in range(1, 26):
        low = gauss_radau(alphas[:m], betas[:m], 0.0).integrate(lambda x: torch.log(x + shift))
        high = gauss(alphas[:m], betas[:m]).integrate(lambda x: torch.log(x + shift))
        assert low - 1e-12 <= exact <= high + 1e-12, m
        widths.append(high - low)
    assert widths[0] > 0.05
    assert widths[24] < 1e-3 * widths[0]


def test_the_inverse_is_bracketed_the_other_way_round() -> None:
    values, weights, alphas, betas = measure("decaying", 60, 10)
    exact = float((weights / (values + 0.1)).sum())
    for m in range(1, 11):
        low = gauss(alphas[:m], betas[:m]).integrate(lambda x: 1 / (x + 0.1))
        high = gauss_radau(alphas[:m], betas[:m], 0.0).integrate(lambda x: 1 / (x + 0.1))
        assert low - 1e-12 <= exact <= high + 1e-12


def test_radau_refuses_a_node_inside_the_spectrum() -> None:
    _, _, alphas, betas = measure("flat", 60, 5)
    with pytest.raises(ValueError, match="node must be below the smallest Ritz value; got 1"):
        gauss_radau(alphas, betas, 1.0)


def test_radau_of_an_exact_chain_is_gauss() -> None:
    alphas, betas = torch.tensor([2.0, 3.0]).double(), torch.tensor([0.5, 0.0]).double()
    assert torch.equal(gauss_radau(alphas, betas, 0.0).nodes, gauss(alphas, betas).nodes)


@pytest.mark.parametrize("kind", SPECTRA)
def test_bounds_contain_the_weighted_distribution_at_all_nodes_and_between(kind: str) -> None:
    values, weights, alphas, betas = measure(kind, 60, 12)
    rule = gauss(alphas, betas)
    between = (rule.nodes[1:] + rule.nodes[:-1]) / 2
    outside = torch.stack([rule.nodes[0] - 0.1, rule.nodes[-1] + 0.1])
    points = torch.cat([rule.nodes, between, outside, values])
    low, high = step_bounds(rule, points, exact=False)
    widths = []
    for x, a, b in zip(points.tolist(), low.tolist(), high.tolist(), strict=True):
        psi, psi_before = float(weights[values <= x].sum()), float(weights[values < x].sum())
        assert a - 1e-12 <= psi <= b + 1e-12
        sharp_low, sharp_high = cdf_bounds(alphas, betas, x)
        assert sharp_low - 1e-12 <= psi_before <= psi <= sharp_high + 1e-12
        assert a - 1e-4 <= sharp_low
        assert sharp_high <= b + 1e-4
        widths.append((b - a, sharp_high - sharp_low))
    wide, sharp = torch.tensor(widths).mean(0)
    assert 0 < sharp < 0.75 * wide


def test_bounds_close_on_an_exact_chain() -> None:
    values, weights, alphas, betas = measure("indefinite", 12, 12)
    betas = torch.cat([betas[:11], torch.zeros(1).double()])
    x = torch.tensor([-5.0, -0.31, 0.0, 0.4, 9.0]).double()
    exact = torch.stack([weights[values <= point].sum() for point in x])
    low, high = step_bounds(gauss(alphas, betas), x, exact=True)
    torch.testing.assert_close(low, exact)
    torch.testing.assert_close(high, exact)


def test_steps_follow_the_rate() -> None:
    # kappa = 1e4: r = 101/99, log r = 0.0200007
    assert steps_for_log(1.0, 1.0 / 9999, 1e-6) == math.ceil(math.log(1e6) / (2 * math.log(101 / 99)))
    assert steps_for_smoothed_log(100.0, 1.0, 1e-3) == math.ceil(math.log(1e3) / (2 * math.asinh(0.01)))
    assert steps_for_log(0.0, 1.0, 1e-6) == 1
    assert steps_for_smoothed_log(0.0, 1.0, 1e-6) == 1
    with pytest.raises(ValueError, match=r"tol must be a number in \(0, 1\); got 0.0"):
        steps_for_log(1.0, 1.0, 0.0)


def test_the_rates_are_reached_and_needed() -> None:
    dim, tol = 400, 1e-5
    values = torch.linspace(-1, 1, dim, dtype=torch.float64)
    run = lanczos(torch.diag(values), ProbeStream(dim, law="rademacher").block(0, 1), 120)

    def smooth(x: Tensor) -> Tensor:
        return torch.log(x**2 + 0.1**2) / 2

    exact = float(smooth(values).mean())

    def error(m: int) -> float:
        return abs(gauss(run.alphas[0, :m], run.betas[0, :m]).integrate(smooth) - exact)

    steps = steps_for_smoothed_log(1.0, 0.1, tol)
    assert error(steps) < tol
    assert max(error(steps // 2), error(steps // 2 + 1)) > tol
