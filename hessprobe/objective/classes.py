"""The loss as a sum over the classes of the examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.batches import EmpiricalBatch, picked


@dataclass(frozen=True)
class Share:
    """The part of one class in each batch.

    Attributes:
        label: the class.
        rows: positions of its examples in each batch with weight, possibly none.
        weight: its part of the loss, in (0, 1].
    """

    label: int
    rows: tuple[Tensor, ...]
    weight: float


class ClassRisk(Objective):
    """The mean loss over the examples of one class, as a function of the same parameters.

    Args:
        risk: over all classes.
        share: of the class; ``shares_of`` makes it.
    """

    def __init__(self, risk: Objective, share: Share) -> None:
        self._risk, self._share = risk, share
        self.dim, self.dtype, self.device = risk.dim, risk.dtype, risk.device
        self.group = risk.group
        self.theta, self.layout, self.caveats = risk.theta, risk.layout, risk.caveats
        self.n_terms = sum(len(rows) > 0 for rows in share.rows)

    def __repr__(self) -> str:
        return f"class {self._share.label} of {self._risk!r}"

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of the risk."""
        return self._risk.evaluating()

    def terms(self) -> Iterator[BatchLoss]:
        """Yield the part of every batch that has examples of the class."""
        for batch, rows in zip(self._risk.terms(), self._share.rows, strict=True):
            if len(rows):
                part = _part(batch, rows)
                yield replace(part, weight=part.weight / self._share.weight)


def shares_of(risk: Objective) -> list[Share]:
    """Return the part of every class in the loss, by label; the weights sum to 1.

    Raises:
        UnsupportedError: targets that are not one integer label an example, a batch that cannot be cut, or a loss that
            is not the weighted mean of the losses of the classes.
    """
    found: dict[int, list[Tensor]] = {}
    weights: dict[int, float] = {}
    with risk.evaluating(), torch.no_grad():
        for number, batch in enumerate(risk.terms()):
            labels = _labels(batch)
            losses, none = [], torch.empty(0, dtype=torch.long, device=labels.device)
            for rows in found.values():
                rows.append(none)
            for label in sorted(set(labels.tolist())):
                rows = (labels == label).nonzero()[:, 0]
                part = _part(batch, rows)
                # Labels that the loss ignores are no class.
                if part.size == 0:
                    continue
                found.setdefault(label, [none] * (number + 1))[-1] = rows
                weights[label] = weights.get(label, 0.0) + part.weight
                losses.append(part.weight * float(part(risk.theta)))
            whole = batch.weight * float(batch(risk.theta))
            if abs(math.fsum(losses) - whole) > torch.finfo(risk.dtype).eps ** 0.5 * math.fsum(map(abs, losses)):
                raise UnsupportedError(
                    "A sum over classes needs a loss that is a mean over examples that do not see each other; here "
                    "the losses of the classes do not add up to the whole. Measure the whole."
                )
    return [Share(label, tuple(found[label]), weights[label]) for label in sorted(found)]


def _labels(batch: BatchLoss) -> Tensor:
    targets = batch.targets if isinstance(batch, EmpiricalBatch) else None
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise UnsupportedError(
            f"A sum over classes needs one integer label an example, targets of shape (B,); got {shape}. Pass data "
            "for classification."
        )
    return targets


def _part(batch: BatchLoss, rows: Tensor) -> EmpiricalBatch:
    if not isinstance(batch, EmpiricalBatch) or not batch.separable:
        raise UnsupportedError(
            "A batch of this risk cannot be cut into classes: its examples see each other, or it has a forward of its "
            "own. Use batchnorm='eval'."
        )
    inputs, targets = (picked(tree, rows, batch.examples) for tree in (batch.inputs, batch.targets))
    size = batch.rule.size(targets, len(rows))
    weight = batch.weight * size / batch.size
    return replace(batch, inputs=inputs, targets=targets, examples=len(rows), size=size, weight=weight)
