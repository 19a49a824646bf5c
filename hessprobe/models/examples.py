"""Labelled examples in memory from any source, and batches of them as a network takes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import DataError
from hessprobe.objective.batches import content_hash
from hessprobe.training.datasets import DataSet
from hessprobe.training.datasets.base import SPLITS, some_of

Inputs = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Examples:
    """Inputs with targets.

    Attributes:
        name: as it was asked for.
        inputs: (n, ...), or by the names of the network's arguments, each (n, ...).
        targets: (n, ...).
        test: positions of the held-out examples, ascending; None where the source has no split.
        notes: what a reader should know of how they were made.
    """

    name: str
    inputs: Inputs
    targets: Tensor
    test: Tensor | None = None
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of inputs, targets and split."""
        return content_hash([self.inputs, self.targets, self.test])

    @property
    def default_split(self) -> str:
        """The examples to train on where there is a split, else all."""
        return "all" if self.test is None else "train"

    def batches(
        self,
        split: str | None = None,
        examples: int | None = None,
        batch_size: int = 256,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> list[Any]:
        """Return the batches of a split: pairs, or dicts with the targets under ``labels``.

        Args:
            split: ``"train"``, ``"test"`` or ``"all"``; None is ``default_split``.
            examples: how many to draw at random without replacement; all by default.
            batch_size: at most so many examples a batch, >= 1; the sizes differ by one at most.
            seed: which are drawn, >= 0.
            dtype: of floating-point inputs and targets; as they are by default.

        Raises:
            ValueError: an argument outside its range, or a split that the source does not have.
            DataError: no examples.
        """
        split = split or self.default_split
        chosen = self._positions(split)
        if examples is not None:
            chosen = some_of(chosen, examples, seed, f"split {split!r} of {self.name!r}")
        size = checks.positive_int("batch_size", batch_size)
        if not len(chosen):
            raise DataError(f"data {self.name!r} must hold at least one example; got none. Choose another split.")
        return [self._batch(part, dtype) for part in chosen.tensor_split(-(-len(chosen) // size))]

    def _positions(self, split: str) -> Tensor:
        checks.one_of("split", split, SPLITS)
        everything = torch.arange(len(self.targets))
        if split == "all":
            return everything
        if self.test is None:
            raise ValueError(
                f"split must be 'all' for data {self.name!r}, which has no split of its own; got {split!r}. "
                "Leave --split out."
            )
        held_out = torch.zeros(len(self.targets), dtype=torch.bool)
        held_out[self.test] = True
        return everything[held_out if split == "test" else ~held_out]

    def _batch(self, rows: Tensor, dtype: torch.dtype | None) -> Any:
        def taken(tensor: Tensor) -> Tensor:
            part = tensor[rows]
            return part.to(dtype) if dtype is not None and part.is_floating_point() else part

        if isinstance(self.inputs, Mapping):
            return {**{name: taken(tensor) for name, tensor in self.inputs.items()}, "labels": taken(self.targets)}
        return taken(self.inputs), taken(self.targets)


def of_data_set(data: DataSet, layout: str) -> Examples:
    """Return a data set of hessprobe as a network of another library takes it.

    Args:
        data: images or text.
        layout: ``"image"``, ``"vector"`` or ``"tokens"``.
    """
    notes: tuple[str, ...] = ()
    if data.mean:
        shown = [", ".join(f"{value:.3g}" for value in values) for values in (data.mean, data.std)]
        notes = (f"images less ({shown[0]}), divided by ({shown[1]})",)
    return Examples(data.name, data.prepare(data.inputs, layout), data.labels, data.test, notes)
