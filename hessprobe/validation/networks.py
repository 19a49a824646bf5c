"""A small network trained on the digits, in seconds, with its whole Hessian.

Small networks as functions of one flat vector, in fp64: for claims about rules that act on networks.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessprobe.hvp import Hessian
from hessprobe.objective import EmpiricalRisk
from hessprobe.training.datasets.base import load_digits
from hessprobe.training.models import MLP

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


@dataclass(frozen=True)
class Network:
    """W_L tanh(... tanh(W_1 x + b_1) ...) + b_L, its parameters one vector theta (d,).

    Attributes:
        widths: inputs, hidden layers, outputs.
    """

    widths: tuple[int, ...]

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return sum((a + 1) * b for a, b in itertools.pairwise(self.widths))

    def start(self, seed: int) -> Tensor:
        """Return weights N(0, 1/fan-in) and zero biases, (d,)."""
        source = torch.Generator().manual_seed(seed)
        parts = []
        for a, b in itertools.pairwise(self.widths):
            weights = torch.randn(a * b, generator=source, dtype=torch.float64) / math.sqrt(a)
            parts += [weights, torch.zeros(b, dtype=torch.float64)]
        return torch.cat(parts)

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs (n, widths[-1]) for inputs (n, widths[0])."""
        values, place, last = inputs, 0, len(self.widths) - 2
        for index, (a, b) in enumerate(itertools.pairwise(self.widths)):
            weights, bias = theta[place : place + a * b].view(b, a), theta[place + a * b : place + (a + 1) * b]
            values, place = values @ weights.T + bias, place + (a + 1) * b
            if index < last:
                values = torch.tanh(values)
        return values


def teacher_data(network: Network, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return Gaussian inputs (n, widths[0]) and the classes (n,) that random weights of the network give them.

    Args:
        network: the teacher.
        count: n.
        seed: of weights and inputs.
    """
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, network.widths[0], generator=source, dtype=torch.float64)
    return inputs, network.outputs(3.0 * network.start(seed + 1), inputs).argmax(1)
