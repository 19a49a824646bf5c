"""The functional part against Hessian and Gauss-Newton matrices written down, and what it refuses."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import nn

from hessprobe.errors import UnsupportedError
from hessprobe.hvp import FunctionalPart, GaussNewton, Hessian
from hessprobe.objective import EmpiricalRisk, Quadratic


@pytest.mark.parametrize("engine", ["auto", "linearized", "double_backward", "forward_over_reverse"])
def test_it_is_the_hessian_less_the_gauss_newton_matrix(engine: str) -> None:
    risk = nets.mlp((6, 5, 4)).risk()
    found = FunctionalPart(risk, engine=engine)
    truth = Hessian(risk, engine="double_backward").to_dense() - GaussNewton(risk, engine="double_backward").to_dense()
    assert float(truth.abs().max()) > 1e-3
    assert torch.allclose(found.to_dense(), truth, rtol=0, atol=1e-9 * float(truth.abs().max()) + 1e-12)
    total = sum(weight * term.to_dense() for weight, term in found.terms())
    assert torch.allclose(total, truth, rtol=0, atol=1e-9)
    assert found.blocks == risk.layout.slices
    assert not found.psd


def test_it_vanishes_where_the_outputs_are_linear() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    data = [(torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0]))]
    found = FunctionalPart(EmpiricalRisk(module, nn.CrossEntropyLoss(), data)).to_dense()
    assert float(found.abs().max()) < 1e-14


def test_by_hand() -> None:
    """L = (w1 w2 x - y)^2 / 2 has d^2 f / dw1 dw2 = x, so that F = r x [[0, 1], [1, 0]] with r = w1 w2 x - y."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w[0] * self.w[1] * x

    data = [(torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))]
    found = FunctionalPart(EmpiricalRisk(Product(), nn.MSELoss(), data)).to_dense()
    # torch's mean squared error has no half: twice the residual 2 x 3 x 0.5 - 1 = 2, times x = 0.5, is 2.
    assert found.tolist() == [[0.0, pytest.approx(2.0)], [pytest.approx(2.0), 0.0]]


def test_a_risk_without_outputs_has_none() -> None:
    with pytest.raises(UnsupportedError, match="needs model outputs and a loss on them"):
        FunctionalPart(Quadratic(torch.eye(2, dtype=torch.float64)))
