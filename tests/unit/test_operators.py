"""Operators against their dense matrices: the interface, counting, algebra, foreign ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from oracles import SumOperator, eigenvalues, symmetric
from torch import Tensor

import hessprobe as hp
from hessprobe.operators import (
    Block,
    BlockDiagonal,
    Combination,
    Congruence,
    Counted,
    Deflated,
    DenseOperator,
    LinearOperator,
    Reordered,
    Shifted,
    aslinearoperator,
)

D = 12


def _matrix(seed: int = 0) -> Tensor:
    return symmetric(eigenvalues("indefinite", D), seed)


def _sum() -> SumOperator:
    return SumOperator(torch.stack([_matrix(seed) for seed in range(3)]))


def _deflated_dense(A: Tensor, Q: Tensor) -> Tensor:
    P = torch.eye(D, dtype=torch.float64) - Q.T @ Q
    return P @ A @ P


def _block_diagonal_dense(A: Tensor) -> Tensor:
    kept = torch.zeros_like(A)
    for part in (slice(0, 5), slice(5, 12)):
        kept[part, part] = A[part, part]
    return kept


Q = torch.linalg.qr(torch.randn(D, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q.T.contiguous()
ORDER = torch.randperm(D, generator=torch.Generator().manual_seed(2))
SCALE = torch.linspace(0.5, 2.0, D, dtype=torch.float64)
A = _sum()
TOTAL = A.total
CASES: dict[str, tuple[LinearOperator, Tensor]] = {
    "combination": (Combination([A, A], [2.0, -0.5]), 1.5 * TOTAL),
    "shifted": (Shifted(A, 0.7), TOTAL + 0.7 * torch.eye(D, dtype=torch.float64)),
    "deflated": (Deflated(A, Q), _deflated_dense(TOTAL, Q)),
    "block": (Block(A, slice(2, 9)), TOTAL[2:9, 2:9]),
    "block diagonal": (BlockDiagonal(A, [slice(0, 5), slice(5, 12)]), _block_diagonal_dense(TOTAL)),
    "congruence": (Congruence(A, SCALE), SCALE[:, None] * TOTAL * SCALE),
    "reordered": (Reordered(DenseOperator(TOTAL[ORDER][:, ORDER]), ORDER), TOTAL),
    "counted": (Counted(A), TOTAL),
}


class _Float32Tensors:
    """As curvlinops' operators are: takes tensors of its own dtype and device, nothing else."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, matrix: Tensor, named: bool = True) -> None:
        self.matrix, self.shape = matrix.float(), tuple(matrix.shape)
        if not named:
            self.dtype = self.device = None

    def __matmul__(self, X: Tensor) -> Tensor:
        if not isinstance(X, Tensor):
            raise ValueError(f"Input must be tensor or list of tensors. Got {type(X)}.")
        return self.matrix @ X  # refuses float64


@pytest.mark.parametrize("named", [True, False])
def test_foreign_operators_are_given_the_dtype_that_they_want(named: bool) -> None:
    matrix = _matrix()
    foreign = _Float32Tensors(matrix, named)
    A = aslinearoperator(foreign)
    assert (A.dtype, A.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(A.to_dense().double(), matrix, rtol=1e-5, atol=1e-5)
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    for found, truth in (
        (hp.trace(foreign, seed=0), float(matrix.trace())),
        (hp.frobenius_norm(foreign, seed=0), float(matrix.norm())),
        (hp.eigsh(foreign, 1, "largest", seed=0).estimate(0), top),
    ):
        low, high = found.interval(0.95)
        assert low - 1e-5 * top <= truth <= high + 1e-5 * top


def test_what_is_known_of_a_foreign_operator_is_told_with_it() -> None:
    matrix = _matrix() @ _matrix()
    layout = hp.vectors.ParameterLayout(("weight", "bias"), (torch.Size((3, 3)), torch.Size((3,))))
    for foreign in (_Float32Tensors(matrix), matrix, matrix.numpy()):
        A = aslinearoperator(foreign, psd=True, layout=layout)
        assert A.psd
        part = A.block("bias").to_dense().double()
        torch.testing.assert_close(part, matrix[9:, 9:], rtol=1e-5, atol=1e-5)
        assert not aslinearoperator(foreign).psd
        with pytest.raises(ValueError, match="layout must have 12 entries"):
            aslinearoperator(foreign, layout=layout.of_names(["weight"]))
    A = aslinearoperator(_Float32Tensors(matrix), layout=layout)
    found = A @ {"weight": torch.zeros(3, 3), "bias": torch.ones(3)}
    torch.testing.assert_close(found["bias"].double(), matrix[9:, 9:].sum(1), rtol=1e-5, atol=1e-4)
    with pytest.raises(TypeError, match="must be no operator of hessprobe"):
        aslinearoperator(A, psd=True)


def test_the_dtype_of_a_numpy_operator_is_kept() -> None:
    matrix = _matrix().numpy()
    for kind, dtype in ((np.float32, torch.float32), (np.float64, torch.float64)):
        A = aslinearoperator(scipy.sparse.linalg.aslinearoperator(matrix.astype(kind)))
        assert A.dtype == dtype
        np.testing.assert_allclose(A.to_dense().numpy(), matrix, rtol=1e-5, atol=1e-5)
    counted = aslinearoperator(scipy.sparse.csr_matrix(np.diag(np.arange(D))))
    assert counted.dtype == torch.float64
    assert hp.trace(counted, seed=0).value == pytest.approx(D * (D - 1) / 2, rel=0.05)
    with pytest.raises(TypeError, match="operator must be real"):
        aslinearoperator(scipy.sparse.linalg.aslinearoperator(matrix.astype(np.complex128)))


@pytest.mark.parametrize("block", [1, 3])
def test_a_foreign_operator_that_is_not_symmetric_is_refused(block: int) -> None:
    generator = torch.Generator().manual_seed(5)
    V = torch.randn(3, D, dtype=torch.float64, generator=generator)
    for matrix in (_matrix(), _matrix() + 0.05 * torch.triu(torch.ones(D, D, dtype=torch.float64), 1)):
        A = aslinearoperator(scipy.sparse.linalg.aslinearoperator(matrix.numpy()))
        pieces = V.split(block)
        if bool((matrix == matrix.T).all()):
            torch.testing.assert_close(torch.cat([A.matvecs(piece) for piece in pieces]), V @ matrix)
            continue
        with pytest.raises(ValueError, match="operator must be symmetric"):
            torch.cat([A.matvecs(piece) for piece in pieces])


@pytest.mark.parametrize("name", list(CASES))
def test_algebra_is_that_of_matrices(name: str) -> None:
    operator, matrix = CASES[name]
    V = torch.randn(4, operator.dim, dtype=torch.float64)
    torch.testing.assert_close(operator.matvecs(V), V @ matrix)
    torch.testing.assert_close(operator.quadratic_forms(V), (V @ matrix * V).sum(1))
    torch.testing.assert_close(operator.to_dense(), matrix)
    terms = list(operator.terms())
    assert len(terms) == operator.n_terms
    torch.testing.assert_close(sum(w * term.matvecs(V) for w, term in terms), V @ matrix)
    known = operator.exact_diagonal()
    if known is not None:
        torch.testing.assert_close(known[0], matrix.diagonal())


def test_products_are_counted_where_they_happen() -> None:
    counted = Counted(_sum())
    counted.matvecs(torch.ones(3, D, dtype=torch.float64))
    assert counted.matvec_count == 3
    for _, term in counted.terms():
        term.matvecs(torch.ones(2, D, dtype=torch.float64))
    assert counted.matvec_count == pytest.approx(5)
    Deflated(counted, Q).quadratic_forms(torch.ones(1, D, dtype=torch.float64))
    assert counted.matvec_count == pytest.approx(6)
    BlockDiagonal(counted, [slice(0, 5), slice(5, 12)]).matvecs(torch.ones(1, D, dtype=torch.float64))
    assert counted.matvec_count == pytest.approx(8)


def test_foreign_operators() -> None:
    matrix = _matrix()
    V = torch.randn(2, D, dtype=torch.float64)
    sparse = scipy.sparse.linalg.aslinearoperator(matrix.numpy())
    for foreign in (matrix.numpy(), matrix, sparse):
        torch.testing.assert_close(aslinearoperator(foreign).matvecs(V), V @ matrix)
    back = aslinearoperator(matrix).to_scipy()
    np.testing.assert_allclose(back @ np.eye(D), matrix.numpy())
    top = scipy.sparse.linalg.eigsh(back, k=1, which="LA", return_eigenvectors=False)
    assert top[0] == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]))


def test_probes_are_checked() -> None:
    operator = DenseOperator(_matrix())
    assert operator.matvecs(torch.zeros(0, D, dtype=torch.float64)).shape == (0, D)
    with pytest.raises(ValueError, match=r"V must have shape \(k, 12\), one vector a row; got \(12,\)"):
        operator.matvecs(torch.zeros(D, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"V must be a tensor of dtype torch.float64; got torch.float32"):
        operator.matvecs(torch.zeros(1, D))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseOperator(torch.zeros(2, 3)), "matrix must be square"),
        (
            lambda: DenseOperator(torch.tensor([[0.0, 1.0], [2.0, 0.0]])),
            r"matrix must be symmetric; got \|A - A\^T\| up to 1",
        ),
        (lambda: DenseOperator(torch.full((2, 2), torch.nan)), "matrix must be finite"),
        (lambda: aslinearoperator(scipy.sparse.linalg.aslinearoperator(np.zeros((2, 3)))), "operator must be square"),
        (lambda: Combination([A], [1.0, 2.0]), "operators must be as many as coefficients"),
        (lambda: Combination([A, DenseOperator(torch.eye(2))], [1.0, 1.0]), "operators must share dimension"),
        (lambda: Shifted(A, float("nan")), "shift must be a finite number; got nan"),
        (lambda: Deflated(A, 2 * Q), "basis must have orthonormal rows"),
        (lambda: Deflated(A, torch.eye(D, dtype=torch.float64)), "basis must have shape"),
        (lambda: Block(A, slice(3, 3)), "where must be a contiguous, non-empty slice"),
        (lambda: BlockDiagonal(A, [slice(0, 5)]), "groups must cover 0..12 once"),
        (lambda: Congruence(A, SCALE[:3]), "scale must be finite with shape"),
    ],
)
def test_what_cannot_be_an_operator(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_not_an_operator_at_all() -> None:
    with pytest.raises(TypeError, match="operator must have shape and @; got str"):
        aslinearoperator("matrix")


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint16", ">f8", "f4", "longdouble"])
def test_arrays_of_any_real_numbers_are_matrices(dtype: str) -> None:
    A = aslinearoperator(np.diag([1.0, 0.0, 1.0]).astype(dtype))
    assert A.dtype == (torch.float32 if dtype == "f4" else torch.float64)
    assert torch.equal(A.matvecs(torch.eye(3, dtype=A.dtype)), torch.diag(torch.tensor([1, 0, 1])).to(A.dtype))


@pytest.mark.parametrize(
    ("matrix", "error", "words"),
    [
        (np.diag([1j, 1.0]), TypeError, "must be real; got dtype complex128"),
        (torch.eye(2, dtype=torch.complex64), TypeError, "must be real; got dtype torch.complex64"),
        (np.array([["a"]]), TypeError, "A must hold numbers; got dtype <U1. Pass A.astype"),
        (np.eye(2, dtype=object), TypeError, "A must hold numbers; got dtype object"),
        (torch.tensor(3.0), ValueError, r"matrix must be square and not empty; got shape \(\)"),
    ],
)
def test_what_is_no_real_matrix_is_refused(matrix: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        aslinearoperator(matrix)


def test_a_matrix_with_a_layout_takes_vectors_as_dicts() -> None:
    layout = hp.vectors.ParameterLayout(("w", "b"), (torch.Size([2, 2]), torch.Size([2])))
    matrix = symmetric(eigenvalues("indefinite", 6), seed=0)
    A = aslinearoperator(matrix, layout=layout)
    v = torch.arange(6.0, dtype=torch.float64)
    products = A @ layout.unflatten(v)
    assert torch.allclose(torch.cat([products["w"].reshape(-1), products["b"]]), matrix @ v)
    assert torch.equal(A.block("w").matvecs(torch.eye(4, dtype=torch.float64)), matrix[:4, :4])
    with pytest.raises(TypeError, match="layout must be a ParameterLayout; got str"):
        aslinearoperator(matrix, layout="w")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layout must have 5 entries"):
        aslinearoperator(np.eye(5), layout=layout)
