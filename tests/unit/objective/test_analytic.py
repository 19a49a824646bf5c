from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hessprobe.objective import Objective, Quadratic, Rosenbrock, Saddle, ScaleInvariantProduct
from tests.oracles import eigenvalues, symmetric

POINT = torch.tensor([0.3, -1.1, 0.7, 2.0], dtype=torch.float64)
A = symmetric(eigenvalues("indefinite", 4))
CASES = {
    "quadratic": Quadratic(A, center=POINT / 2, theta=POINT),
    "quadratic in terms": Quadratic(A, center=0.5, terms=5, theta=POINT),
    "saddle": Saddle((3.0, -2.0, 0.0, 1.0), theta=POINT),
    "product": ScaleInvariantProduct(2, target=0.4, theta=POINT),
    "rosenbrock": Rosenbrock(4, theta=POINT),
}


def total(objective: Objective, theta: Tensor) -> Tensor:
    return sum(term.weight * term(theta) for term in objective.terms())


@pytest.mark.parametrize("name", CASES)
def test_gradient_and_hessian_are_those_of_the_weighted_terms(name: str) -> None:
    objective = CASES[name]
    for theta in (POINT, -POINT.roll(1)):
        gradient = torch.func.grad(lambda t: total(objective, t))(theta)
        hessian = torch.func.hessian(lambda t: total(objective, t))(theta)
        torch.testing.assert_close(objective.gradient(theta), gradient, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(objective.hessian(theta), hessian, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(Objective.gradient(objective), objective.gradient(), rtol=1e-12, atol=1e-12)
    assert float(objective.loss()) == pytest.approx(float(total(objective, POINT)), rel=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str) -> None:
    objective = CASES[name]
    terms = list(objective.terms())
    assert len(terms) == objective.n_terms
    assert sum(term.weight for term in terms) == pytest.approx(1, abs=1e-15)
    assert objective.layout.dim == objective.dim == 4
    assert objective.theta is not POINT
    assert not objective.theta.requires_grad


def test_terms_of_a_quadratic_differ_but_add_up() -> None:
    objective = Quadratic(A, terms=5)
    mean = sum(w * m for w, m in zip(objective.weights, objective.matrices, strict=True))
    torch.testing.assert_close(mean, A, rtol=0, atol=1e-14)
    assert float((objective.matrices[0] - objective.matrices[1]).abs().max()) > 0.1
    assert len(set(objective.weights)) == 5


def test_scale_invariant_product_is_invariant_with_the_stated_curvature() -> None:
    objective = ScaleInvariantProduct(2, target=0.4)
    u, v = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.4, 0.4], dtype=torch.float64)
    for scale in (1.0, 3.0):
        theta = torch.cat([scale * u, v / scale])
        assert float(objective.loss(theta)) == pytest.approx(0, abs=1e-30)
        top = torch.linalg.eigvalsh(objective.hessian(theta))
        torch.testing.assert_close(top[-1], theta @ theta, rtol=1e-12, atol=0)
        assert float(top[:-1].abs().max()) < 1e-12


def test_defaults_are_where_the_names_say() -> None:
    torch.testing.assert_close(Rosenbrock(2).theta, torch.tensor([-1.2, 1.0], dtype=torch.float64))
    assert float(Rosenbrock(2).loss()) == pytest.approx(24.2, rel=1e-14)
    assert float(Saddle().gradient().norm()) == 0.0
    assert ScaleInvariantProduct().theta.tolist() == [1.0, 2.0]


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"matrix must be square and symmetric; got shape \(2, 3\)"):
        Quadratic(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"theta must have shape \(4,\); got \(3,\)"):
        Quadratic(A, theta=torch.ones(3))
    with pytest.raises(ValueError, match="dim must be an integer >= 2; got 1"):
        Rosenbrock(1)
    with pytest.raises(ValueError, match="terms must be an integer >= 1; got 0"):
        Quadratic(A, terms=0)
