"""Models and losses that differentiate inside themselves, against dense Hessians in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hessprobe.estimators import frobenius_norm, trace
from hessprobe.hvp import Hessian
from hessprobe.objective import EmpiricalRisk


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def points() -> tuple[Tensor, Tensor]:
    x = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
    return x, torch.sin(3 * x)


class Equation(nn.Module):
    """u'(x) + u(x), the left side of a differential equation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.points = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.points = x.detach().requires_grad_(True)
        u = self.net(self.points)
        return u + torch.autograd.grad(u.sum(), self.points, create_graph=True)[0]


class Keeping(nn.Module):
    """Keeps its inputs for a loss that differentiates by them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.points = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.points = x.detach().requires_grad_(True)
        return self.net(self.points)


def equation():
    model = Equation()
    return model, nn.MSELoss(), {}, lambda m, x, y: (m(x) - y).square().mean()


def penalty_in_the_loss():
    model = Keeping()

    def loss(out: Tensor, y: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(out.sum(), model.points, create_graph=True)
        return (out - y).square().mean() + slope.square().mean()

    return model, loss, {}, lambda m, x, y: loss(m(x), y)


def penalty_in_a_forward():
    def forward(module: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, y = batch
        x = x.detach().requires_grad_(True)
        out = module(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return (out - y).square().sum() + slope.square().sum(), len(x)

    return net(), None, {"forward": forward}, lambda m, x, y: forward(m, (x, y))[0] / len(x)


def dense(model: nn.Module, loss) -> Tensor:
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    x, y = points()

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return loss(self.model, x, y)

    def value(theta: Tensor) -> Tensor:
        pieces = theta.split([each.numel() for each in named.values()])
        tensors = {f"model.{name}": piece.view_as(named[name]) for name, piece in zip(named, pieces, strict=True)}
        return functional_call(Called(), tensors, ())

    return torch.autograd.functional.hessian(value, torch.cat([each.flatten() for each in named.values()]))


@pytest.mark.parametrize("make", [equation, penalty_in_the_loss, penalty_in_a_forward])
def test_gradients_inside_are_differentiated_again(make):
    model, loss, options, whole = make()
    x, y = points()
    risk = EmpiricalRisk(model, loss, [(x[:5], y[:5]), (x[5:], y[5:])], **options)
    matrix = dense(model, whole)
    assert float(risk.loss()) == pytest.approx(float(whole(model, x, y).detach()), rel=1e-12)
    assert not risk.loss().requires_grad
    operator = Hessian(risk)
    assert trace(operator, seed=0).value == pytest.approx(float(matrix.trace()), rel=1e-8)
    assert frobenius_norm(operator, seed=0, rtol=1e-6).value == pytest.approx(float(matrix.norm()), rel=1e-8)


def test_another_error_of_the_model_is_not_tried_again():
    calls = []

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            calls.append(torch.is_grad_enabled())
            raise RuntimeError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        EmpiricalRisk(Broken(), nn.MSELoss(), [(torch.ones(2, 1), torch.ones(2, 1))])
    assert not any(calls)
