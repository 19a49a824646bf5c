"""Coverage of the (1 - delta) spectrum bounds over many random starts, and their width."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import eigenvalues, symmetric
from torch import Tensor

from hessprobe.krylov import eigsh
from hessprobe.krylov.certificates import log_start_quantile, lower_bound, upper_bound
from hessprobe.krylov.restart import ThickRestart
from hessprobe.operators import LinearOperator
from hessprobe.vectors import ProbeStream

RUNS = 200


class Diagonal(LinearOperator):
    """A diagonal matrix: with a rotation-invariant start, as good as any other of that spectrum."""

    def __init__(self, entries: Tensor) -> None:
        self.entries, self.dim, self.dtype, self.device = entries, len(entries), entries.dtype, entries.device

    def _matvecs(self, V: Tensor) -> Tensor:
        return V * self.entries


def ends(A: LinearOperator, steps: int, seed: int, delta: float) -> tuple[float, float, float]:
    """Lower bound, largest Ritz value, upper bound after some steps; delta an end."""
    stream = ProbeStream(A.dim, seed, "gaussian", A.dtype, "cpu", "start")
    engine = ThickRestart(A, steps, stream, 0, A.entries.new_empty(0, A.dim))
    engine.begin()
    for _ in range(steps):
        engine.step()
    values, log_c = engine.ritz().values, log_start_quantile(A.dim, delta)
    high = upper_bound(engine.alphas, engine.betas, values[0], log_c)
    return lower_bound(engine.alphas, engine.betas, values[-1], log_c), values[0], high


def test_coverage_is_exactly_nominal_where_the_bound_is_tight() -> None:
    # Rank one: u_1 lies in the span of q_0 and q_1, and the inequality behind the bound is an equality.
    A = Diagonal(torch.tensor([1.0] + [0.0] * 29, dtype=torch.float64))
    misses = np.mean([ends(A, 1, seed, 0.3)[2] < 1 - 1e-12 for seed in range(600)])
    assert misses == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 600))


@pytest.mark.parametrize(
    ("kind", "steps", "width"),
    [("outliers", 12, 1e-5), ("flat", 20, 0.09), ("linear", 20, 0.09), ("decaying", 10, 1e-6)],
)
def test_bounds_cover_and_inform(kind: str, steps: int, width: float) -> None:
    linear = torch.linspace(-1, 1, 500, dtype=torch.float64)
    A = Diagonal(linear if kind == "linear" else eigenvalues(kind, 500))
    truth = float(A.entries.max()), float(A.entries.min())
    runs = np.array([ends(A, steps, seed, 0.01) for seed in range(RUNS)])
    assert np.mean(runs[:, 2] >= truth[0]) >= 0.99
    assert np.mean(runs[:, 0] <= truth[1]) >= 0.99
    assert np.all(runs[:, 2] >= runs[:, 1])
    assert np.median(runs[:, 2] - truth[0]) < width * abs(truth[0])


def test_warm_starts_keep_the_coverage_even_from_a_useless_guess() -> None:
    # The guess is the second eigenvector, orthogonal to the first: nothing but the random part can find it.
    A = Diagonal(torch.cat([torch.linspace(-1, 1, 199, dtype=torch.float64), torch.tensor([1.02])]).double())
    guess = torch.zeros(1, 200, dtype=torch.float64)
    guess[0, 198] = 1.0
    low = 0
    for seed in range(RUNS):
        pairs = eigsh(A, which="largest", start=guess, seed=seed, tol=0.02, confidence=0.95)
        assert pairs.bounds.upper >= float(pairs.values[0])
        low += pairs.bounds.upper < 1.02
    # In 1,000 runs 42 fail; the binomial error of a share of 5 % among these is 3 runs.
    assert low <= 0.05 * RUNS + 3 * (0.05 * 0.95 * RUNS) ** 0.5
    assert pairs.bounds.upper < 1.15


def test_bounds_in_float32_are_never_beyond_the_truth_by_rounding() -> None:
    # The outliers are resolved to rounding, where only the noise term stands between bound and truth.
    entries = torch.cat([torch.linspace(-1, 1, 60), torch.tensor([300.0, -300.0])])
    matrix = symmetric(entries.double()).float()
    truth = torch.linalg.eigvalsh(matrix.double())
    for seed in range(40):
        pairs = eigsh(matrix, tol=1e-7, seed=seed)
        assert float(truth[-1]) <= pairs.bounds.upper < 300.0 * (1 + 1e-4)
        assert -300.0 * (1 + 1e-4) < pairs.bounds.lower <= float(truth[0])


def test_a_bound_that_fails_is_still_not_beyond_the_eigenvalue_found() -> None:
    A = Diagonal(eigenvalues("indefinite"))
    failed = 0
    for seed in range(20):
        pairs = eigsh(A, basis_size=8, tol=1e-5, rtol=None, confidence=0.0001, seed=seed)
        assert pairs.bounds.lower <= float(pairs.values[-1]) < float(pairs.values[0]) <= pairs.bounds.upper
        # Raised to the eigenvalue that was found, and the rounding of its product.
        failed += pairs.bounds.upper - float(pairs.values[0]) < 1e-9
    assert failed > 0
