"""The size of a sweep: tolerances, pilots, short chains, blocks, progress."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import eigenvalues, symmetric
from questions import batches, leading

from hessprobe.errors import MemoryBudgetError, NumericalWarning
from hessprobe.estimate import Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.estimators.levels import best_sizes, fitted, short_steps
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.estimators.xtrace import deflation
from hessprobe.operators import Counted, DenseOperator


def test_a_tolerance_is_met_by_one_run_after_a_pilot() -> None:
    A = DenseOperator(symmetric(eigenvalues("flat", 100)), psd=True)

    def target(sketch: SpectralSketch) -> Estimate:
        return sketch.logdet(shift=0.5)

    met = 0
    for seed in range(10):
        sketch = spectral_sketch(A, method="slq", rtol=0.05, target=target, seed=seed)
        estimate = target(sketch)
        good = estimate.half_width() <= 0.05 * abs(estimate.value)
        assert sketch.flags == (() if good else ("tolerance-missed",))
        assert 8 <= sketch.n_probes < 100
        # A chain alone shows after eight steps that few are not enough.
        assert sketch.matvecs == 8 + (4 + sketch.n_probes) * sketch.alphas.shape[1] + sketch.short_alphas.numel()
        assert abs(estimate.value - float(torch.log(eigenvalues("flat", 100) + 0.5).sum())) < 2 * estimate.half_width()
        met += good
    assert met >= 6


def test_the_final_run_does_not_see_the_pilot() -> None:
    matrix = symmetric(eigenvalues("flat", 60))
    sized = spectral_sketch(matrix, method="slq", rtol=0.05, steps=6, seed=3)
    fixed = spectral_sketch(matrix, method="slq", n_probes=sized.n_probes, steps=6, seed=3)
    torch.testing.assert_close(sized.alphas, fixed.alphas)


def test_a_cut_budget_says_so() -> None:
    with pytest.warns(NumericalWarning, match="max_probes must be larger for this tolerance; got 9"):
        sketch = spectral_sketch(symmetric(eigenvalues("outliers", 80)), method="slq", rtol=1e-4, max_probes=9, steps=5)
    assert sketch.n_probes == 9
    assert "budget-exhausted" in sketch.flags


def test_blocks_of_chains_change_nothing() -> None:
    A = Counted(batches())
    whole = spectral_sketch(A, method="slq", n_probes=7, steps=9, seed=1)
    pieces = spectral_sketch(A, method="slq", n_probes=7, steps=9, seed=1, memory=2 * 9 * 40 * 8)
    torch.testing.assert_close(whole.alphas, pieces.alphas)
    torch.testing.assert_close(whole.chain_influence, pieces.chain_influence)
    with pytest.raises(MemoryBudgetError, match="memory must hold one chain of 9 steps, 2880 bytes; got 1000"):
        spectral_sketch(A, method="slq", n_probes=7, steps=9, memory=1000)
    lean = spectral_sketch(A, method="slq", n_probes=7, steps=9, seed=1, memory=1000, reorthogonalize=False)
    torch.testing.assert_close(whole.alphas, lean.alphas)
    assert lean.trace().errors.data is None


def test_auto_takes_the_whole_matrix_where_that_is_cheaper() -> None:
    A = Counted(DenseOperator(symmetric(eigenvalues("flat", 50))))
    assert spectral_sketch(A).n_probes == 0
    assert A.matvec_count == 50
    assert spectral_sketch(A, n_probes=4, steps=10).n_probes == 4


def test_callback_follows_the_products() -> None:
    seen: list[Progress] = []
    spectral_sketch(symmetric(eigenvalues("flat", 60)), method="slq", n_probes=4, steps=12, callback=seen.append)
    assert [p.done for p in seen] == [4.0 * step for step in range(1, 13)]
    assert {p.total for p in seen} == {48.0}
    assert seen[0].value is None
    assert seen[-1].value == pytest.approx(float(eigenvalues("flat", 60).norm()), rel=0.1)


def test_a_fitted_polynomial_is_the_function_where_that_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    nodes = torch.rand(40, generator=generator, dtype=torch.float64) * 3 - 1
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    cubic = fitted(lambda x: x**3 - 2 * x, nodes, weights, 5)
    beyond = torch.tensor([-1.5, 0.3, 2.4], dtype=torch.float64)
    torch.testing.assert_close(cubic(beyond), beyond**3 - 2 * beyond, rtol=1e-9, atol=1e-9)
    # Least squares: what is left is orthogonal to every polynomial of the degree.
    rest = torch.exp(nodes) - fitted(torch.exp, nodes, weights, 3)(nodes)
    for power in range(4):
        assert abs(float((weights * rest * nodes**power).sum())) < 1e-10


def _log(sketch: SpectralSketch) -> Estimate:
    return sketch.smoothed_logdet(eps=0.05)


def test_short_chains_cover_without_bias_at_fewer_products() -> None:
    values = torch.cat([torch.linspace(-1, 1, 380), torch.linspace(-0.05, 0.05, 120)]).double()
    A = DenseOperator(symmetric(values))
    truth = float(torch.log(values**2 + 0.05**2).sum() / 2)
    hits, scores, cost = 0, [], 0.0
    for seed in range(40):
        sketch = spectral_sketch(A, method="slq", atol=12.0, target=_log, seed=seed, steps=60)
        assert len(sketch.short_norms) > sketch.n_probes
        estimate = _log(sketch)
        low, high = estimate.interval()
        hits += low <= truth <= high
        scores.append((estimate.value - truth) / estimate.errors.probe)
        cost += sketch.matvecs / 40
    # 40 runs: a binomial of mean 38 is below 35 with probability 0.014.
    assert hits >= 35
    z = torch.tensor(scores)
    assert abs(float(z.mean())) < 4 / math.sqrt(40)
    assert 0.6 < float(z.square().mean()) < 1.6
    std = _log(spectral_sketch(A, method="slq", n_probes=16, steps=60)).details["probe_std"]
    assert cost < 0.75 * 60 * (4 + (1.96 * std / 12.0) ** 2)


def test_short_chains_leave_a_linear_function_to_all_probes() -> None:
    values = torch.cat([torch.linspace(-1, 1, 380), torch.linspace(-0.05, 0.05, 120)]).double()
    sketch = spectral_sketch(DenseOperator(symmetric(values)), method="slq", atol=12.0, target=_log, seed=1, steps=60)
    trace = sketch.trace()
    assert trace.details["rest_std"] < 1e-6 * trace.details["polynomial_std"]
    every = sketch.n_probes + len(sketch.short_norms)
    assert every > 2 * sketch.n_probes
    # q is f itself: each chain counts with the same weight.
    assert trace.errors.probe == pytest.approx(trace.details["polynomial_std"] / math.sqrt(every), rel=1e-6)


def test_short_chains_are_not_taken_where_they_do_not_pay() -> None:
    assert best_sizes({4: (10.0, 10.0)}, 20, 5, 4.0, 0.95, (8, 1000)).short == 0
    chosen = best_sizes({4: (1.0, 10.0)}, 100, 40, 2.0, 0.95, (8, 1000))
    assert chosen.short > 0
    assert chosen.cost < 0.3 * 100 * 40
    assert short_steps(7) == [2, 3]


def test_products_of_a_deflation_are_not_repeated_and_give_the_same_sketch() -> None:
    A = batches()
    vectors = leading(A.total, 5) + 0.01  # not eigenvectors: every part of the split matters
    plain = spectral_sketch(A, method="slq", n_probes=4, steps=8, deflate=vectors)
    given = spectral_sketch(A, method="slq", n_probes=4, steps=8, deflate=deflation(A, vectors))
    assert plain.matvecs - given.matvecs == 5
    for name in ("theta", "residuals", "weights", "theta_influence", "alphas", "betas"):
        torch.testing.assert_close(getattr(given, name), getattr(plain, name), rtol=1e-9, atol=1e-10)
