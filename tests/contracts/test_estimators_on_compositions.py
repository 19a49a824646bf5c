"""Sums, multiples and blocks of operators through every estimator: the right number, its products counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import nets
import pytest
import torch
from stats import assert_agrees
from torch import Tensor

import hessprobe as hp
from hessprobe.estimate import Estimate
from hessprobe.objective import EmpiricalRisk
from hessprobe.operators import Combination, Congruence, Counted, LinearOperator, Shifted

EPS = 0.05


@cache
def _risk() -> EmpiricalRisk:
    return nets.mlp().risk()


@cache
def _dense() -> tuple[Tensor, Tensor]:
    return nets.full_hessian(_risk()), nets.full_gauss_newton(_risk())


def _hessian() -> hp.Hessian:
    return hp.Hessian(_risk(), engine="double_backward")


def _gauss_newton() -> hp.GaussNewton:
    return hp.GaussNewton(_risk(), engine="double_backward")


WEIGHTS = [*range(30), *range(35, 55)]
MADE: dict[
    str, tuple[Callable[[LinearOperator, LinearOperator], LinearOperator], Callable[[Tensor, Tensor], Tensor]]
] = {
    "2 H": (lambda H, G: 2 * H, lambda H, G: 2 * H),
    "-H": (lambda H, G: -H, lambda H, G: -H),
    "H + G": (lambda H, G: H + G, lambda H, G: H + G),
    "H - G": (lambda H, G: H - G, lambda H, G: H - G),
    "3 G": (lambda H, G: 3 * G, lambda H, G: 3 * G),
    "weights of H": (lambda H, G: H.block("*.weight"), lambda H, G: H[WEIGHTS][:, WEIGHTS]),
    "H + 0.3 I": (lambda H, G: Shifted(H, 0.3), lambda H, G: H + 0.3 * torch.eye(len(H)).double()),
}
QUESTIONS: dict[str, tuple[Callable[[LinearOperator], Estimate], Callable[[Tensor], float]]] = {
    "trace": (lambda A: hp.trace(A, n_probes=48, seed=1, method="hutchinson"), lambda M: float(M.trace())),
    "trace to a tolerance": (lambda A: hp.trace(A, rtol=0.3, seed=1, method="hutchinson"), lambda M: float(M.trace())),
    "hutch++": (lambda A: hp.trace(A, n_probes=48, seed=1, method="hutch++"), lambda M: float(M.trace())),
    "xtrace": (lambda A: hp.trace(A, n_probes=24, seed=1, method="xtrace"), lambda M: float(M.trace())),
    "frobenius": (lambda A: hp.frobenius_norm(A, n_probes=48, seed=2), lambda M: float(M.norm())),
    "logdet": (
        lambda A: hp.logdet(A, n_probes=24, seed=3, method="slq", **({"shift": EPS} if A.psd else {"eps": EPS})),
        lambda M: float((torch.linalg.eigvalsh(M) ** 2 + EPS**2).log().sum() / 2),
    ),
}


def _truth(question: str, name: str, A: LinearOperator, M: Tensor) -> float:
    if question == "logdet" and A.psd:
        return float((torch.linalg.eigvalsh(M) + EPS).log().sum())
    return QUESTIONS[question][1](M)


@pytest.mark.parametrize("name", list(MADE))
@pytest.mark.parametrize("question", list(QUESTIONS))
def test_estimates_agree_and_count(question: str, name: str) -> None:
    make, matrix = MADE[name]
    H, G = Counted(_hessian()), Counted(_gauss_newton())
    A, M = make(H, G), matrix(*_dense())
    truth = _truth(question, name, A, M)
    estimate = QUESTIONS[question][0](A)
    precision = {"H - G": 4.0}.get(name, 1.0) * max(abs(truth), float(M.norm()))
    assert_agrees(estimate, truth, precision)
    # One product with H + G is one with each; the surrogate's diagonal is made of two, and costs both.
    known = _gauss_newton().exact_diagonal() if question == "trace" and name in ("H + G", "H - G") else None
    second = 0.0 if known is None else known[1]
    assert estimate.matvecs == pytest.approx(max(H.matvec_count, G.matvec_count) + second)


@pytest.mark.parametrize("name", list(MADE))
def test_eigenpairs_and_density(name: str) -> None:
    make, matrix = MADE[name]
    H, G = Counted(_hessian()), Counted(_gauss_newton())
    A, M = make(H, G), matrix(*_dense())
    values = torch.linalg.eigvalsh(M)
    pairs = hp.eigsh(A, 2, "both", tol=1e-8, seed=4)
    torch.testing.assert_close(pairs.values, values[[-1, -2, 1, 0]], rtol=1e-7, atol=1e-9)
    assert max(H.matvec_count, G.matvec_count) == pytest.approx(pairs.matvecs)
    density = hp.spectral_density(A, method="slq", n_probes=8, steps=24, seed=4)
    low, high = density.band(0.999)
    cdf = (values[None] <= density.grid[:, None]).double().mean(1)
    assert float(((low - 1e-9 <= cdf) & (cdf <= high + 1e-9)).double().mean()) > 0.99


@pytest.mark.parametrize("name", list(MADE))
def test_diagonals(name: str) -> None:
    make, matrix = MADE[name]
    A, M = make(_hessian(), _gauss_newton()), matrix(*_dense())
    torch.testing.assert_close(A.diagonal(method="exact").values, M.diagonal(), rtol=1e-9, atol=1e-12)
    sampled = A.diagonal(n_probes=64, seed=5)
    assert float((sampled.values - M.diagonal()).norm()) < 0.5 * float(M.norm())


def _same(scaled: Estimate, plain: Estimate, factor: float) -> None:
    assert scaled.value == pytest.approx(factor * plain.value, rel=1e-9)
    assert scaled.std_error == pytest.approx(abs(factor) * plain.std_error, rel=1e-6)
    assert scaled.matvecs == pytest.approx(plain.matvecs)
    assert scaled.method == plain.method


@pytest.mark.parametrize("c", [2.0, -0.5])
@pytest.mark.parametrize("size", [{"n_probes": 16}, {"rtol": 0.05}])
def test_a_multiple_is_measured_as_its_operator(c: float, size: dict[str, float]) -> None:
    # Operators of their own: what one has found out (a diagonal) is free the next time.
    trace, multiple = hp.trace(_hessian(), seed=6, **size), hp.trace(c * _hessian(), seed=6, **size)
    _same(multiple, trace, c)
    if trace.errors.data is not None:
        assert multiple.errors.data == pytest.approx(abs(c) * trace.errors.data, rel=1e-6)
    _same(hp.frobenius_norm(c * _hessian(), seed=6, **size), hp.frobenius_norm(_hessian(), seed=6, **size), abs(c))


def test_surrogates_follow() -> None:
    G, dense_G = _gauss_newton(), _dense()[1]
    eye, scale = torch.eye(G.dim).double(), torch.linspace(0.5, 2.0, G.dim).double()
    one = G.exact_diagonal_cost()
    assert one > 0
    for A, twin, cost in (
        (2 * _hessian(), 2 * dense_G, one),
        (_hessian() + _gauss_newton(), 2 * dense_G, 2 * one),
        (Shifted(_hessian(), 0.3), dense_G + 0.3 * eye, one),
        (_hessian().block("0.*"), dense_G[:35, :35], one),
        (Congruence(_hessian(), scale), scale[:, None] * dense_G * scale, one),
    ):
        assert A.surrogate is not None
        torch.testing.assert_close(A.surrogate.to_dense(), twin, rtol=1e-9, atol=1e-12)
        assert A.surrogate.n_terms == A.n_terms
        # What the diagonal is about to cost, not nothing: the choice of a control variate rests on it.
        assert A.surrogate.exact_diagonal_cost() == pytest.approx(cost)
        known = A.surrogate.exact_diagonal()
        assert known is not None
        torch.testing.assert_close(known[0], twin.diagonal(), rtol=1e-9, atol=1e-12)
        assert known[1] == pytest.approx(cost)
    assert (G + G).surrogate is None
    draws = range(8)
    first, double = G.sampled_trace(draws, 1), (2 * G).sampled_trace(draws, 1)
    shifted = Shifted(G, 0.3).sampled_trace(draws, 1)
    assert first is not None
    assert double is not None
    assert shifted is not None
    assert (double.value, double.std_error) == pytest.approx((2 * first.value, 2 * first.std_error))
    assert shifted.value == pytest.approx(first.value + 0.3 * G.dim)
    assert (G + _gauss_newton()).sampled_trace(draws, 1) is None


def test_operators_of_unlike_terms_are_one_term() -> None:
    H = _hessian()
    mixed = H + hp.aslinearoperator(torch.eye(H.dim).double())
    assert (H.n_terms, mixed.n_terms, (H + _gauss_newton()).n_terms) == (4, 1, 4)
    assert_agrees(hp.trace(mixed, n_probes=32), float(_dense()[0].trace()) + H.dim, 4.0)


def test_making_a_composition_makes_no_product() -> None:
    H = hp.Hessian(_risk())
    made = [2 * H, H + H, H.block("0.*"), Shifted(H, 1.0), Combination([H], [1.0])]
    assert H.engines[0] == "auto"
    assert all(A.is_exact for A in made)
    assert H.engines[0] != "auto"
    rough = hp.Hessian(_risk(), engine="finite_difference")
    assert not any(A.is_exact for A in (2 * rough, rough + _gauss_newton(), rough.block("0.*"), Shifted(rough, 1.0)))
