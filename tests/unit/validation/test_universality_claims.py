"""The claims about universality and about losses at a radius must fail where theory or code is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hessprobe.universal import evaluate_from_losses, represent, represent_sum
from hessprobe.universal.catalogue import cumulants
from hessprobe.validation import networks
from hessprobe.validation.claim import Finding
from hessprobe.validation.claims import radius, universality, universality_few
from hessprobe.validation.matrices import gauss_from_moments

pytestmark = pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")


def failed(finding: Finding) -> set[str]:
    return {part.label for part in finding.parts if not part.holds}


def test_a_representation_of_another_function_fails_at_every_dimension() -> None:
    finding = universality.exact_integrals(
        lambda f, d, *rest, **more: represent(lambda e: f(e) + 1e-3, d, *rest, **more)
    )
    labels = failed(finding)
    assert {f"max, d {d}: error over what rounding may do" for d in (2, 3, 5, 8, 12)} <= labels


def test_sampling_with_the_exact_covariance_notices_a_shift() -> None:
    def shifted(f, d, *rest, **more):
        return represent(lambda e: f(e) + 0.1, d, *rest, **more)

    labels = failed(universality.monte_carlo(1 << 14, shifted))
    assert "largest eigenvalue, d 2, 16384 draws" in labels


def test_the_error_of_one_draw_is_that_of_many() -> None:
    values = universality.spread(2)
    representation = represent(universality.FUNCTIONS["max"], 2, "monte-carlo", scale=2.0)
    one = universality.sampled_error(representation, values)
    generator = torch.Generator().manual_seed(0)
    t = 0.5 * (torch.randn(64, 4096, 2, generator=generator, dtype=torch.float64).square() @ values)
    found = [representation.measure.value(representation.measure.samples(row).mean(0))[0] for row in t]
    spread = float(torch.tensor(found, dtype=torch.float64).std()) * math.sqrt(4096)
    assert one == pytest.approx(spread, rel=0.3)
    assert universality.sampled_error(represent(universality.FUNCTIONS["max"], 3), universality.spread(3)) == math.inf


def test_wrong_moments_of_bernoulli_directions_fail() -> None:
    wrong = {0.0: (1.300, 2.480), 1.0: (1.220, 2.480)}
    labels = failed(universality.anisotropic(200, wrong))
    assert labels == {"E t^2, H_13 = 1, Bernoulli, enumerated"}


def test_a_gauss_rule_from_its_moments() -> None:
    nodes = torch.tensor([-0.5, 0.2, 0.9], dtype=torch.float64)
    weights = torch.tensor([0.3, 1.2, 0.5], dtype=torch.float64)
    found, shares = gauss_from_moments(torch.stack([(weights * nodes**k).sum() for k in range(6)]))
    assert torch.allclose(found, nodes, atol=1e-12)
    assert torch.allclose(shares, weights, atol=1e-12)


@pytest.fixture
def outliers(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    bulk = torch.linspace(-0.03, 0.03, 60, dtype=torch.float64)
    values = torch.cat([bulk, torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)]).sort().values
    monkeypatch.setattr(universality_few, "unit_spectrum", lambda hidden: values)
    return values


def test_raw_moments_are_those_of_the_form(outliers: Tensor) -> None:
    kappa = cumulants(universality_few.raw_moments(outliers, 4))
    truth = [math.factorial(k - 1) / 2 * float((outliers**k).sum()) for k in range(1, 5)]
    assert torch.allclose(kappa, torch.tensor(truth, dtype=torch.float64), rtol=1e-10)


def test_the_top_from_moments_and_a_measure_above_it(outliers: Tensor) -> None:
    assert universality_few.top_from_moments(8).verdict == "holds"
    low = failed(universality_few.top_from_moments(8, lambda n: universality_few.top_by_moments(n, 0.9)))
    assert "lambda_max - node, m 11" in low


def test_a_fit_that_is_not_the_function_breaks_its_bound(outliers: Tensor) -> None:
    assert universality_few.few_sums(8).verdict == "holds"
    labels = failed(universality_few.few_sums(8, lambda f, d, **how: represent_sum(lambda x: f(x) + 0.01, d, **how)))
    assert "sum of 1 - exp(-3l), m 8" in labels


def test_how_small_m_claims_nothing_and_says_what_was_found(outliers: Tensor) -> None:
    finding = universality_few.how_small(8)
    assert finding.verdict == "observed"
    assert "Smallest m for 1 %" in finding.note
    assert finding.curve is not None
    assert all(math.isfinite(y) for line in finding.curve.series for y in line.y)


def test_coefficients_along_a_line_are_derivatives() -> None:
    direction = torch.tensor([[0.7, -1.1]], dtype=torch.float64)
    lines = radius.Lines.of(radius.ASIDE, direction, torch.ones(1, dtype=torch.float64))
    point = torch.tensor(radius.ASIDE, dtype=torch.float64)
    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = radius.loss(point + step * direction[0])
    for k in range(1, 4):
        (value,) = torch.autograd.grad(value, step, create_graph=True)
        assert float(lines.coefficients[0, k]) == pytest.approx(value.item() / math.factorial(k), rel=1e-10)


def test_expansions_are_even_for_a_symmetric_law_only() -> None:
    even = radius.gaussian_lines(radius.MINIMUM).expansion(radius.SQUARE, False)
    odd = radius.skewed_lines(radius.MINIMUM).expansion(radius.TRACE, False)
    assert abs(even[1]) < 1e-9
    assert abs(odd[1]) > 0.1


def test_a_plain_difference_does_not_pass_for_an_antithetic_one() -> None:
    def plain(measure, risk, rho, **how):
        return evaluate_from_losses(measure, risk, rho, antithetic=False, **how)

    assert "squared norm, 1 levels, rho 0.1: error over rho^2" in failed(radius.richardson(16, plain))


def test_one_extrapolation_too_few_has_the_wrong_order() -> None:
    def lazy(measure, risk, rho, levels, **how):
        return evaluate_from_losses(measure, risk, rho, levels=min(levels, 2), **how)

    labels = failed(radius.richardson(32, lazy))
    assert "trace, 3 levels: order" in labels
    assert not any("2 levels" in label for label in labels)


def test_a_variance_without_the_gradient_of_the_trace_fails() -> None:
    def short(theta: Tensor) -> float:
        return float(radius.hessian(radius.loss, theta).square().sum() / 2)

    assert "Var t, rho 0.05" in failed(radius.off_manifold(short))


def test_losses_at_twice_the_radius_are_noticed() -> None:
    def wide(measure, risk, rho, **how):
        return evaluate_from_losses(measure, risk, 8 * rho, **how)

    assert failed(radius.from_losses(1000, wide))


def test_an_unreported_truncation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = networks.digits_network(2, 5)
    monkeypatch.setattr(radius, "digits_network", lambda hidden: found)

    def silent(measure, risk, rho, levels, **how):
        return evaluate_from_losses(measure, risk, rho, levels=1, **how)

    assert radius.reported_truncation(8).verdict == "holds"
    labels = failed(radius.reported_truncation(8, silent))
    assert "network, trace, rho 0.1: |value - S|" in labels
