"""Losses by name, so that a checkpoint can say which one it was trained with."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hessprobe import checks

Loss = Callable[[Tensor, Tensor], Tensor]

REGISTRY: dict[str, Callable[[], nn.Module]] = {"cross-entropy": nn.CrossEntropyLoss}


def make_loss(name: str) -> Loss:
    """Return a loss, a mean over the batch, by name.

    Raises:
        ValueError: unknown name; the message names the nearest one.
    """
    return REGISTRY[checks.one_of("loss", name, REGISTRY)]()
