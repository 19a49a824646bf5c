"""Common probes: the change of a measure without the error that both sides share."""

from __future__ import annotations

import math

import nets
import pytest
import torch
from invariance_nets import dense_risk
from oracles import symmetric
from torch import nn

from hessprobe.errors import NonFiniteError
from hessprobe.invariance import check_invariance, find_sites
from hessprobe.invariance.check import apply
from hessprobe.invariance.names import CHANGES, INVARIANT
from hessprobe.invariance.paired import (
    PILOT,
    Probed,
    estimate,
    estimate_after,
    probes_for_tolerance,
    probes_for_verdict,
)
from hessprobe.invariance.run import Runner
from hessprobe.invariance.verdict import LEVEL, compare
from hessprobe.measures import MeasureSettings
from hessprobe.objective.copying import risk_of
from hessprobe.operators import DenseOperator, Reordered

SPECTRUM = torch.cat([torch.tensor([9.0, 4.0, -2.0]), torch.linspace(-0.5, 1.0, 37)]).double()
MATRIX = symmetric(SPECTRUM, 0)
FACTORS = torch.logspace(-0.5, 0.5, 40, base=2, dtype=torch.float64)
MOVED = MATRIX / FACTORS[:, None] / FACTORS
TRUTH = {"trace": lambda A: float(A.trace()), "frob": lambda A: float(A.norm())}


def change(name, here, there, count):
    both = estimate(name, here, count), estimate(name, there, count)
    return compare(name, *both, rounding=0.0, common=both)


def probed(matrix, seed=0, limit=32):
    return Probed(DenseOperator(matrix), seed, limit)


@pytest.mark.parametrize("name", list(TRUTH))
def test_errors_of_difference_and_ratio_are_those_of_many_seeds(name):
    old, new = TRUTH[name](MATRIX), TRUTH[name](MOVED)
    scores, ratios = [], []
    for seed in range(150):
        found = change(name, probed(MATRIX, seed), probed(MOVED, seed), 24)
        scores.append((found.difference - (new - old)) / found.error)
        ratios.append((found.ratio - new / old) / found.ratio_error)
    for each in (torch.tensor(scores), torch.tensor(ratios)):
        assert abs(float(each.mean())) < 0.45
        assert 0.85 < float(each.std()) < 1.3


@pytest.mark.parametrize("name", list(TRUTH))
def test_common_probes_beat_independent_ones(name):
    near = MATRIX + 1e-3 * symmetric(SPECTRUM, 1)
    here, there = probed(MATRIX), probed(near)
    found, alone = change(name, here, there, 24), estimate(name, here, 24)
    assert alone.std_error > 0.05 * alone.value
    assert found.error < 0.02 * alone.std_error
    assert abs(found.difference - (TRUTH[name](near) - TRUTH[name](MATRIX))) < 4 * found.error


def test_values_by_hand():
    rows = probed(MATRIX).rows(PILOT, PILOT + 20)
    assert estimate("trace", probed(MATRIX), 20).value == pytest.approx(float(rows[:, 0].mean()))
    assert estimate("trace", probed(MATRIX), 20).std_error == pytest.approx(float(rows[:, 0].std()) / math.sqrt(20))
    squares = rows[:, 1]
    assert estimate("frob", probed(MATRIX), 20).value == pytest.approx(math.sqrt(float(squares.mean())))
    slope = 0.5 / math.sqrt(float(squares.mean()))
    assert estimate("frob", probed(MATRIX), 20).std_error == pytest.approx(slope * float(squares.std()) / math.sqrt(20))


def test_a_pilot_sizes_the_comparison():
    names = ["trace", "frob"]
    assert probes_for_verdict(names, probed(MATRIX), probed(MATRIX), 28, 0.05, LEVEL) == PILOT
    assert (
        probes_for_verdict(names, probed(MATRIX), probed(MATRIX + 10 * symmetric(SPECTRUM, 3)), 28, 1e-3, LEVEL) == 28
    )
    few = probes_for_verdict(names, probed(MATRIX), probed(MATRIX), 6, 0.05, LEVEL)
    assert few == 6
    assert probes_for_tolerance(names, probed(MATRIX), 0.5, 0.95) < probes_for_tolerance(
        names, probed(MATRIX), 0.1, 0.95
    )


@pytest.mark.parametrize("name", list(TRUTH))
@pytest.mark.parametrize("distance", [0.0, 0.1, 5.0])
def test_value_after_from_value_before_and_change(name, distance):
    other = MATRIX + distance * symmetric(SPECTRUM, 1)
    scores, errors = [], []
    for seed in range(100):
        here, there = probed(MATRIX, seed), probed(other, seed)
        found = estimate_after(name, here, there, 28, 16)
        scores.append((found.value - TRUTH[name](other)) / found.std_error)
        errors.append(found.std_error / estimate(name, there, 16).std_error)
    assert abs(float(torch.tensor(scores).mean())) < 0.6
    assert 0.8 < float(torch.tensor(scores).std()) < 1.5
    if distance == 0.0:
        assert found.value == pytest.approx(estimate(name, here, 28).value, rel=1e-12)
        assert sum(errors) / 100 < 0.85


def test_four_probes_that_agree_by_chance_do_not_replace_the_value_before():
    # The largest probe of 24 is among the 20 that the comparison does without: the first four look sure of themselves.
    A = MATRIX
    seed = min(range(60), key=lambda s: float(probed(A, s).rows(PILOT, PILOT + 4)[:, 0].std()))
    here, there = probed(A, seed), probed(A, seed)
    assert estimate("trace", there, 4).std_error < 0.7 * estimate("trace", here, 24).std_error
    found = estimate_after("trace", here, there, 24, 4)
    assert found.value == pytest.approx(estimate("trace", here, 24).value, rel=1e-12)
    assert found.df == pytest.approx(23)


def test_few_rows_are_exact():
    found = change("frob", probed(MATRIX, limit=40), probed(MOVED, limit=40), 40)
    assert found.error == 0.0
    assert found.ratio == pytest.approx(float(MOVED.norm() / MATRIX.norm()), rel=1e-12)
    alone = estimate("trace", probed(MATRIX, limit=40), 40)
    assert (alone.kind, alone.std_error) == ("exact", 0.0)
    assert alone.value == pytest.approx(float(SPECTRUM.sum()), rel=1e-12)


def test_products_that_are_not_finite_are_refused():
    class Broken(DenseOperator):
        def _matvecs(self, V):
            return V * torch.inf

    with pytest.raises(NonFiniteError, match="products must be finite; got nan or inf"):
        Probed(Broken(MATRIX), 0, 8).rows(0, 4)


def test_permuted_network_is_measured_in_the_coordinates_before():
    risk = dense_risk((5, 6, 4, 3), nn.Tanh)
    runner = Runner.of(risk)
    applied, state = apply(runner, find_sites(risk).of("permutation"), None, 0)
    other = risk_of(risk, runner.written(state))
    assert not torch.equal(applied.order, torch.arange(risk.dim))
    torch.testing.assert_close(other.theta, risk.theta[applied.order])
    back = Reordered(DenseOperator(nets.full_hessian(other)), applied.order).to_dense()
    torch.testing.assert_close(back, nets.full_hessian(risk), rtol=1e-9, atol=1e-12)


def test_permutation_is_decided_where_each_value_is_known_badly():
    risk = dense_risk((5, 8, 6, 3), nn.Tanh)
    names = ("trace", "frob", "adaptive-trace", "adaptive-frob")
    lines = list(check_invariance(risk, names, ["permutation"], settings=MeasureSettings(n_probes=8)))
    assert {line.verdict for line in lines} == {INVARIANT}
    for line in lines:
        assert line.before.std_error > 0.03 * abs(line.before.value)
        assert line.compared.error < 1e-9 * abs(line.before.value)
        assert line.compared.ratio == pytest.approx(1, abs=1e-9)


def test_rescaling_is_decided_with_few_probes():
    risk = dense_risk((5, 8, 6, 3), nn.LeakyReLU)
    names = ("trace", "frob", "adaptive-trace", "adaptive-frob")
    how = MeasureSettings(n_probes=32)
    lines = list(check_invariance(risk, names, ["unit-rescaling", "layer-rescaling"], [10.0], how))
    for line in lines:
        assert line.verdict == (INVARIANT if line.measure.startswith("adaptive") else CHANGES)
        assert not line.surprising
        exact = 1.0 if line.verdict == INVARIANT else true_ratio(risk, line)
        assert abs(line.compared.ratio - exact) <= 5 * line.compared.ratio_error + 1e-9 * exact


def true_ratio(risk, line):
    H, D = nets.full_hessian(risk), line.applied.factors
    return TRUTH[line.measure](H / D[:, None] / D) / TRUTH[line.measure](H)
