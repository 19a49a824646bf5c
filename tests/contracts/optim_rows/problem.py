"""A small network in float64, once as a module and once as functions of a flat vector, with a batch for every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

N, INPUTS, OUTPUTS = 12, 5, 3


def make_module() -> nn.Module:
    """Return the network: two layers with a LayerNorm between them, 6 tensors."""
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(nn.Linear(INPUTS, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, OUTPUTS)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + 0.1)
    return module


@functools.cache
def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return the inputs (N, 5) and labels (N,) of step number ``step``."""
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(N, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.randint(OUTPUTS, (N,), generator=generator)


def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, labels)


@dataclass
class Flat:
    """What a specification may use: plain functions of the flat vector w (d,), one object a run.

    Attributes:
        t: number of the step, from 1.
        rho: (d,) radius of each coordinate.
        lr: (d,) learning rate of each coordinate.
        memory: kept from step to step.
        scale: factor on the loss.
        names, shapes, slices: of the tensors.
    """

    rho: Tensor
    lr: Tensor
    weight_decay: Tensor
    scale: float = 1.0
    t: int = 1
    w: Tensor = field(default_factory=lambda: torch.zeros(0))
    memory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module = make_module()
        named = list(self.module.named_parameters())
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        ends = torch.tensor([p.numel() for _, p in named]).cumsum(0).tolist()
        self.slices = [slice(end - p.numel(), end) for end, (_, p) in zip(ends, named, strict=True)]

    def outputs(self, w: Tensor) -> Tensor:
        # Written out, and differentiated by torch.autograd alone: the specifications take thousands of gradients.
        a, b, scale, shift, c, d = (w[s].view(shape) for s, shape in zip(self.slices, self.shapes, strict=True))
        hidden = nn.functional.layer_norm(nn.functional.linear(batch(self.t)[0], a, b), (4,), scale, shift)
        return nn.functional.linear(torch.tanh(hidden), c, d)

    def losses(self, w: Tensor) -> Tensor:
        """Return the loss of every example (N,)."""
        return self.scale * nn.functional.cross_entropy(self.outputs(w), batch(self.t)[1], reduction="none")

    def loss(self, w: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        return self.losses(w)[rows].mean()

    def grad(self, w: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        point = w.detach().requires_grad_()
        return torch.autograd.grad(self.loss(point, rows), point)[0]

    def hessian(self, w: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(self.loss, w)

    def pull_back(self, w: Tensor, cotangent: Tensor) -> Tensor:
        """Return J(w)^T cotangent for the Jacobian J of the outputs."""
        point = w.detach().requires_grad_()
        return torch.autograd.grad(self.outputs(point), point, cotangent)[0]

    def cotangent(self, w: Tensor) -> Tensor:
        """Return the gradient of the mean loss with respect to the outputs at w."""
        outputs = self.outputs(w.detach()).requires_grad_()
        return torch.autograd.grad(self.scale * criterion(outputs, batch(self.t)[1]), outputs)[0]

    def by_tensor(self, function: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
        """Return ``function`` of each tensor of the vectors, in its own shape, put together again."""
        parts = [
            function(*(v[s].view(shape) for v in vectors)).reshape(-1)
            for s, shape in zip(self.slices, self.shapes, strict=True)
        ]
        return torch.cat(parts)


def unit(v: Tensor) -> Tensor:
    """Return v/(norm(v) + 1e-12)."""
    return v / (v.norm() + 1e-12)


class FlatSGD:
    """SGD with momentum and weight decay on a flat vector."""

    def __init__(self, momentum: float) -> None:
        self.momentum, self.buffer = momentum, None

    def step(self, w: Tensor, d: Tensor, lr: Tensor, weight_decay: Tensor) -> Tensor:
        d = d + weight_decay * w
        self.buffer = d if self.buffer is None else self.momentum * self.buffer + d
        return w - lr * self.buffer


class FlatAdamW:
    """AdamW on a flat vector."""

    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps, self.t = betas, eps, 0
        self.m: Any = 0.0
        self.v: Any = 0.0

    def step(self, w: Tensor, d: Tensor, lr: Tensor, weight_decay: Tensor) -> Tensor:
        self.t += 1
        b1, b2 = self.betas
        self.m, self.v = b1 * self.m + (1 - b1) * d, b2 * self.v + (1 - b2) * d * d
        root = (self.v / (1 - b2**self.t)).sqrt() + self.eps
        return w * (1 - lr * weight_decay) - lr * (self.m / (1 - b1**self.t)) / root


def is_close(a: Tensor, b: Tensor) -> float:
    """Return the largest difference relative to the size of ``b``."""
    return float((a - b).abs().max() / max(float(b.abs().max()), math.ulp(1.0)))


__all__ = ["Flat", "FlatAdamW", "FlatSGD", "N", "batch", "criterion", "is_close", "make_module", "unit"]
