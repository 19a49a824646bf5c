"""Everything that decides a training run, apart from the model and the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.training import losses

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer by name.

    Attributes:
        build: a ``torch.optim.Optimizer`` class.
        lr: learning rate used where the recipe names none.
        takes_momentum: whether ``momentum`` applies.
    """

    build: type[torch.optim.Optimizer]
    lr: float
    takes_momentum: bool = False


OPTIMIZERS: dict[str, OptimizerEntry] = {
    "sgd": OptimizerEntry(torch.optim.SGD, lr=0.1, takes_momentum=True),
    "adamw": OptimizerEntry(torch.optim.AdamW, lr=2e-3),
}


@dataclass(frozen=True)
class Recipe:
    """How to train: two runs of one recipe on one CPU machine give the same weights, bit for bit.

    Attributes:
        optimizer: a name in ``OPTIMIZERS``.
        epochs: passes over the training data, >= 0 (0 keeps the initial weights).
        lr: peak learning rate > 0; None takes the optimizer's usual one.
        batch_size: examples a step, >= 1; the last batch of an epoch may be smaller.
        momentum: in [0, 1), for sgd.
        weight_decay: >= 0, as the optimizer defines it (an L2 term for sgd, decoupled for adamw).
        schedule: ``"cosine"`` (from lr down to 0 over all steps) or ``"constant"``.
        loss: a name in ``losses.REGISTRY``.
        seed: of initial weights and shuffling, >= 0.

    Raises:
        TypeError, ValueError: a value of the wrong type or outside its range.
    """

    optimizer: str = "sgd"
    epochs: int = 30
    lr: float | None = None
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    loss: str = "cross-entropy"
    seed: int = 0

    def __post_init__(self) -> None:
        entry = OPTIMIZERS[checks.one_of("optimizer", self.optimizer, OPTIMIZERS)]
        checks.positive_int("epochs", self.epochs, minimum=0)
        lr = entry.lr if self.lr is None else self.lr
        object.__setattr__(self, "lr", checks.real("lr", lr, low=0, low_open=True))
        checks.positive_int("batch_size", self.batch_size)
        checks.real("momentum", self.momentum, low=0, high=1, high_open=True)
        checks.real("weight_decay", self.weight_decay, low=0)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.one_of("loss", self.loss, losses.REGISTRY)
        checks.resolve_seed(self.seed)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-friendly values."""
        return dataclasses.asdict(self)

    def make_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer for ``parameters``."""
        entry = OPTIMIZERS[self.optimizer]
        extra = {"momentum": self.momentum} if entry.takes_momentum else {}
        build: Any = entry.build
        optimizer: torch.optim.Optimizer = build(parameters, lr=self.lr, weight_decay=self.weight_decay, **extra)
        return optimizer
