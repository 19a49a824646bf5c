"""Small networks and data in float64 whose full Hessian can be written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.objective import EmpiricalRisk

Batch = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Embedding, default scaled-dot-product attention, layer norm, and logits (B, C, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden = hidden + self.attend(hidden, hidden, hidden, need_weights=False)[0]
        return self.head(self.norm(hidden)).transpose(1, 2)


class Odd(nn.Module):
    """A tied pair, a frozen weight, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.frozen(torch.tanh(self.first(inputs)))))


@dataclass(frozen=True)
class Case:
    """A module, its data in ragged batches, and a loss."""

    module: nn.Module
    data: list[Batch]
    loss: Any

    def risk(self, **options: Any) -> EmpiricalRisk:
        return EmpiricalRisk(self.module, self.loss, self.data, **options)


def mlp(sizes: tuple[int, ...] = (8, 8, 8, 2), activation: type[nn.Module] = nn.Tanh) -> Case:
    """6-5-4 network, cross-entropy."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 4)).double()
    return Case(module, [(torch.randn(n, 6).double(), torch.randint(4, (n,))) for n in sizes], nn.CrossEntropyLoss())


def regression() -> Case:
    """A tanh network with a mean squared error."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = [(torch.randn(n, 3).double(), torch.randn(n, 2).double()) for n in (5, 5, 3)]
    return Case(module, data, nn.MSELoss())


def cnn() -> Case:
    """Two convolutions, the first followed by BatchNorm with real statistics."""
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=True), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    module[1].running_mean.normal_()
    module[1].running_var.uniform_(0.5, 2.0)
    data = [(torch.randn(n, 1, 6, 6).double(), torch.randint(3, (n,))) for n in (6, 6, 2)]
    return Case(module, data, nn.CrossEntropyLoss())


def attention() -> Case:
    """Attention on tokens with some targets ignored, differently many in each batch."""
    torch.manual_seed(3)
    data = []
    for n in (3, 3, 1):
        targets = torch.randint(5, (n, 4))
        targets[0, 2:] = -100
        data.append((torch.randint(5, (n, 4)), targets))
    return Case(Attention().double(), data, nn.CrossEntropyLoss())


def odd() -> Case:
    """Tied, frozen and unused parameters."""
    torch.manual_seed(4)
    return Case(Odd().double(), [(torch.randn(4, 3).double(), torch.randint(3, (4,)))] * 2, nn.CrossEntropyLoss())


CASES: dict[str, Callable[[], Case]] = {
    "mlp": mlp,
    "regression": regression,
    "cnn": cnn,
    "attention": attention,
    "odd": odd,
}


def full_hessian(risk: EmpiricalRisk) -> Tensor:
    """Return the Hessian by differentiating the whole loss twice with torch.autograd.functional."""

    def loss(theta: Tensor) -> Tensor:
        return torch.stack([term.weight * term(theta) for term in risk.terms()]).sum()

    with risk.evaluating():
        return torch.autograd.functional.hessian(loss, risk.theta)


def full_gauss_newton(risk: EmpiricalRisk) -> Tensor:
    """Return sum_b w_b J^T (d^2 l) J with Jacobian and loss Hessian written out."""
    total = torch.zeros(risk.dim, risk.dim, dtype=torch.float64)
    with risk.evaluating():
        for term in risk.terms():
            outputs = term.outputs(risk.theta).detach()
            J = torch.autograd.functional.jacobian(term.outputs, risk.theta).reshape(-1, risk.dim)
            inner = torch.autograd.functional.hessian(term.loss_of_outputs, outputs).reshape(len(J), len(J))
            total += term.weight * J.T @ inner @ J
    return total
