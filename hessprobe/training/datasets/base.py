"""A data set in memory, its fixed split, and batches of it."""

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
from hessprobe.errors import DataError, about

SPLITS = ("train", "test", "all")
LAYOUTS = ("vector", "image")
TOKEN_LAYOUTS = ("tokens",)

# One example in five of every class is held out where the data come without a split.
_HOLD_OUT_EVERY = 5
_BYTE_MAX = 255.0

# (stage, done, total, remark), as progress bars take it.
Report = Callable[[str, float, float | None, str], None]


@dataclass(frozen=True)
class DataSet:
    """Labelled examples in memory.

    Attributes:
        name: as it was asked for.
        inputs: images (n, channels, height, width), float32 in [0, 1] or uint8, or tokens (n, T), int64.
        labels: (n,) for images, (n, T) for tokens, int64 in 0 .. n_classes - 1; those that are trained on.
        test: positions of the held-out examples, ascending.
        n_classes: number of classes, or of different tokens.
        mean, std: of each channel over the training split, on the scale [0, 1]; images of uint8 are standardised with
            them. Empty where the inputs are used as they are.
        clean_labels: the labels before label noise; None where there is none.
    """

    name: str
    inputs: Tensor
    labels: Tensor
    test: Tensor
    n_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    clean_labels: Tensor | None = None

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of inputs, labels and split; the same on every machine."""
        digest = hashlib.sha256()
        clean = () if self.clean_labels is None else (self.clean_labels,)
        for tensor in (self.inputs, self.labels, self.test, *clean):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().data)
        if self.mean:
            digest.update(repr((self.mean, self.std)).encode())
        return digest.hexdigest()

    @property
    def is_text(self) -> bool:
        """Whether the examples are sequences of tokens."""
        return self.inputs.ndim == 2

    @property
    def implied_arguments(self) -> dict[str, Any]:
        """Model arguments that follow from the shape of the data."""
        if self.is_text:
            return {"vocab_size": self.n_classes, "context": self.inputs.shape[1]}
        shape = self.inputs.shape[1:]
        size = shape[1] if shape[1] == shape[2] else [shape[1], shape[2]]
        return {
            "in_features": math.prod(shape),
            "in_channels": shape[0],
            "image_size": size,
            "n_classes": self.n_classes,
        }

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
            layout: ``"vector"`` gives inputs (n, features), ``"image"`` (n, channels, height, width), ``"tokens"``
                (n, T).
            examples: how many examples to draw without replacement, 1 <= examples <= n; all by default.
            seed: which part is drawn, an integer >= 0.

        Raises:
            ValueError: unknown split or layout, or more examples than there are.
        """
        self.require_layout(layout)
        positions = self.positions(split)
        if examples is not None:
            positions = some_of(positions, examples, seed, f"split {split!r} of {self.name!r}")
        return self.prepare(self.inputs[positions], layout), self.labels[positions]

    def require_layout(self, layout: str) -> None:
        """Refuse a layout that these data cannot be given in.

        Raises:
            ValueError: names those they can.
        """
        known = TOKEN_LAYOUTS if self.is_text else LAYOUTS
        if layout not in known:
            kind = "tokens, such as gpt" if self.is_text else "images or vectors"
            raise ValueError(
                f"layout must be one of {', '.join(known)} for data {self.name!r}; got {layout!r}. "
                f"Choose a model for {kind}."
            )

    def prepare(self, inputs: Tensor, layout: str) -> Tensor:
        """Return some of ``inputs``, on any device, as a model of this layout takes them."""
        if inputs.dtype == torch.uint8:
            inputs = inputs.to(torch.float32).div_(_BYTE_MAX)
            if self.mean:
                inputs.sub_(torch.tensor(self.mean, device=inputs.device).view(-1, 1, 1))
                inputs.div_(torch.tensor(self.std, device=inputs.device).view(-1, 1, 1))
        return inputs.flatten(1) if layout == "vector" else inputs


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


def image_set(name: str, images: Tensor, labels: Tensor, test: Tensor, n_classes: int) -> DataSet:
    """Return uint8 images (n, channels, height, width) as a data set, standardised by its own training split.

    Raises:
        DataError: an empty split.
    """
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[test] = False
    if not bool(kept.any()) or not len(test):
        raise DataError(
            f"data {name!r} must have images to train on and to hold out; got {int(kept.sum())} and {len(test)}. "
            "Give every class more images."
        )
    mean, std = _moments(images[kept])
    return DataSet(name, images, labels, test, n_classes, mean, std)


def every_fifth_of_each_class(labels: Tensor) -> Tensor:
    """Return the positions of every fifth example of each class, ascending.

    A rule instead of a random draw: no library's generator can change it, and neighbours in a file, often of the same
    origin, are spread over both parts alike.
    """
    held_out = [torch.nonzero(labels == each).flatten()[::_HOLD_OUT_EVERY] for each in torch.unique(labels).tolist()]
    return torch.cat(held_out).sort().values


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # From a count of the 256 levels: exact integers, so that no order of summation shows in the result.
    means, deviations = [], []
    levels = torch.arange(256, dtype=torch.int64)
    for channel in range(images.shape[1]):
        count = torch.bincount(images[:, channel].flatten(), minlength=256)
        n, total, square = int(count.sum()), int((count * levels).sum()), int((count * levels * levels).sum())
        means.append(total / n / _BYTE_MAX)
        # A constant channel is left at its own scale.
        deviations.append(math.sqrt((square * n - total * total) / (n * n)) / _BYTE_MAX or 1.0)
    return tuple(means), tuple(deviations)


def some_of(positions: Tensor, examples: int, seed: int, of: str) -> Tensor:
    """Return positions drawn at random without replacement, in their order.

    Args:
        positions: (n,).
        examples: how many, 1 <= examples <= n.
        seed: which, an integer >= 0.
        of: what they are positions of, for the message.

    Raises:
        TypeError, ValueError: ``examples`` outside its range.
    """
    checks.positive_int("examples", examples)
    if examples > len(positions):
        raise ValueError(
            about(
                "examples",
                f"must be at most {len(positions)}, the size of {of}; got {examples}. Ask for fewer, or for "
                "split 'all'.",
            )
        )
    generator = torch.Generator().manual_seed(checks.resolve_seed(seed))
    return positions[torch.randperm(len(positions), generator=generator)[:examples].sort().values]
