"""Embedded data sets with a fixed split and a content hash."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import DataError

SPLITS = ("train", "test", "all")
LAYOUTS = ("vector", "image")

# One example in five of every class is held out.
_HOLD_OUT_EVERY = 5
_DIGITS_SIDE = 8
_DIGITS_MAX = 16.0


@dataclass(frozen=True)
class DataSet:
    """Labelled images in memory.

    Attributes:
        name: name in the registry.
        images: (n, channels, height, width), float32 in [0, 1].
        labels: (n,), int64 in 0 .. n_classes - 1.
        test: positions of the held-out examples, ascending.
        n_classes: number of classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    test: Tensor
    n_classes: int

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of images, labels and split; the same on every machine."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels, self.test):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def implied_arguments(self) -> dict[str, Any]:
        """Model arguments that follow from the shape of the data."""
        shape = self.images.shape[1:]
        return {"in_features": math.prod(shape), "in_channels": shape[0], "n_classes": self.n_classes}

    def positions(self, split: str) -> Tensor:
        """Return the positions of the examples of ``"train"``, ``"test"`` or ``"all"``, ascending.

        Raises:
            ValueError: unknown split.
        """
        checks.one_of("split", split, SPLITS)
        everything = torch.arange(len(self.labels))
        if split == "all":
            return everything
        held_out = torch.zeros(len(self.labels), dtype=torch.bool)
        held_out[self.test] = True
        return everything[held_out if split == "test" else ~held_out]

    def split(
        self, split: str = "all", layout: str = "vector", *, examples: int | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of a split, or of a random part of it.

        Args:
            split: ``"train"``, ``"test"`` or ``"all"``.
            layout: ``"vector"`` gives inputs (n, features), ``"image"`` (n, channels, height, width).
            examples: how many examples to draw without replacement, 1 <= examples <= n; all by default.
            seed: which part is drawn, an integer >= 0.

        Raises:
            ValueError: unknown split or layout, or more examples than there are.
        """
        if layout not in LAYOUTS:
            raise ValueError(
                f"layout must be one of {', '.join(LAYOUTS)} for data {self.name!r}; got {layout!r}. "
                "Choose a model for images or vectors."
            )
        positions = self.positions(split)
        if examples is not None:
            checks.positive_int("examples", examples)
            if examples > len(positions):
                raise ValueError(
                    f"examples must be at most {len(positions)}, the size of split {split!r} of {self.name!r}; "
                    f"got {examples}. Ask for fewer, or for split 'all'."
                )
            generator = torch.Generator().manual_seed(checks.resolve_seed(seed))
            drawn = torch.randperm(len(positions), generator=generator)[:examples]
            positions = positions[drawn.sort().values]
        images = self.images[positions]
        return images if layout == "image" else images.flatten(1), self.labels[positions]


def batches(inputs: Tensor, labels: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return re-iterable batches of at most ``batch_size`` >= 1 examples in the given order; views, not copies.

    Their sizes differ by one at most: a small last batch would cost as much as a large one and blur what the spread
    between batches says.

    Raises:
        DataError: no examples.
    """
    size = checks.positive_int("batch_size", batch_size)
    if len(labels) == 0:
        raise DataError("data must hold at least one example; got none. Choose another split.")
    count = -(-len(labels) // size)
    return list(zip(inputs.tensor_split(count), labels.tensor_split(count), strict=True))


def load_dataset(name: str) -> DataSet:
    """Return an embedded data set by name.

    Raises:
        ValueError: unknown name; the message names the nearest one.
    """
    return REGISTRY[checks.one_of("data", name, REGISTRY)]()


@functools.cache
def _digits() -> DataSet:
    # 1,797 handwritten digits of 8 x 8 pixels in 0..16, shipped inside scikit-learn.
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).to(torch.float32).div_(_DIGITS_MAX)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    return DataSet(
        "digits", images.view(-1, 1, _DIGITS_SIDE, _DIGITS_SIDE), labels, _every_fifth_of_each_class(labels), 10
    )


def _every_fifth_of_each_class(labels: Tensor) -> Tensor:
    # A rule instead of a random draw: no library's generator can change it, and neighbours in the file, often of the
    # same writer, are spread over both parts alike.
    held_out = [torch.nonzero(labels == each).flatten()[::_HOLD_OUT_EVERY] for each in torch.unique(labels).tolist()]
    return torch.cat(held_out).sort().values


REGISTRY: dict[str, Callable[[], DataSet]] = {"digits": _digits}
