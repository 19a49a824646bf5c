"""A small network trained on the digits, in seconds, with its whole Hessian."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessprobe.hvp import Hessian
from hessprobe.objective import EmpiricalRisk
from hessprobe.training.datasets.digits import load_digits
from hessprobe.training.models.mlp import MLP

# Batches of different sizes, as real ones are.
_BATCHES = [300, 200, 100]


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network at the end of training.

    Attributes:
        risk: mean cross-entropy over the first 600 training digits, fp64, in three batches.
        hessian: its Hessian as an operator.
        dense: the same as a matrix (d, d).
        spectrum: eigenvalues (d,), ascending.
    """

    risk: EmpiricalRisk
    hessian: Hessian
    dense: Tensor
    spectrum: Tensor


@functools.cache
def digits_network(hidden: int = 8, steps: int = 150) -> TrainedNetwork:
    """Train a 64-``hidden``-10 tanh network by full-batch Adam and return it with its Hessian; made once a process.

    Args:
        hidden: width; d = 75 hidden + 10 parameters.
        steps: of training.
    """
    data = load_digits()
    kept = torch.ones(len(data.labels), dtype=torch.bool)
    kept[data.test] = False
    inputs, targets = data.inputs[kept].flatten(1).double()[: sum(_BATCHES)], data.labels[kept][: sum(_BATCHES)]
    with torch.random.fork_rng(devices=[]):
        # Modules draw their first weights from the global generator, which is to stay as it was.
        model = _initialised(MLP(64, (hidden,), 10, "tanh").double())
    _train(model, inputs, targets, steps)
    batches = list(zip(torch.split(inputs, _BATCHES), torch.split(targets, _BATCHES), strict=True))
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, batches)
    hessian = Hessian(risk, engine="double_backward")
    dense = hessian.to_dense()
    dense = (dense + dense.T) / 2
    return TrainedNetwork(risk, hessian, dense, torch.linalg.eigvalsh(dense))


def _initialised(model: nn.Module) -> nn.Module:
    """Draw the weights anew from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            scale = fan_in**-0.5 if parameter.ndim > 1 else 0.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def _train(model: nn.Module, inputs: Tensor, targets: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
