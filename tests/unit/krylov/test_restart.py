"""The Lanczos engine: its defining relation, breakdown, orthogonality, noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import SPECTRA, eigenvalues, symmetric
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.krylov.certificates import log_polynomial_sum, mirrored
from hessprobe.krylov.eigsh import eigsh
from hessprobe.krylov.lanczos import orthogonalise, random_row
from hessprobe.krylov.restart import ThickRestart
from hessprobe.operators import DenseOperator, LinearOperator
from hessprobe.vectors import ProbeStream

EYE = torch.eye


def engine_for(matrix: Tensor, capacity: int, locked: Tensor | None = None) -> ThickRestart:
    A = DenseOperator(matrix)
    stream = ProbeStream(A.dim, 5, "gaussian", A.dtype, "cpu", "start")
    engine = ThickRestart(A, capacity, stream, 0, matrix.new_empty(0, A.dim) if locked is None else locked)
    engine.begin()
    return engine


def relation_error(engine: ThickRestart, matrix: Tensor) -> float:
    """|A Q^T - Q^T T - beta q e^T| over the complement of the locked rows."""
    m = engine.size
    Q, T = engine.basis[:m], torch.from_numpy(engine.T[:m, :m])
    left = Q @ matrix
    left -= left @ engine.locked.T @ engine.locked
    right = T @ Q
    right[-1] += engine.beta * engine.basis[m]
    return float((left - right).abs().max())


@pytest.mark.parametrize("kind", SPECTRA)
def test_recurrence_holds_before_and_after_restarts(kind: str) -> None:
    matrix = symmetric(eigenvalues(kind, 60))
    engine = engine_for(matrix, 12)
    for _ in range(3):
        while not engine.full:
            engine.step()
        assert relation_error(engine, matrix) < 1e-12 * engine.scale
        rows = engine.basis[: engine.size + 1]
        assert float((rows @ rows.T - EYE(len(rows), dtype=torch.float64)).abs().max()) < 1e-13
        ritz = engine.ritz()
        chosen = np.array([0, 1, 10, 11])
        y = engine.vectors(ritz, chosen)
        true = (y @ matrix - torch.from_numpy(ritz.values[chosen])[:, None] * y).norm(dim=1)
        np.testing.assert_allclose(ritz.residuals[chosen], true, rtol=1e-6, atol=1e-12 * engine.scale)
        engine.restart(ritz, chosen)
        np.testing.assert_allclose(engine.ritz().values, ritz.values[chosen])


def test_locked_rows_are_left_alone() -> None:
    matrix = symmetric(eigenvalues("outliers", 40))
    locked = torch.linalg.eigh(matrix).eigenvectors[:, [0, -1]].T.contiguous()
    engine = engine_for(matrix, 38, locked)
    while not engine.exhausted:
        engine.step()
    assert relation_error(engine, matrix) < 1e-12 * engine.scale
    expected = torch.linalg.eigvalsh(matrix)[1:-1].flip(0)
    np.testing.assert_allclose(engine.ritz().values, expected, atol=1e-12 * engine.scale)


def test_breakdown_goes_on_with_a_fresh_row_to_the_full_space() -> None:
    matrix = torch.diag(torch.tensor([2.0, 2, 2, 0, 0, 0, -1], dtype=torch.float64))
    engine = engine_for(matrix, 7)
    remainders = []
    while not engine.exhausted:
        engine.step()
        remainders.append(engine.beta)
    assert [beta == 0 for beta in remainders] == [False, False, True, False, True, False, True]
    np.testing.assert_allclose(engine.ritz().values, [2, 2, 2, 0, 0, 0, -1], atol=1e-14)
    assert len(engine.alphas) == 3
    assert engine.betas[-1] == 0


def test_noise_is_measured_where_products_carry_it() -> None:
    matrix = symmetric(eigenvalues("indefinite"))
    generator = torch.Generator().manual_seed(0)

    class Noisy(DenseOperator):
        def _matvecs(self, V: Tensor) -> Tensor:
            error = torch.randn(V.shape, generator=generator, dtype=V.dtype) * 1e-5 / math.sqrt(self.dim)
            return super()._matvecs(V) + error

    clean, noisy = engine_for(matrix, 30), engine_for(matrix, 30)
    noisy.A = Noisy(matrix)
    for _ in range(30):
        clean.step()
        noisy.step()
    assert clean.noise < 1e-13
    assert noisy.noise == pytest.approx(1e-5, rel=0.15)


def test_a_product_with_nan_is_refused() -> None:
    class Broken(DenseOperator):
        def _matvecs(self, V: Tensor) -> Tensor:
            return V * math.nan

    engine = engine_for(EYE(4, dtype=torch.float64), 4)
    engine.A = Broken(EYE(4, dtype=torch.float64))
    with pytest.raises(NonFiniteError, match="A v must be finite; got nan or inf"):
        engine.step()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 3e-7)])
def test_gram_schmidt_twice_is_orthogonal_to_working_precision(dtype: torch.dtype, bound: float) -> None:
    stream = ProbeStream(50, 1, "gaussian", dtype)
    basis = torch.linalg.qr(stream.block(0, 20).double().T).Q.T.to(dtype)
    # Nearly in the span: one pass would leave an error of eps / 1e-5.
    row = basis.sum(0, keepdim=True) + 1e-5 * stream.block(30, 31)
    rest, (first, second) = orthogonalise(row, (basis[:5], basis[5:]))
    assert float((rest @ basis.T).abs().max()) < bound * float(rest.norm()) + bound * 1e-5
    torch.testing.assert_close(torch.cat([first, second]), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-4)


def test_random_rows_are_units_in_the_complement_even_when_one_dimension_is_left() -> None:
    stream = ProbeStream(30, 2, "gaussian")
    basis = torch.linalg.qr(stream.block(0, 30).T).Q.T.contiguous()
    row = random_row(stream, 40, (basis[:10], basis[10:29]))
    assert abs(float(row[0] @ basis[29])) == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("steps_after", [0, 1, 3])
def test_the_polynomials_of_restarted_rows_are_those_of_the_certificate(steps_after: int) -> None:
    """u . q = p(lambda) (u . v) for every row q = p(A) v and eigenvector u, summed over the rows of the basis."""
    matrix = symmetric(eigenvalues("flat", 60))
    values, vectors = torch.linalg.eigh(matrix)
    engine = engine_for(matrix, 9)
    start = engine.basis[0].clone()
    for _ in range(3):
        while not engine.full:
            engine.step()
        engine.restart(engine.ritz(), np.array([0, 1, 8]))
    for _ in range(steps_after):
        engine.step()
    rows, ritz = engine.basis[: engine.size + 1], engine.ritz().values
    for end, sign in ((-1, 1.0), (0, -1.0)):
        u, value = vectors[:, end], float(values[end])
        # Not converged, so that the sum is one of polynomials and not of rounding.
        assert sign * (value - ritz[0 if end else -1]) > 1e-6
        found = float((rows @ u).square().sum() / (start @ u) ** 2)
        alphas, restarts = [sign * a for a in engine.alphas], engine.restarts if end else mirrored(engine.restarts)
        told = log_polynomial_sum(alphas, engine.betas, sign * value, restarts)
        assert told == pytest.approx(math.log(found), rel=1e-6)
    inside = float(ritz[0]) - 1e-9
    assert log_polynomial_sum(engine.alphas, engine.betas, inside, engine.restarts) == -math.inf


def test_a_small_basis_still_narrows_the_bracket() -> None:
    values = torch.linspace(-0.2, 1.0, 3000, dtype=torch.float64)
    values[-1] = 1.05
    few = eigsh(DenseOperator(torch.diag(values)), 1, "largest", basis_size=12, rtol=0.02, seed=1)
    assert few.method == "thick-restart-lanczos"
    assert few.flags == ()
    assert float(few.values[0]) <= 1.05 + 1e-9
    assert 1.05 <= float(few.intervals.high[0]) <= 1.02 * float(few.values[0])


def test_brackets_of_restarted_runs_hold_as_often_as_they_say() -> None:
    values = torch.cat([torch.linspace(-1, 1, 200, dtype=torch.float64), torch.tensor([1.01], dtype=torch.float64)])
    A = DenseOperator(torch.diag(values))
    missed = 0
    for seed in range(200):
        pairs = eigsh(A, 1, "largest", basis_size=8, rtol=0.5, tol=0.5, confidence=0.5, seed=seed, data_error=False)
        missed += not pairs.intervals.low[0] <= 1.01 <= pairs.intervals.high[0]
    # At most half of them may, and a bound that could not fail would be infinitely wide.
    assert missed <= 100 + 4 * math.sqrt(50)


class Scaled(LinearOperator):
    """diag(values), whose products are one vector each."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.dim, self.dtype, self.device = len(values), values.dtype, values.device

    def _matvecs(self, V: Tensor) -> Tensor:
        return V * self.values


def test_what_an_operator_hands_out_is_left_alone() -> None:
    class Constant(Scaled):
        def _matvecs(self, V: Tensor) -> Tensor:
            return V

    engine = ThickRestart(
        Constant(torch.ones(30)), 4, ProbeStream(30, 0, "gaussian", torch.float32), 0, torch.empty(0, 30)
    )
    engine.begin()
    first = engine.basis[0].clone()
    engine.step()
    assert torch.equal(engine.basis[0], first)
    assert engine.T[0, 0] == pytest.approx(1.0, rel=1e-6)
