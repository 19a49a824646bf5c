"""The diagonal against the dense oracle."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import SPECTRA, Plain, SumOperator, eigenvalues, symmetric

from hessprobe.errors import NumericalWarning
from hessprobe.estimators import diagonal
from hessprobe.operators import DenseOperator


def z_scores(A: torch.Tensor, **options: object) -> torch.Tensor:
    found = diagonal(Plain(A), **options)
    return (found.values - A.diagonal()) / found.std_error


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize(("method", "n"), [("hutchinson", 64), ("xdiag", 32)])
def test_every_entry_agrees_within_its_error(kind: str, method: str, n: int) -> None:
    z = z_scores(symmetric(eigenvalues(kind)), method=method, n_probes=n, seed=1)
    assert float(z.abs().max()) < 5.5
    # The variance of XDiag is taken at its largest, twice that of samples which do not share a sketch.
    assert (0.75 if method == "hutchinson" else 0.6) < float(z.square().mean().sqrt()) < 1.35
    assert abs(float(z.mean())) < 0.5


def test_the_error_is_that_of_the_formula() -> None:
    A = symmetric(eigenvalues("indefinite"))
    found = diagonal(Plain(A), method="hutchinson", n_probes=400)
    truth = ((A.square().sum(1) - A.diagonal().square()) / 400).sqrt()
    assert float((found.std_error / truth).mean()) == pytest.approx(1.0, rel=0.02)
    assert float((found.std_error / truth).std()) < 0.06
    low, high = found.interval(0.9)
    inside = ((low <= A.diagonal()) & (A.diagonal() <= high)).double().mean()
    assert 0.83 < float(inside) < 0.96


def test_diagonal_matrices_are_exact_under_rademacher_probes() -> None:
    A = torch.diag(torch.linspace(-1, 5, 50).double())
    found = diagonal(Plain(A), method="hutchinson", n_probes=2)
    assert torch.equal(found.values, A.diagonal())
    assert torch.equal(found.std_error, torch.zeros(50).double())
    low, high = found.interval()
    assert torch.equal(low, high)


def test_terms_surrogate_and_deflation() -> None:
    G = torch.stack([symmetric(eigenvalues("outliers").abs(), seed) for seed in range(4)])
    R = torch.stack([0.05 * symmetric(eigenvalues("indefinite"), 30 + seed) for seed in range(4)])
    A = SumOperator(G + R, surrogate=SumOperator(G, knows_diagonal=True))
    plain = diagonal(A, n_probes=6, method="hutchinson", control_variate=False)
    found = diagonal(A, n_probes=6, method="hutchinson")
    rows = torch.linalg.eigh(A.total).eigenvectors[:, -8:].T
    both = diagonal(A, n_probes=6, method="hutchinson", deflate=rows)
    only = diagonal(A, n_probes=6, method="hutchinson", deflate=rows, control_variate=False)
    for estimate in (plain, found, both, only):
        z = (estimate.values - A.total.diagonal()) / estimate.std_error
        assert 0.8 < float(z.square().mean().sqrt()) < 1.4
        assert 4 <= float(estimate.df.mean()) <= 26  # 4 (6 + 1) - 2
    assert float(found.std_error.mean()) < float(plain.std_error.mean()) / 10
    assert float(only.std_error.mean()) < float(plain.std_error.mean()) / 1.2
    assert (plain.matvecs, found.matvecs, both.matvecs) == pytest.approx((6, 6 + 6 + 2, 6 + 6 + 2 + 16))
    assert found.method == "hutchinson+surrogate"
    assert found.details == {"surrogate": True}


def test_auto_exact_and_cost() -> None:
    A = symmetric(eigenvalues("flat"))
    assert diagonal(DenseOperator(A)).matvecs == 0
    assert diagonal(Plain(A), n_probes=200).method == "exact"
    assert diagonal(Plain(A), n_probes=8).method == "hutchinson"
    found = diagonal(Plain(A), method="exact")
    torch.testing.assert_close(found.values, A.diagonal())
    assert found.matvecs == 200
    assert math.isinf(float(found.df.min()))
    assert diagonal(Plain(A), method="xdiag", n_probes=20).matvecs == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "xtrace"}, "method must be one of"),
        ({"method": "xdiag", "deflate": torch.eye(200)[:1].double()}, "method must be 'hutchinson' or 'auto'"),
        ({"n_probes": 1}, "n_probes must be"),
        ({"control_variate": "no"}, "control_variate must be one of"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagonal(Plain(symmetric(eigenvalues("flat"))), **options)


@pytest.mark.parametrize("rtol", [0.2, 0.05])
def test_a_tolerance_holds_for_the_whole_vector(rtol: float) -> None:
    matrix = symmetric(eigenvalues("flat", 200))
    truth = matrix.diagonal()
    errors = []
    for seed in range(20):
        estimate = diagonal(Plain(matrix), rtol=rtol, seed=seed, method="hutchinson")
        assert estimate.flags == ()
        assert 1.96 * estimate.norm_error <= rtol * float(estimate.values.norm())
        errors.append(float((estimate.values - truth).norm()) / estimate.norm_error)
        assert float((estimate.values - truth).norm()) < rtol * float(truth.norm())
    # norm_error is the root mean square of the error.
    assert torch.tensor(errors).square().mean().sqrt().item() == pytest.approx(1.0, abs=0.1)


def test_a_tolerance_costs_nothing_where_the_diagonal_is_known() -> None:
    known = diagonal(DenseOperator(symmetric(eigenvalues("flat", 50))), rtol=1e-6)
    assert known.method == "exact"
    assert known.norm_error == 0.0
    assert diagonal(Plain(symmetric(eigenvalues("flat", 60))), rtol=1e-4).method == "exact"


def test_a_cut_tolerance_says_so() -> None:
    matrix = Plain(symmetric(eigenvalues("flat", 200)))
    with pytest.warns(NumericalWarning, match="max_probes must be larger for this tolerance; got 12"):
        estimate = diagonal(matrix, rtol=0.01, max_probes=12, method="hutchinson")
    assert estimate.flags == ("tolerance-missed", "budget-exhausted")
    with pytest.raises(ValueError, match="n_probes must be None where rtol or atol is given; got 4"):
        diagonal(matrix, rtol=0.01, n_probes=4)
    with pytest.raises(ValueError, match="n_probes must be given for method 'xdiag'; got a tolerance"):
        diagonal(matrix, rtol=0.01, method="xdiag")
