from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hessprobe.universal import quadrature
from hessprobe.validation.claims import determinant, explicit_bias
from hessprobe.validation.dynamics import hessian, relative_gap
from hessprobe.validation.zero_loss import CHANGES, SHARPNESS, minimum, stationary, toy


@pytest.mark.parametrize(
    ("name", "theta", "value"),
    [("trace", 0.2716, 2.1749), ("frob", 0.3080, 3.1899), ("det", 0.2106, 14.4438), ("normal det", 0.1340, None)],
)
def test_each_measure_has_its_own_minimum_on_the_curve(name, theta, value):
    found = stationary(SHARPNESS[name])
    assert found == pytest.approx(theta, abs=5e-5)
    if value is not None:
        assert float(SHARPNESS[name](torch.tensor(found).double())) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize("name", list(CHANGES))
@pytest.mark.parametrize("x", [(0.3, 0.0, 0.0, 0.0), (0.2, 0.02, 0.1, -0.05)])
def test_what_losses_make_of_a_measure_is_the_integral_over_all_four_directions(name, x):
    rho, at = 0.1, torch.tensor(x, dtype=torch.float64)
    directions, weights = quadrature.rule("gaussian", 4, 26)
    t = (toy(at + rho * directions) - toy(at)) / rho**2
    mean = float((weights * t).sum())
    expected = {
        "trace": mean,
        "frob": float((weights * (t - mean) ** 2).sum()),
        "det": float((weights * torch.exp(-t)).sum()) ** -2,
    }
    assert float(CHANGES[name](at, rho)) == pytest.approx(expected[name], rel=1e-6)


def test_the_gradient_of_the_toy_is_that_of_its_loss():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, slopes = explicit_bias.losses(x.numpy())
    assert relative_gap(values, toy(x)) < 1e-14
    assert relative_gap(slopes, torch.func.vmap(torch.func.grad(toy))(x)) < 1e-14


def test_a_run_is_told_from_the_minimum_of_another_measure():
    rule = explicit_bias.frob_rule()
    assert explicit_bias.ends(rule, 16, 1200).verdict == "holds"
    wrong = replace(rule, objective=explicit_bias.trace_rule().objective)
    assert explicit_bias.ends(wrong, 16, 1200).verdict == "fails"


def test_another_rule_than_that_of_the_class_is_noticed():
    rule = explicit_bias.frob_rule()
    assert rule.against_class(3).holds
    assert not replace(rule, added=lambda change, slope: 1.01 * rule.added(change, slope)).against_class(3).holds


def test_a_saddle_is_no_minimum():
    with pytest.raises(ArithmeticError, match="no minimum near"):
        minimum(lambda x: x[0] ** 2 + torch.cos(x[1]), (0.1, 0.0))


def test_the_whole_line_sees_no_minimum_and_an_interval_does():
    assert determinant._lebesgue(0.0, 0.1, 30.0) == pytest.approx(2.522, abs=5e-4)
    assert determinant._lebesgue(0.0, 0.1, 3.0) == pytest.approx(5.95, abs=5e-3)
    assert determinant._lebesgue(1.0, 0.1, 3.0) == pytest.approx(20.7, abs=5e-2)


def test_the_top_eigenvector_is_that_of_the_hessian():
    x = torch.tensor([0.4, 0.3, -0.2, 0.1], dtype=torch.float64)
    H, v = hessian(toy, x), explicit_bias._top(x)
    assert torch.allclose(H @ v, torch.linalg.eigvalsh(H)[-1] * v, atol=1e-13)
