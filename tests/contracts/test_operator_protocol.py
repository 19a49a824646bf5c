"""Every public operator is used like a matrix of NumPy or SciPy, and so is everything that is made of operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache

import nets
import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

import hessprobe as hp
from hessprobe import hvp, operators
from hessprobe.objective import EmpiricalRisk
from hessprobe.operators import LinearOperator

ENGINE = {"engine": "double_backward"}
FIRST = slice(0, 30)


@cache
def _risk() -> EmpiricalRisk:
    return nets.mlp().risk()


@cache
def _dense() -> dict[str, Tensor]:
    H, G = nets.full_hessian(_risk()), nets.full_gauss_newton(_risk())
    return {"H": H, "G": G}


def _scale() -> Tensor:
    return torch.linspace(0.5, 2.0, _risk().dim, dtype=torch.float64)


def _basis() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(3, _risk().dim, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(rows.T).Q.T.contiguous()


def _order() -> Tensor:
    return torch.randperm(_risk().dim, generator=torch.Generator().manual_seed(2))


def _projected(A: Tensor) -> Tensor:
    P = torch.eye(len(A), dtype=torch.float64) - _basis().T @ _basis()
    return P @ A @ P


def _two_blocks(A: Tensor) -> Tensor:
    kept = torch.zeros_like(A)
    for part in (FIRST, slice(30, len(A))):
        kept[part, part] = A[part, part]
    return kept


def _reordered(A: Tensor) -> Tensor:
    P = torch.eye(len(A), dtype=torch.float64)[_order()]
    return P.T @ A @ P


def _hessian() -> hp.Hessian:
    return hp.Hessian(_risk(), **ENGINE)


# The class, how one is made, its matrix, and whether it is known to be positive semidefinite.
Row = tuple[Callable[[], LinearOperator], Callable[[Tensor, Tensor], Tensor], bool]
ROWS: dict[str, Row] = {
    "Hessian": (_hessian, lambda H, G: H, False),
    "GaussNewton": (lambda: hp.GaussNewton(_risk(), **ENGINE), lambda H, G: G, True),
    # Of a cross-entropy the exact Fisher matrix is the Gauss-Newton matrix.
    "Fisher": (lambda: hp.Fisher(_risk(), **ENGINE), lambda H, G: G, True),
    "FunctionalPart": (lambda: hvp.FunctionalPart(_risk(), **ENGINE), lambda H, G: H - G, False),
    "Combination": (
        lambda: operators.Combination([_hessian(), hp.GaussNewton(_risk(), **ENGINE)], [2.0, -0.5]),
        lambda H, G: 2 * H - 0.5 * G,
        False,
    ),
    "Shifted": (
        lambda: operators.Shifted(_hessian(), 0.7),
        lambda H, G: H + 0.7 * torch.eye(len(H), dtype=torch.float64),
        False,
    ),
    "Deflated": (lambda: operators.Deflated(_hessian(), _basis()), lambda H, G: _projected(H), False),
    "Block": (lambda: operators.Block(_hessian(), FIRST), lambda H, G: H[FIRST, FIRST], False),
    "BlockDiagonal": (
        lambda: operators.BlockDiagonal(_hessian(), [FIRST, slice(30, _risk().dim)]),
        lambda H, G: _two_blocks(H),
        False,
    ),
    "Congruence": (
        lambda: operators.Congruence(_hessian(), _scale()),
        lambda H, G: _scale()[:, None] * H * _scale(),
        False,
    ),
    "Counted": (lambda: operators.Counted(_hessian()), lambda H, G: H, False),
    "DenseOperator": (lambda: operators.DenseOperator(_dense()["H"]), lambda H, G: H, False),
    "WrappedOperator": (
        lambda: operators.aslinearoperator(scipy.sparse.linalg.aslinearoperator(_dense()["H"].numpy())),
        lambda H, G: H,
        False,
    ),
    "Grouped": (
        lambda: operators.Grouped(_hessian(), _order(), {"all": slice(0, len(_order()))}),
        lambda H, G: H[_order()][:, _order()],
        False,
    ),
    # All of them are the whole.
    "SomeTerms": (lambda: operators.SomeTerms(_hessian(), range(_hessian().n_terms)), lambda H, G: H, False),
    "Reordered": (lambda: operators.Reordered(_hessian(), _order()), lambda H, G: _reordered(H), False),
}


def _row(name: str) -> tuple[LinearOperator, Tensor]:
    make, matrix, _ = ROWS[name]
    return make(), matrix(_dense()["H"], _dense()["G"])


def _close(found: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


def test_every_public_operator_has_a_row() -> None:
    public = {
        name
        for module in (operators, hvp, hp)
        for name in module.__all__
        if inspect.isclass(each := getattr(module, name)) and issubclass(each, LinearOperator)
    }
    # Fisher is a function that returns a GaussNewton of another risk.
    assert public - {"LinearOperator"} == set(ROWS) - {"Fisher"}
    assert all(repr(ROWS[name][0]()).startswith(f"{name}(") for name in set(ROWS) - {"Counted"})


@pytest.mark.parametrize("name", list(ROWS))
def test_products_are_those_of_the_matrix(name: str) -> None:
    A, M = _row(name)
    d = A.dim
    generator = torch.Generator().manual_seed(3)
    v, V = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((d,), (d, 3)))
    assert A.shape == (d, d) == tuple(M.shape)
    assert (A.dtype, A.device.type) == (torch.float64, "cpu")
    _close(A @ v, M @ v)
    _close(A @ V, M @ V)
    _close(v @ A, v @ M)
    _close(V.T @ A, V.T @ M)
    _close(A.T @ v, M @ v)
    _close(A.matvecs(V.T.contiguous()), V.T @ M)
    _close(A.to_dense(), M)
    for array in (v.numpy(), V.numpy()):
        assert isinstance(A @ array, np.ndarray)
        np.testing.assert_allclose(A @ array, M.numpy() @ array, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(array.T @ A, array.T @ M.numpy(), rtol=1e-9, atol=1e-12)
    assert A.quadratic(v).shape == ()
    _close(A.quadratic(v), v @ M @ v)
    _close(A.quadratic(V), torch.einsum("dk,de,ek->k", V, M, V))
    _close(A.quadratic_forms(V.T.contiguous()), torch.einsum("dk,de,ek->k", V, M, V))
    theirs = A.to_scipy()
    assert theirs.shape == (d, d)
    np.testing.assert_allclose(theirs @ V.numpy(), (M @ V).numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(theirs.T @ v.numpy(), (M @ v).numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(ROWS))
def test_algebra_is_that_of_the_matrix(name: str) -> None:
    A, M = _row(name)
    B, N = operators.DenseOperator(torch.eye(A.dim, dtype=torch.float64), psd=True), torch.eye(A.dim).double()
    made = {
        "2 A": (2 * A, 2 * M),
        "A 2": (A * 2, 2 * M),
        "numpy": (np.float64(0.5) * A, 0.5 * M),
        "tensor": (torch.tensor(0.5) * A, 0.5 * M),
        "A / 4": (A / 4, M / 4),
        "-A": (-A, -M),
        "A + B": (A + B, M + N),
        "A - B": (A - B, M - N),
        "both": (3 * (A - 2 * B) / 2 - (A + B), 3 * (M - 2 * N) / 2 - (M + N)),
        "A + A": (A + A, 2 * M),
        "block": (A.block(slice(3, 9)), M[3:9, 3:9]),
        "blocks": (A.block([slice(9, 12), slice(0, 4)]), M[[0, 1, 2, 3, 9, 10, 11]][:, [0, 1, 2, 3, 9, 10, 11]]),
    }
    for label, (operator, matrix) in made.items():
        torch.testing.assert_close(operator.to_dense(), matrix, rtol=1e-9, atol=1e-12, msg=label)
        v = torch.ones(operator.dim, dtype=torch.float64)
        torch.testing.assert_close(operator.quadratic(v), matrix.sum(), rtol=1e-9, atol=1e-12, msg=label)
        terms = [(weight, term.to_dense()) for weight, term in operator.terms()]
        assert len(terms) == operator.n_terms
        torch.testing.assert_close(sum(w * term for w, term in terms), matrix, rtol=1e-9, atol=1e-12, msg=label)
        known = operator.exact_diagonal()
        if known is not None:
            torch.testing.assert_close(known[0], matrix.diagonal(), rtol=1e-9, atol=1e-12, msg=label)
            assert operator.exact_diagonal_cost() >= 0


@pytest.mark.parametrize("name", list(ROWS))
def test_positive_semidefinite_is_claimed_only_where_it_is_known(name: str) -> None:
    A, M = _row(name)
    psd = ROWS[name][2]
    assert A.psd is psd
    if psd:
        assert float(torch.linalg.eigvalsh(M)[0]) > -1e-12
    H = operators.DenseOperator(-torch.eye(A.dim, dtype=torch.float64))
    assert (2 * A).psd is psd
    assert (A + A).psd is psd
    assert (A / 2).psd is psd
    assert A.block(slice(0, 2)).psd is psd
    assert not (-A).psd
    assert not (-2 * A).psd
    assert not (A - A / 2).psd or psd
    assert not (A - 2 * A).psd
    assert not (A + H).psd
    assert (A + 0 * H).psd is psd
    assert operators.Shifted(A, 1.0).psd is psd
    assert not operators.Shifted(A, -1.0).psd


def test_cheap_quadratic_forms_are_known_of_compositions() -> None:
    H, G = _hessian(), hp.GaussNewton(_risk(), **ENGINE)
    assert (2 * G).cheap_forms
    assert (G + G / 2).cheap_forms
    assert operators.Shifted(G, 1.0).cheap_forms
    assert not (H + G).cheap_forms
    assert not operators.Shifted(H, 1.0).cheap_forms


NETWORKS = ["Hessian", "GaussNewton", "Fisher", "FunctionalPart", "Combination", "Shifted", "Deflated"]
NETWORKS += ["BlockDiagonal", "Congruence", "Counted"]


@pytest.mark.parametrize("name", NETWORKS)
def test_vectors_may_be_shaped_like_the_parameters(name: str) -> None:
    A, M = _row(name)
    layout = _risk().layout
    assert A.layout == layout
    flat = torch.randn(A.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    named = layout.unflatten(flat)
    assert {key: part.shape for key, part in named.items()} == {
        key: parameter.shape for key, parameter in nets.mlp().module.named_parameters()
    }
    mixed = dict(reversed(named.items()))
    _close(layout.flatten(mixed), flat)
    product = A @ mixed
    assert isinstance(product, dict)
    _close(layout.flatten(product), M @ flat)
    _close(layout.flatten(mixed @ A), M @ flat)
    for kind in (list, tuple):
        parts = A @ kind(named.values())
        assert isinstance(parts, kind)
        assert [part.shape for part in parts] == list(layout.shapes)
        _close(torch.cat([part.reshape(-1) for part in parts]), M @ flat)
    _close(A.quadratic(named), flat @ M @ flat)
    first = A.block("0.*")
    assert first.layout is not None
    assert first.layout.names == ("0.weight", "0.bias")
    inside = {key: named[key] for key in first.layout.names}
    where = slice(0, first.dim)
    _close(first.layout.flatten(first @ inside), M[where, where] @ flat[where])


def test_blocks_are_found_by_name() -> None:
    H, M = _row("Hessian")
    assert H.blocks == {
        "0.weight": slice(0, 30),
        "0.bias": slice(30, 35),
        "2.weight": slice(35, 55),
        "2.bias": slice(55, 59),
    }
    kept = [*range(30), *range(35, 55)]
    weights = H.block("*.weight")
    _close(weights.to_dense(), M[kept][:, kept])
    assert weights.blocks == {"0.weight": slice(0, 30), "2.weight": slice(30, 50)}
    _close(
        H.block(["2.bias", "0.bias"]).to_dense(),
        M[[*range(30, 35), *range(55, 59)]][:, [*range(30, 35), *range(55, 59)]],
    )
    _close(weights.block("2.weight").to_dense(), M[35:55, 35:55])
    assert H.block(["0.weight", "0.*"]).dim == 35
    assert H.block([slice(0, 15), slice(15, 30)]).blocks == {"0.weight": slice(0, 30)}
    assert H.block(slice(0, 31)).layout is None
    assert H.block(slice(0, 31)).blocks == {"0.weight": slice(0, 30)}
    with pytest.raises(ValueError, match=r"the name of a parameter; got '0.weights'. Did you mean '0.weight'"):
        H.block("0.weights")
    with pytest.raises(ValueError, match=r"where must not overlap; got \(0, 5\) and \(4, 6\)"):
        H.block([slice(0, 5), slice(4, 6)])
    with pytest.raises(ValueError, match="where must name a part of the operator; got none"):
        H.block([])


def test_one_product_in_the_form_of_its_vector() -> None:
    risk, M = _risk(), _dense()["H"]
    flat = torch.randn(risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    _close(hp.hvp(risk, flat), M @ flat)
    _close(hp.hvp(risk, flat[:, None].repeat(1, 2)), (M @ flat)[:, None].repeat(1, 2))
    parameters = list(nets.mlp().module.parameters())
    vector = [torch.ones_like(each) for each in parameters]
    for one, truth in zip(hp.hvp(risk, vector), risk.layout.unflatten(M.sum(1)).values(), strict=True):
        _close(one, truth)
    assert set(hp.hvp(risk, risk.layout.unflatten(flat))) == set(risk.layout.names)
    assert list(inspect.signature(hp.hvp).parameters) == ["risk", "v", "engine", "memory"]


def test_a_large_matrix_is_not_written_out() -> None:
    A = _risk_operator_of(30_000)
    with pytest.raises(ValueError, match=r"max_dim = 20,000 .*; got 30,000, which takes 30,000 products and 6.71"):
        A.to_dense()
    with pytest.raises(ValueError, match="at most max_dim = 10 "):
        _hessian().to_dense(max_dim=10)
    with pytest.raises(ValueError, match="max_dim must be an integer >= 1; got 0"):
        _hessian().to_dense(max_dim=0)


def _risk_operator_of(dim: int) -> LinearOperator:
    return operators.aslinearoperator(scipy.sparse.linalg.aslinearoperator(scipy.sparse.eye(dim)))


@pytest.mark.parametrize(
    ("use", "kind", "message"),
    [
        (lambda A: A @ A, TypeError, "x must be a vector or a matrix of vectors beside @; got Hessian"),
        (lambda A: A @ 2.0, TypeError, "x must be a vector .*; got float"),
        (
            lambda A: A * torch.ones(3),
            TypeError,
            "must be a number; got Tensor. Products with vectors are A @ v",
        ),
        (lambda A: A * "2", TypeError, "factor must be a number; got str"),
        (lambda A: A * float("nan"), ValueError, "factor must be a finite number; got nan"),
        (lambda A: A / 0, ValueError, "divisor must not be 0"),
        (lambda A: A + 1.0, TypeError, "must join two operators; got float. .* operators.Shifted"),
        (lambda A: torch.eye(59).double() + A, TypeError, "must join two operators; got Tensor. Wrap a matrix"),
        (lambda A: A - np.eye(59), TypeError, "must join two operators; got ndarray"),
        (lambda A: np.eye(59) - A, TypeError, "must join two operators; got ndarray"),
        (lambda A: A @ torch.ones(59), TypeError, "V must be a tensor of dtype torch.float64; got torch.float32"),
        (lambda A: A.quadratic(torch.ones(59)), TypeError, "V must be a tensor of dtype torch.float64"),
        (
            lambda A: A @ torch.ones(3, 59).double(),
            ValueError,
            r"must have shape \(59,\) or \(59, k\), one vector a col",
        ),
        (
            lambda A: torch.ones(59, 3).double() @ A,
            ValueError,
            r"must have shape \(59,\) or \(k, 59\), one vector a row",
        ),
        (lambda A: A @ torch.ones(58).double(), ValueError, r"got \(58,\)"),
        (lambda A: A @ {"0.weight": torch.ones(5, 6).double()}, ValueError, "every parameter; got none for '0.bias'"),
        (lambda A: A @ {"weight": torch.ones(5, 6).double()}, ValueError, "must name parameters; got 'weight'"),
        (lambda A: A @ [torch.ones(5, 6).double()], ValueError, "must hold 4 tensors, one a parameter; got 1"),
        (
            lambda A: A @ [torch.ones(6, 5).double(), *(torch.ones(n).double() for n in (5, 20, 4))],
            ValueError,
            r"must have a tensor of shape \(5, 6\) for '0.weight'; got shape \(6, 5\)",
        ),
        (
            lambda A: operators.DenseOperator(torch.eye(2)) @ {"a": torch.ones(2)},
            TypeError,
            "x must be a tensor .2,. for an operator that is not over a network's parameters; got dict",
        ),
        (lambda A: A + operators.DenseOperator(torch.eye(2)), ValueError, "operators must share dimension"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    use: Callable[[LinearOperator], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        use(_hessian())
