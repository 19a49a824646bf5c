"""Lanczos chains: the defining relation, breakdown, scaling, low precision."""

from __future__ import annotations

import pytest
import torch
from oracles import SPECTRA, eigenvalues, symmetric
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.krylov.lanczos import LanczosRun, lanczos
from hessprobe.krylov.quadrature import tridiagonal
from hessprobe.operators import Counted, DenseOperator
from hessprobe.vectors import ProbeStream


def starts(count: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return ProbeStream(dim, seed=5, law="gaussian", dtype=dtype).block(0, count)


@pytest.mark.parametrize("kind", SPECTRA)
def test_relation_and_orthogonality(kind: str) -> None:
    matrix, m = symmetric(eigenvalues(kind, 120)), 70
    run = lanczos(DenseOperator(matrix), starts(3, 120), m)
    assert run.basis is not None
    scale = float(matrix.abs().max()) * 120
    for c in range(3):
        Q, T = run.basis[c], tridiagonal(run.alphas[c], run.betas[c])
        assert float((Q @ Q.T - torch.eye(m)).abs().max()) < 1e-13
        residual = matrix @ Q.T - Q.T @ T
        assert float(residual[:, :-1].abs().max()) < 1e-14 * scale
        assert float(residual[:, -1].norm()) == pytest.approx(float(run.betas[c, -1]), rel=1e-10)
        torch.testing.assert_close(run.norms, starts(3, 120).norm(dim=1))


def test_chains_are_independent_of_the_block() -> None:
    A, V = DenseOperator(symmetric(eigenvalues("indefinite", 50))), starts(4, 50)
    together = lanczos(A, V, 12)
    alone = lanczos(A, V[2:3], 12)
    torch.testing.assert_close(together.alphas[2:3], alone.alphas, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together.betas[2:3], alone.betas, rtol=1e-10, atol=1e-12)


def test_identity_ends_at_the_first_step_and_costs_one_product_a_chain() -> None:
    A = Counted(DenseOperator(torch.eye(30, dtype=torch.float64)))
    run = lanczos(A, starts(4, 30), 10)
    assert run.lengths.tolist() == [1, 1, 1, 1]
    assert A.matvec_count == 4
    torch.testing.assert_close(run.alphas, torch.ones(4, 1, dtype=torch.float64))
    assert float(run.betas.abs().max()) == 0.0


def test_a_finished_chain_leaves_the_block() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    V = torch.zeros(3, 6, dtype=torch.float64)
    V[0, :2] = 1.0
    V[1] = 1.0
    A = Counted(DenseOperator(torch.diag(values)))
    run = lanczos(A, V, 100)
    assert run.lengths.tolist() == [2, 6, 0]
    assert A.matvec_count == 8
    exact = torch.linalg.eigvalsh(tridiagonal(run.alphas[0, :2], run.betas[0, :2]))
    torch.testing.assert_close(exact, values[:2])
    assert float(run.betas[0, 1]) == 0.0


@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e12])
def test_scale_changes_nothing_else(factor: float) -> None:
    matrix = symmetric(eigenvalues("decaying", 40))
    run = lanczos(DenseOperator(matrix), starts(2, 40), 100)
    scaled = lanczos(DenseOperator(matrix * factor), starts(2, 40), 100)
    assert run.lengths.tolist() == scaled.lengths.tolist() == [40, 40]
    torch.testing.assert_close(scaled.alphas / factor, run.alphas, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-18, 1.0, 1e12])
def test_an_invariant_subspace_is_found_at_any_scale(factor: float) -> None:
    factors = starts(3, 40)
    matrix = factor * factors.T @ factors
    run = lanczos(DenseOperator((matrix + matrix.T) / 2), starts(5, 40)[3:], 20)
    # Three eigenvalues and the null space; one step more where rounding left a trace of a fifth direction.
    assert all(4 <= length <= 5 for length in run.lengths.tolist())


def test_zero_matrix() -> None:
    run = lanczos(DenseOperator(torch.zeros(5, 5, dtype=torch.float64)), starts(2, 5), 3)
    assert run.lengths.tolist() == [1, 1]
    assert float(run.alphas.abs().max()) == 0.0


def test_float32_keeps_the_basis_orthogonal() -> None:
    matrix = symmetric(eigenvalues("outliers", 200)).float()
    run = lanczos(DenseOperator((matrix + matrix.T) / 2), starts(2, 200, torch.float32), 60)
    assert run.basis is not None
    assert run.basis.dtype == torch.float32
    assert run.alphas.dtype == torch.float64
    for Q in run.basis.double():
        assert float((Q @ Q.T - torch.eye(60)).abs().max()) < 2e-6


def test_without_reorthogonalisation_orthogonality_is_lost_but_weights_add_up() -> None:
    A, V = DenseOperator(symmetric(eigenvalues("outliers", 200))), starts(1, 200)
    plain = lanczos(A, V, 60, reorthogonalize=False)
    assert plain.basis is None
    kept = lanczos(A, V, 60, reorthogonalize=False, keep_basis=True)
    assert kept.basis is not None
    assert float((kept.basis[0] @ kept.basis[0].T - torch.eye(60)).abs().max()) > 1e-3
    torch.testing.assert_close(plain.alphas, kept.alphas)
    with pytest.raises(ValueError, match="basis must be kept for coefficients"):
        plain.coefficients(V)


def test_coefficients_are_products_with_the_basis() -> None:
    A, V = DenseOperator(symmetric(eigenvalues("flat", 90))), starts(3, 90)
    run = lanczos(A, V, 40, reorthogonalize="full")
    assert run.basis is not None
    assert len(run.slabs) == 2
    torch.testing.assert_close(run.coefficients(V), torch.einsum("pmd,pd->pm", run.basis, V))


def test_monitor_sees_every_step_and_ends_the_sweep() -> None:
    seen: list[int] = []

    def monitor(run: LanczosRun) -> bool:
        seen.append(run.alphas.shape[1])
        return len(seen) == 4

    run = lanczos(DenseOperator(symmetric(eigenvalues("flat", 30))), starts(2, 30), 20, monitor=monitor)
    assert seen == [1, 2, 3, 4]
    assert run.alphas.shape == (2, 4)
    assert run.basis is not None
    assert run.basis.shape == (2, 4, 30)


def test_bad_arguments() -> None:
    A = DenseOperator(torch.eye(4, dtype=torch.float64))
    V = torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"V must have shape \(p, 4\), one start a row; got \(4,\)"):
        lanczos(A, V[0], 2)
    with pytest.raises(ValueError, match="steps must be an integer >= 1; got 0"):
        lanczos(A, V, 0)
    with pytest.raises(ValueError, match="reorthogonalize must be one of full"):
        lanczos(A, V, 2, reorthogonalize="ful")
    with pytest.raises(NonFiniteError, match="V must be finite"):
        lanczos(A, V * torch.nan, 2)


def test_a_product_that_is_not_finite_is_refused() -> None:
    class Broken:
        shape = (4, 4)

        def __matmul__(self, X: object) -> object:
            return torch.full((4, 1), torch.nan).numpy()

    with pytest.raises(NonFiniteError, match="got nan or inf at Lanczos step 1"):
        lanczos(Broken(), torch.ones(1, 4, dtype=torch.float64), 2)
