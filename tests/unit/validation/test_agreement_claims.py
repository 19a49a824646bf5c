"""The claims that compare (phi, psi, mu) with the Hessian, and the network that they measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hessprobe.measures import measure_all
from hessprobe.universal import Spectrum, catalogue
from hessprobe.validation import networks
from hessprobe.validation.claim import Finding
from hessprobe.validation.claims import estimators_agreement as agreement

pytestmark = pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")


def failed(finding: Finding) -> set[str]:
    return {part.label for part in finding.parts if not part.holds}


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> networks.TrainedNetwork:
    found = networks.digits_network(2, 5)
    monkeypatch.setattr(agreement, "digits_network", lambda hidden: found)
    return found


def test_a_value_off_by_half_fails_on_its_side_only() -> None:
    def wrong(names, risk, settings):
        for result in measure_all(names, risk, settings):
            yield replace(result, estimate=result.estimate.scaled(1.5))

    labels = failed(agreement.analytic(128, wrong))
    assert "sum of 4 quadratics, trace, (phi, psi, mu)" in labels
    assert not any("from the Hessian" in label for label in labels)


def test_a_wrong_partner_fails_too() -> None:
    def wrong(names, risk, settings):
        for result in measure_all(names, risk, settings):
            yield replace(result, arrays={**result.arrays, "hessian_based": 1.1 * result.arrays["hessian_based"]})

    labels = failed(agreement.analytic(32, wrong))
    assert {"Rosenbrock, trace, from the Hessian", "Rosenbrock, log-exp, from the Hessian"} <= labels


def test_a_network_agrees_by_products_and_from_losses(small_network: networks.TrainedNetwork) -> None:
    finding = agreement.network(64, 0.02)
    assert not failed(finding)
    assert {part.label.split(",")[0] for part in finding.parts} == {"products", "losses at radius 0.02"}


def test_the_soft_maximum_reaches_its_bound_and_no_more(small_network: networks.TrainedNetwork) -> None:
    assert agreement.soft_maximum().verdict == "holds"
    labels = failed(agreement.soft_maximum(lambda b: catalogue.log_exp(b / 2)))
    assert "one eigenvalue above seven equal ones, b 30: the bound" in labels


def test_the_bound_of_the_soft_maximum_grows_with_the_dimension() -> None:
    bounds = []
    for d in (2, 10, 100):
        values = torch.cat([torch.ones(1), torch.zeros(d - 1)]).double()
        gap = 1 - catalogue.log_exp(20.0).closed_form(Spectrum.of(values))
        assert agreement.soft_bound(20.0, values) == pytest.approx(gap, rel=1e-10)
        bounds.append(gap)
    assert bounds == sorted(bounds)


def test_the_network_has_the_hessian_of_its_risk_and_is_made_once() -> None:
    state = torch.get_rng_state()
    network = networks.digits_network(2, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert networks.digits_network(2, 5) is network
    truth = sum(term.weight * torch.func.hessian(term)(network.risk.theta) for term in network.risk.terms())
    assert torch.allclose(network.dense, truth, atol=1e-12)
    assert (network.risk.dim, network.risk.n_examples, network.risk.n_terms) == (160, 600, 3)
    assert float(networks.digits_network(2, 20).risk.loss()) < float(network.risk.loss())
