from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import SecondOrderLosses

GENERATOR = torch.Generator().manual_seed(0)
Z = 2 * torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.rand(5, 3, generator=GENERATOR, dtype=torch.float64)
LOSSES: dict[str, Any] = {
    "mse": F.mse_loss,
    "mse module": nn.MSELoss(),
    "huber": F.huber_loss,
    "huber, delta": nn.HuberLoss(delta=0.4),
    "soft margin": F.soft_margin_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values_are_torchs(name: str, reduction: str) -> None:
    loss = LOSSES[name]
    if isinstance(loss, nn.Module):
        loss.reduction = reduction
    else:
        loss = partial(loss, reduction=reduction)
    with SecondOrderLosses():
        ours = loss(Z, Y)
    if isinstance(LOSSES[name], nn.Module):
        torch.testing.assert_close(ours, loss(Z, Y), rtol=1e-14, atol=1e-16)
        loss.reduction = "mean"
    else:
        torch.testing.assert_close(ours, loss(Z, Y), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_forward_derivative_of_the_gradient_equals_double_backward(name: str, wrapped: bool) -> None:
    loss = (lambda z, y: LOSSES[name](z, y)) if wrapped else LOSSES[name]
    torch.manual_seed(1)
    model = nn.Linear(3, 3).double()
    risk = EmpiricalRisk(model, loss, [(Z, Y)])
    (term,) = risk.terms()
    v = torch.linspace(-1, 1, risk.dim, dtype=torch.float64)
    forward = torch.func.jvp(torch.func.grad(term), (risk.theta,), (v,))[1]

    def plain(weight: Tensor, bias: Tensor) -> Tensor:
        return LOSSES[name](F.linear(Z, weight, bias), Y)

    parameters = list(model.parameters())
    slopes = torch.autograd.grad(plain(*parameters), parameters, create_graph=True)
    along = sum((s.flatten() * part).sum() for s, part in zip(slopes, v.split([9, 3]), strict=True))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(along, parameters)])
    torch.testing.assert_close(forward, expected, rtol=1e-10, atol=1e-13)


def test_user_forward_may_call_them() -> None:
    risk = EmpiricalRisk(
        nn.Linear(3, 3).double(), None, [Z], forward=lambda m, x: (F.mse_loss(m(x), Y, reduction="sum"), x.numel())
    )
    (term,) = risk.terms()
    hessian = torch.func.hessian(term)(risk.theta)
    assert float(hessian.diagonal().min()) > 0


def test_unusual_calls_go_to_torch() -> None:
    weight = torch.rand(5, 3, dtype=torch.float64)
    with SecondOrderLosses():
        assert torch.equal(F.mse_loss(Z, Y, weight=weight), F.mse_loss(Z, Y, weight=weight))
        ours = F.mse_loss(Z, Y, weight=weight)
        with pytest.warns(UserWarning, match="target size"):
            broadcast = F.mse_loss(Z, Y[:1])
        with pytest.raises(ValueError, match="nonsense"):
            F.mse_loss(Z, Y, reduction="nonsense")
    torch.testing.assert_close(ours, F.mse_loss(Z, Y, weight=weight))
    torch.testing.assert_close(broadcast, (Z - Y[:1]).square().mean())
