"""What is timed: networks with random data in eight batches, as a loader would give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.objective import EmpiricalRisk
from hessprobe.training.models import build_model

BATCHES = 8


@dataclass(frozen=True)
class Case:
    """One network with its data.

    Attributes:
        name: on the command line.
        title: for tables.
        build: makes the module.
        batch: makes one batch (inputs, targets) from a generator.
        loss: (outputs, targets) -> mean loss.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]

    def risk(self, device: torch.device) -> EmpiricalRisk:
        """Return the risk over ``BATCHES`` batches on ``device``."""
        generator = torch.Generator().manual_seed(0)
        batches = [self.batch(generator) for _ in range(BATCHES)]
        module = self.build().eval().to(device)
        return EmpiricalRisk(module, self.loss, [(x.to(device), y.to(device)) for x, y in batches])


def images(count: int, shape: tuple[int, ...]) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Return what draws a batch of so many noisy images of ten classes."""

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(count, *shape, generator=generator)
        return inputs, torch.randint(10, (count,), generator=generator)

    return batch


def tokens(count: int, length: int, vocabulary: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Return what draws a batch of so many sequences, each token with the next one as its target."""

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draw = torch.randint(vocabulary, (count, length + 1), generator=generator)
        return draw[:, :-1].contiguous(), draw[:, 1:].contiguous()

    return batch


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all tokens."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def model_of(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    """Return what builds a model of the zoo."""
    return lambda: build_model(name, arguments, seed=0)


CASES = {
    case.name: case
    for case in (
        Case(
            "mlp",
            "MLP 784-512-512-10, batch 256",
            model_of("mlp", in_features=784, hidden=[512, 512]),
            images(256, (784,)),
            F.cross_entropy,
        ),
        Case("resnet20", "ResNet-20, batch 32", model_of("resnet"), images(32, (3, 32, 32)), F.cross_entropy),
        Case(
            "gpt",
            "GPT 4 layers d=128 T=64, batch 16",
            model_of("gpt", vocab_size=65, context=64, layers=4, d_model=128, n_heads=4),
            tokens(16, 64, 65),
            token_loss,
        ),
    )
}
