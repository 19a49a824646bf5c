"""Operators of curvlinops as operators here: where K-FAC is exact, it is the Gauss-Newton matrix to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hessprobe as hp

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", ["KFACLinearOperator", "EKFACLinearOperator"])
def test_kfac_of_a_linear_model_is_its_gauss_newton_matrix(name: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    data = list(zip(x.split(10), y.split(10), strict=True))
    foreign = getattr(curvlinops, name)(
        model, nn.MSELoss(), list(model.parameters()), data, fisher_type="type-2", separate_weight_and_bias=False
    )
    risk = hp.EmpiricalRisk(model, nn.MSELoss(), data)
    A, dense = hp.aslinearoperator(foreign, psd=True, layout=risk.layout), hp.GaussNewton(risk).to_dense()
    assert torch.allclose(A.to_dense(), dense, rtol=0, atol=1e-13)
    assert torch.allclose(A.block("bias").to_dense(), dense[12:, 12:], rtol=0, atol=1e-13)
    assert hp.lambda_max(A).value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-3)
    solved = hp.solve(A, risk.gradient(), shift=0.1, rtol=1e-10)
    shifted = dense + 0.1 * torch.eye(15, dtype=torch.float64)
    assert torch.allclose(solved.x, torch.linalg.solve(shifted, risk.gradient()), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["HessianLinearOperator", "GGNLinearOperator"])
def test_matrices_of_a_network_agree(name: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(20, 4, dtype=torch.float64)
    data = list(zip(x.split(10), x[:, :3].argmax(1).split(10), strict=True))
    foreign = getattr(curvlinops, name)(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    risk = hp.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    own = hp.Hessian(risk) if name.startswith("Hessian") else hp.GaussNewton(risk)
    assert torch.allclose(hp.aslinearoperator(foreign).to_dense(), own.to_dense(), rtol=0, atol=1e-12)
