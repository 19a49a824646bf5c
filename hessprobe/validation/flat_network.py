"""Small networks as functions of one flat vector, in fp64: for claims about rules that act on networks."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
