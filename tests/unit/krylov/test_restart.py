"""The Lanczos engine: its defining relation, breakdown, orthogonality, noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import SPECTRA, eigenvalues, symmetric
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.krylov.lanczos import orthogonalise, random_row
from hessprobe.krylov.restart import ThickRestart
from hessprobe.operators import DenseOperator
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
