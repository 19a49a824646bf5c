from __future__ import annotations

import numpy as np
import pytest
import torch

from hessprobe.optim import SAM, USAM
from hessprobe.validation.claims import adasam, functional_sam, overparameterization, sam_on, statistics, xsam
from hessprobe.validation.dynamics import direction, plain_sgd
from hessprobe.validation.networks import Network, teacher_data


def test_the_direction_of_sam_on_a_quadratic_is_known():
    H, at = torch.diag(torch.tensor([1.0, 3.0])).double(), torch.tensor([3.0, 4.0]).double()
    g = H @ at
    found = direction(lambda p: SAM(plain_sgd(p, 1.0), rho=0.5), lambda x: x @ H @ x / 2, at)
    assert torch.allclose(found, g + 0.5 * H @ g / g.norm(), rtol=1e-11)


def test_a_network_of_one_vector_is_the_module_with_these_weights():
    net = Network((3, 4, 2))
    theta, x = net.start(0), torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 2).double()
    parameters = [*first.parameters(), *second.parameters()]
    torch.nn.utils.vector_to_parameters(theta, parameters)
    assert torch.allclose(net.outputs(theta, x), second(torch.tanh(first(x))), rtol=1e-14)
    assert net.dim == len(theta) == 26


def test_labels_of_a_teacher_are_of_every_class_and_repeat():
    net = Network((4, 5, 3))
    (inputs, labels), (_, again) = teacher_data(net, 300, 0), teacher_data(net, 300, 0)
    assert set(labels.tolist()) == {0, 1, 2}
    assert inputs.shape == (300, 4)
    assert torch.equal(labels, again)


def test_the_product_of_functional_sam_is_not_that_of_sam(monkeypatch):
    assert functional_sam.first_order().verdict == "holds"
    # SAM in the place of Functional-SAM is noticed.
    step = functional_sam._step
    monkeypatch.setattr(functional_sam, "_step", lambda name, *rest: step("SAM", *rest))
    finding = functional_sam.first_order()
    assert (finding.verdict, finding.worst.label[:14]) == ("fails", "Functional-SAM")


def test_the_threshold_of_xsam_is_not_twice_as_large(monkeypatch):
    assert xsam.threshold(80).verdict == "holds"
    right = xsam.Quadratics.thresholds
    monkeypatch.setattr(xsam.Quadratics, "thresholds", lambda self, rho: 2 * right(self, rho))
    assert xsam.threshold(80).verdict == "fails"


def test_the_maximum_on_the_sphere_is_above_every_direction_and_reached():
    problem = xsam.Quadratics.draw(4, 3, 0, definite=False)
    top = problem.greatest(0.5)
    u = np.random.default_rng(1).standard_normal((20_000, 3))
    u *= 0.5 / np.linalg.norm(u, axis=1, keepdims=True)
    tried = np.array([xsam.Quadratics(problem.g[[i]], problem.H[[i]]) for i in range(4)])
    best = [float(one.rise(u).max()) for one in tried]
    assert (top >= best).all()
    assert best == pytest.approx(top, rel=1e-3)


def test_the_exact_mean_loss_is_that_of_enumeration():
    source = np.random.default_rng(0)
    rows = source.standard_normal((2, 3))
    f = overparameterization.Squares(rows, rows @ source.standard_normal(3))
    eta, rho = 0.05, 0.1
    x, losses = np.zeros((1, 3)), []
    for _ in range(4):
        losses.append(float(f.excess(x).mean()))
        steps = [overparameterization._rule(f, x, np.full(len(x), i), eta, rho) for i in (0, 1)]
        x = np.concatenate(steps)
    assert overparameterization._mean_losses(f, eta, rho, 3) == pytest.approx(losses, rel=1e-12)


def test_a_faster_rate_than_that_of_the_theorem_fails(monkeypatch):
    right = overparameterization.Constants.rate
    assert overparameterization.linear_rate(200, 20).verdict == "holds"
    monkeypatch.setattr(
        overparameterization.Constants, "rate", lambda self, rho: (right(self, rho)[0], right(self, rho)[1] ** 50)
    )
    assert overparameterization.linear_rate(200, 20).verdict == "fails"


def test_the_formula_of_the_risk_needs_the_right_rho(monkeypatch):
    right = statistics.Regression.parts
    monkeypatch.setattr(
        statistics.Regression, "parts", lambda self, rho, steps, sigma: right(self, 1.2 * rho, steps, sigma)
    )
    assert statistics.without_noise().verdict == "fails"
    assert statistics.with_noise(60).verdict == "fails"


def test_gradient_descent_at_rho_0_is_the_class():
    problem = statistics.Regression.make(20, 3)
    risks = problem.risks(0.0, 5, 0.0, 1)[:, 0]
    assert risks == pytest.approx(problem.parts(0.0, np.arange(6), 0.0)[0], rel=1e-10)
    assert isinstance(USAM(plain_sgd([torch.zeros(1, requires_grad=True)], 0.1), rho=0.0), USAM)


def test_another_rho_than_that_of_adasam_is_noticed(monkeypatch):
    assert adasam.amsgrad().verdict == "holds"
    assert adasam._class_against_rule().holds
    right = adasam._rule
    monkeypatch.setattr(adasam, "_rule", lambda x, noise, state, gamma, rho: right(x, noise, state, gamma, 1.001 * rho))
    assert not adasam._class_against_rule().holds


def test_a_slower_law_than_that_of_adasam_is_noticed(monkeypatch):
    # E.g. T^-0.4, with an error of 0.3 percent a run.
    source = np.random.default_rng(0)
    monkeypatch.setattr(
        adasam, "_run", lambda b, T, runs: (b**-0.5 * T**-0.4) * (1 + 0.003 * source.standard_normal(runs))
    )
    finding = adasam.rate((1000, 4000, 16_000), 32)
    assert (finding.verdict, finding.worst.label[:5]) == ("fails", "b = 1")


def test_sam_on_on_other_parameters_is_noticed(monkeypatch):
    assert sam_on.ascent().verdict == "holds"
    monkeypatch.setattr(sam_on, "_owned", lambda model, parameter: parameter.ndim > 1)
    assert sam_on.ascent().verdict == "fails"


def test_training_for_sam_on_reports_a_difference_an_optimizer():
    finding = sam_on.training(2, 1)
    assert finding.verdict == "observed"
    assert len(finding.parts) == 8
    assert all(0 < part.measured < 1 for part in finding.parts[:1])
