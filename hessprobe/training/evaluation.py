"""How good a model is on examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hessprobe.hvp import pool
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
    of those examples that have one: what was learnt by heart). Ranks that share products share the examples.
    """
    was_training, ranks = model.training, pool.current()
    model.eval()
    rows = torch.arange(len(examples), device=examples.labels.device)
    own = rows if ranks is None else rows.tensor_split(ranks.count)[ranks.rank]
    # Loss, hits, hits against the right labels, and against the wrong ones, of so many that have one.
    sums = torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        for part in torch.split(own, _BATCH) if len(own) else ():
            sums += _sums(model, examples, loss, part)
    model.train(was_training)
    total, hits, clean, fooled, wrong = (sums if ranks is None else ranks.summed(sums)).tolist()
    count = examples.labels.numel()
    found = {f"{name}_loss": total / len(examples), f"{name}_accuracy": hits / count}
    if wrong:
        found |= {f"{name}_clean_accuracy": clean / count, f"{name}_noisy_accuracy": fooled / wrong}
    return found


def _sums(model: nn.Module, examples: Examples, loss: Loss, rows: Tensor) -> Tensor:
    outputs = model(examples.data.prepare(examples.inputs[rows], examples.layout))
    labels = examples.labels[rows]
    found = [loss(outputs, labels).double().cpu() * len(rows), count_hits(outputs, labels)]
    if examples.clean_labels is not None:
        right = examples.clean_labels[rows]
        wrong = right != labels
        found += [count_hits(outputs, right), count_hits(outputs[wrong], labels[wrong]), wrong.sum()]
    known = [float(each) for each in found]
    return torch.tensor(known + [0.0] * (5 - len(known)), dtype=torch.float64)
