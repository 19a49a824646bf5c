from __future__ import annotations

import math

import nets
import oracles
import pytest
import stats
import torch
from sharp_objectives import Function, toy

from hessprobe.errors import UnsupportedError
from hessprobe.objective import Quadratic
from hessprobe.sharpness import (
    Neighborhood,
    ascent_direction,
    average_direction,
    diagnose,
    fisher_rao_norm,
    m_sharpness,
    relative_flatness,
    worst_direction,
)

VALUES = torch.tensor([5.0, 3.0, 1.0, 0.2, -0.5, -2.0], dtype=torch.float64)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", 1)])
def test_ascent_on_a_quadratic_by_hand(norm, order):
    A = oracles.symmetric(VALUES)
    risk = Quadratic(A)
    g = A @ torch.ones(6).double()
    s = g / g.norm() if norm == "l2" else g.sign()
    for one in ascent_direction(risk, [0.2, 1.5], norm=norm):
        first, second = one.rho * float(g.norm(p=order)), one.rho**2 * float(s @ A @ s) / 2
        assert one.value == pytest.approx(first + second, rel=1e-10)
        assert (one.predicted.first_order, one.predicted.second_order) == pytest.approx((first, second), rel=1e-10)
        assert one.estimate.kind == "exact"


def test_ascent_prediction_is_of_second_order():
    risk = nets.mlp().risk()
    gaps = [abs(one.value - one.predicted.value) for one in ascent_direction(risk, [0.08, 0.04, 0.02])]
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.2)
    assert gaps[1] / gaps[2] == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize(("off", "limit"), [((0.0, 1e-7), 2.0), ((1e-7, 0.0), 9.32)])
def test_wen_ma_li_limits_of_the_ascent_direction(off, limit):
    one = ascent_direction(toy([0.6, 0.4, *off]), 1e-3)[0]
    assert one.value / one.rho**2 == pytest.approx(limit, rel=1e-3)


def test_wen_ma_li_limit_of_the_average_direction():
    one = average_direction(toy([0.6, 0.4, 0.0, 0.0]), 1e-3, n_probes=4000)[0]
    scaled = one.estimate.scaled(1e6)
    stats.assert_agrees(scaled, 2.83, 0.15)
    assert one.predicted.value * 1e6 == pytest.approx(2.83, rel=1e-9)


@pytest.mark.parametrize(("norm", "factor"), [("l2", 1 / 12), ("linf", 1 / 2)])
@pytest.mark.parametrize("antithetic", [True, False])
def test_average_of_a_quadratic_and_coverage_of_its_interval(norm, factor, antithetic):
    A = oracles.symmetric(VALUES)
    truth = 0.3**2 * float(VALUES.sum()) * factor
    risk = Quadratic(A, theta=0.02 * torch.ones(6).double())
    found = [
        average_direction(risk, 0.3, n_probes=24, norm=norm, antithetic=antithetic, predict=False, seed=seed)[0]
        for seed in range(300)
    ]
    assert 0.915 <= stats.coverage([one.estimate for one in found], truth) <= 0.985
    mean = sum(one.value for one in found) / len(found)
    spread = (sum((one.value - mean) ** 2 for one in found) / (len(found) - 1)) ** 0.5
    assert abs(mean - truth) < 4 * spread / math.sqrt(len(found))
    typical = sum(one.estimate.std_error for one in found) / len(found)
    assert typical == pytest.approx(spread, rel=0.15)
    # At most n - 1; fewer where the draws are as skewed as a form with few eigenvalues.
    assert all(2 < one.estimate.df <= 23 for one in found)
    assert {one.estimate.flags for one in found} == {()}


def test_draws_with_one_large_eigenvalue_cost_degrees_of_freedom_and_few_are_flagged():
    risk = Quadratic(torch.diag(torch.cat([torch.full((1,), 10.0), torch.full((39,), 0.02)]).double()))
    few = average_direction(risk, 0.3, n_probes=8, predict=False)[0].estimate
    assert few.flags == ("few-probes",)
    found = [average_direction(risk, 0.3, n_probes=64, predict=False, seed=seed)[0].estimate for seed in range(300)]
    truth = 0.3**2 * (10 + 39 * 0.02) / 80
    # Nominal 95 %, with the error of 300 runs; n - 1 degrees of freedom give 4 % narrower intervals.
    assert 0.89 <= stats.coverage(found, truth) <= 0.98
    assert sum(one.df for one in found) / len(found) < 40
    assert found[0].flags == ()


def test_prediction_of_the_average_is_the_trace():
    risk = nets.mlp().risk()
    trace = float(nets.full_hessian(risk).trace())
    small = average_direction(risk, 0.01, n_probes=400)[0]
    assert small.predicted.value == pytest.approx(1e-4 * trace / (2 * risk.dim), rel=1e-6)
    stats.assert_agrees(small.estimate, small.predicted.value, 0.5 * small.predicted.value)


def test_opposite_directions_remove_the_gradient():
    risk = Quadratic(oracles.symmetric(VALUES))
    pairs, plain = (average_direction(risk, 0.01, n_probes=50, antithetic=way)[0] for way in (True, False))
    assert pairs.estimate.std_error < 0.01 * plain.estimate.std_error
    assert pairs.cost.losses == 2 * 50 + 5
    assert plain.cost.losses == 50 + 5


def test_tolerance_is_reached_with_a_pilot_and_cut_with_a_flag():
    risk = Quadratic(oracles.symmetric(VALUES + 3), theta=torch.zeros(6).double())
    ones = [average_direction(risk, 0.1, rtol=0.1, predict=False, seed=seed)[0] for seed in range(60)]
    met = [one.estimate.half_width() <= 0.1 * one.value for one in ones]
    assert [one.estimate.flags for one in ones] == [() if hit else ("tolerance-missed",) for hit in met]
    assert sum(met) >= 40
    assert all(one.estimate.half_width() < 0.2 * one.value for one in ones)
    cut = average_direction(risk, 0.1, rtol=0.01, max_probes=40)[0]
    assert (cut.estimate.samples, cut.estimate.flags) == (40, ("tolerance-missed", "budget-exhausted"))


def test_draws_do_not_depend_on_the_other_radii():
    risk = nets.mlp().risk()
    both = average_direction(risk, [0.1, 0.7], n_probes=20)
    alone = average_direction(risk, 0.7, n_probes=20)[0]
    assert both[1].value == pytest.approx(alone.value, rel=1e-12)
    assert average_direction(risk, 0.7, n_probes=20, seed=1)[0].value != alone.value


def test_zero_gradient_and_bad_arguments():
    flat = Function([lambda x: (x**2).sum()], [0.0, 0.0])
    with pytest.raises(UnsupportedError, match=r"needs a gradient other than 0, but it is exactly 0 here"):
        ascent_direction(flat, 0.1)
    with pytest.raises(ValueError, match=r"n_probes must be None where rtol is given; got 5. Fix the size or the"):
        average_direction(flat, 0.1, n_probes=5, rtol=0.1)
    with pytest.raises(ValueError, match=r"n_probes must be an integer >= 2; got 1. One draw has no standard error."):
        average_direction(flat, 0.1, n_probes=1)
    blurred = Function([lambda x: 1 + (x**2).sum()], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"rho must be at least .* drowns in its rounding\. Take a larger rho\.$"):
        average_direction(blurred, 1e-9)


def test_a_module_is_left_as_it_was():
    case = nets.cnn()
    case.module.train()
    before = {name: value.clone() for name, value in case.module.state_dict().items()}
    random = torch.get_rng_state()
    near = Neighborhood(case.risk())
    ascent_direction(near, 0.1)
    average_direction(near, 0.1, n_probes=4)
    worst_direction(near, 0.1, steps=2, restarts=0)
    m_sharpness(near, 0.1, 5)
    relative_flatness(near.risk, n_probes=2)
    fisher_rao_norm(near.risk)
    diagnose(near, 0.1, k=1, rtol=0.5)
    assert all(torch.equal(value, before[name]) for name, value in case.module.state_dict().items())
    assert case.module.training
    assert all(p.grad is None for p in case.module.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_progress_is_reported_and_may_end_the_work():
    seen = []
    near = Neighborhood(nets.mlp().risk(), callback=lambda stage, state: seen.append((stage, state.done)))
    average_direction(near, 0.1, n_probes=20)
    ascent_direction(near, [0.1, 0.2])
    assert ("average", 20) in seen
    assert ("ascent", 2) in seen

    def stop(stage, state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        average_direction(nets.mlp().risk(), 0.1, callback=stop)
