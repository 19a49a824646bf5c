"""Every claim about estimators must fail for an estimator or a formula that is wrong."""

from __future__ import annotations

import math

import pytest
import torch

from hessprobe import estimators
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.krylov.quadrature import QuadratureRule, gauss
from hessprobe.validation.claim import Finding
from hessprobe.validation.claims import estimators_coverage, estimators_exact, estimators_mean
from hessprobe.validation.matrices import SPECTRA, Hidden, eigenvalues, leading, named, rotated
from hessprobe.vectors import ProbeStream

pytestmark = pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")


def failed(finding: Finding) -> set[str]:
    return {part.label for part in finding.parts if not part.holds}


def off(estimate, share: float):
    """An estimator whose values are too large by a share of the truth behind them."""
    return lambda A, **how: (found := estimate(A, **how)).with_(value=found.value * (1 + share))


def bars(estimate, factor: float):
    def changed(A, **how):
        found = estimate(A, **how)
        return found.with_(errors=ErrorParts(found.errors.probe * factor, None, found.errors.solver))

    return changed


def test_a_biased_trace_fails() -> None:
    labels = failed(estimators_mean.trace_mean(24, off(estimators.trace, 0.05)))
    assert {"XTrace, sphere, decaying", "deflated, outliers", "Hutchinson, flat"} <= labels


def test_a_biased_norm_is_held_against_its_bound() -> None:
    labels = failed(estimators_mean.frobenius_mean(16, off(estimators.frobenius_norm, -0.02)))
    assert "norm, deflated, outliers" in labels


def test_a_diagonal_with_swapped_entries_fails_though_its_sum_is_right() -> None:
    def shifted(A, **how):
        found = estimators.diagonal(A, **how)
        return estimators.DiagonalEstimate(found.values.roll(1), found.std_error, found.df, 0.0, 0, "")

    labels = failed(estimators_mean.diagonal_mean(40, shifted))
    assert any("signs" in label for label in labels)
    assert not any("sum" in label for label in labels)


def test_a_biased_logdet_fails() -> None:
    labels = failed(estimators_mean.logdet_mean(8, off(estimators.logdet, 0.05)))
    assert "shift 0.1, decaying" in labels


def test_a_forgotten_diagonal_in_the_variance_fails() -> None:
    def forgetful(law: str, A: torch.Tensor) -> float:
        return 2 * float(A.square().sum()) if law == "rademacher" else estimators_mean.form_variance(law, A)

    labels = failed(estimators_mean.one_probe(1500, forgetful))
    assert "w'Aw, rademacher, flat" in labels
    assert not any("gaussian" in label for label in labels)


def test_variance_formulas_by_enumeration_of_all_signs() -> None:
    A = rotated(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64))
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    forms, squares = ((corners @ A) * corners).sum(1), (corners @ A).square().sum(1)
    assert float(forms.var(correction=0)) == pytest.approx(estimators_mean.form_variance("rademacher", A))
    assert float(squares.var(correction=0)) == pytest.approx(estimators_mean.square_variance("rademacher", A))


def test_shared_probes_do_not_pass_for_fresh_ones() -> None:
    finding = estimators_mean.fresh_probes(60, lambda A, **how: estimators.trace(Hidden(A.total), **how))
    assert failed(finding) == {"own probes for every term, variance over its formula"}


def test_weights_that_are_slightly_off_fail_the_exactness_of_the_rule() -> None:
    def skew(alphas: torch.Tensor, betas: torch.Tensor) -> QuadratureRule:
        good = gauss(alphas, betas)
        return QuadratureRule(good.nodes, good.weights.roll(1), good.vectors)

    labels = failed(estimators_exact.quadrature(4, skew))
    assert {f"Gauss, {kind}, largest error to degree 7" for kind in SPECTRA} <= labels


def test_too_small_a_sketch_is_not_exact() -> None:
    def smaller(A, **how):
        count = how["n_probes"]
        return estimators.trace(A, **{**how, "n_probes": max(count - 1, 2)} if how["method"] == "xtrace" else how)

    labels = failed(estimators_exact.low_rank(2, smaller))
    assert "largest error, rank 9, XTrace, 10 probes" in labels
    assert not any("Hutch++" in label for label in labels)


@pytest.mark.parametrize("factor", [0.5, 2.5])
def test_error_bars_of_the_wrong_size_fail(factor: float) -> None:
    finding = estimators_coverage.trace_coverage(60, bars(estimators.trace, factor), ("flat",))
    labels = failed(finding)
    assert "reported over real variance, deflated, 20, flat" in labels
    if factor < 1:
        assert "with the truth, deflated, 20, flat" in labels


def test_a_flagged_interval_claims_nothing() -> None:
    A = named("outliers", 60)
    found = [
        estimators.trace(A, n_probes=8, method="hutchinson", seed=s).with_(flags=("heavy-tailed",)) for s in range(4)
    ]
    (part,) = estimators_coverage.covered("x", math.inf, found)
    assert (part.kind, part.measured) == ("observed", 0.0)
    least, _ = estimators_coverage.covered("x", math.inf, [one.with_(flags=()) for one in found])
    assert not least.holds


def test_intervals_that_never_miss_are_too_wide() -> None:
    least, missed = estimators_coverage.covered("x", 0.0, 900 * [Estimate(0.5, ErrorParts(probe=1.0))])
    assert (least.holds, missed.holds) == (True, False)


def test_named_matrices_are_what_they_are_called() -> None:
    for kind in SPECTRA:
        A = named(kind, 40)
        assert torch.allclose(torch.linalg.eigvalsh(A.total), eigenvalues(kind, 40), atol=1e-12)
        assert A.exact_diagonal() is None
    with pytest.raises(ValueError, match="kind must be one of outliers"):
        eigenvalues("smooth", 40)
    terms = Hidden(torch.stack([torch.eye(3).double(), 2 * torch.eye(3).double()]), [0.25, 0.75])
    assert [weight for weight, _ in terms.terms()] == [0.25, 0.75]
    probe = ProbeStream(3).block(0, 1)
    assert torch.allclose(terms.matvecs(probe), 1.75 * probe)
    top = leading(named("outliers", 40).total, 1)
    assert float(named("outliers", 40).quadratic_forms(top)) == pytest.approx(50.0)
