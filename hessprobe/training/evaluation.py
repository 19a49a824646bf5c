"""How good a model is on examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hessprobe.training.datasets import DataSet

Loss = Callable[[Tensor, Tensor], Tensor]


def losses_by_example(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy (B,) of every example, the mean over its tokens where labels are (B, T)."""
    each = functional.cross_entropy(outputs.flatten(0, -2).float(), labels.flatten(), reduction="none")
    return each.view(labels.shape).flatten(1).mean(1) if labels.ndim > 1 else each


def count_hits(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return how many labels the largest output names, a 0-dimensional integer on the device."""
    return torch.eq(outputs.argmax(-1), labels).sum()


_BATCH = 1024


@dataclass(frozen=True)
class Examples:
    """A split of a data set, on the device and as it is stored, made into a model's inputs batch by batch.

    Attributes:
        data: the set.
        layout: what the model takes.
        inputs: (n, ...) as in ``data``.
        labels: (n,) or (n, T).
        clean_labels: the labels before label noise; None where there is none.
    """

    data: DataSet
    layout: str
    inputs: Tensor
    labels: Tensor
    clean_labels: Tensor | None = None

    @classmethod
    def of(cls, data: DataSet, split: str, layout: str, device: torch.device) -> Examples:
        """Return a split on ``device``."""
        data.require_layout(layout)
        rows = data.positions(split)
        clean = None if data.clean_labels is None else data.clean_labels[rows].to(device)
        return cls(data, layout, data.inputs[rows].to(device), data.labels[rows].to(device), clean)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)


def assess(model: nn.Module, examples: Examples, loss: Loss, name: str) -> dict[str, Any]:
    """Return ``name_loss`` and ``name_accuracy`` of ``model`` in evaluation mode, and where labels are noisy two more.

    These are ``name_clean_accuracy`` (against the right labels) and ``name_noisy_accuracy`` (against the wrong labels
    of those examples that have one: what was learnt by heart).
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    hits, clean, fooled, wrong = 0, 0, 0, 0
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(examples), device=examples.labels.device), _BATCH):
            outputs = model(examples.data.prepare(examples.inputs[rows], examples.layout))
            labels = examples.labels[rows]
            total += loss(outputs, labels).double().cpu() * len(rows)
            hits += int(count_hits(outputs, labels))
            if examples.clean_labels is not None:
                right = examples.clean_labels[rows]
                clean += int(count_hits(outputs, right))
                fooled += int(count_hits(outputs[right != labels], labels[right != labels]))
                wrong += int((right != labels).sum())
    model.train(was_training)
    count = examples.labels.numel()
    found = {f"{name}_loss": float(total) / len(examples), f"{name}_accuracy": hits / count}
    if wrong:
        found |= {f"{name}_clean_accuracy": clean / count, f"{name}_noisy_accuracy": fooled / wrong}
    return found
