"""The parts of an update that lie beside the base optimizer's gradient."""

from __future__ import annotations

from typing import Any

import torch

from hessprobe.optim.engine.owner import Owner
from hessprobe.optim.engine.requests import Outcome, Update
from hessprobe.optim.engine.tensors import TensorList


def resolved(outcome: Outcome) -> Update:
    """Return what a rule has returned as an ``Update``."""
    if isinstance(outcome, TensorList):
        return Update(outcome)
    return outcome if isinstance(outcome, Update) else outcome()


def decouple(optimizer: Owner, term: TensorList) -> None:
    """Take ``w <- w - lr term`` with the learning rate of each group."""
    for weight, part, lr in zip(optimizer.parameters(), term.tensors, optimizer.group_values("lr"), strict=True):
        weight.add_(part, alpha=-float(lr))


class LearningRate:
    """Sets every group's learning rate for the duration."""

    def __init__(self, optimizer: torch.optim.Optimizer, lr: Any) -> None:
        self._groups, self._lr = optimizer.param_groups, lr
        self._before: list[Any] = []

    def __enter__(self) -> None:
        if self._lr is not None:
            self._before = [group["lr"] for group in self._groups]
            for group in self._groups:
                group["lr"] = float(self._lr)

    def __exit__(self, *_: object) -> None:
        for group, lr in zip(self._groups, self._before, strict=False):
            group["lr"] = lr
