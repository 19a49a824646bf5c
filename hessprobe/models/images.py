"""Images from class folders, from torchvision and from the library ``datasets``, scaled and normalised by name.

Labelled examples in memory from any source, and batches of them as a network takes them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.errors import DataError, UnsupportedError, about
from hessprobe.models.build import require
from hessprobe.models.pretrained import read_config
from hessprobe.models.spec import Opening, parse_pairs
from hessprobe.objective.batches import content_hash
from hessprobe.training.datasets import DataSet, load_dataset
from hessprobe.training.datasets.base import SPLITS, image_set, some_of
from hessprobe.training.datasets.pictures import stack, to_array

Moments = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation of each channel on the scale [0, 1], as the usual recipes have them.
NORMALIZATION: dict[str, Moments] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
}
KINDS = ("image-folder", "hf", "torchvision")
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Usual:
    """How a network expects its images.

    Attributes:
        moments: of the channels; None for those of the data themselves.
        size: pixels of the shorter side, cut to a square; None for images as they are.
        source: who says so, for a reader.
    """

    moments: Moments | None = None
    size: int | None = None
    source: str = ""


AS_THEY_ARE = Usual()


def usual_of(kind: str, model: nn.Module, folder: str = "") -> Usual:
    """Return how a network expects its images: timm and transformers say it, torchvision's networks know ImageNet.

    Args:
        kind: of ``ModelSpec``.
        model: the network.
        folder: of transformers.
    """
    if kind == "timm":
        config = getattr(model, "pretrained_cfg", None) or {}
        size = (config.get("input_size") or (None,))[-1]
        return Usual((tuple(config["mean"]), tuple(config["std"])), size, "timm") if "mean" in config else Usual()
    if kind == "torchvision":
        return Usual(NORMALIZATION["imagenet"], None, "imagenet, as torchvision's networks are trained")
    config = read_config(Path(folder) / _PREPROCESSOR) if folder else {}
    if "image_mean" not in config:
        return Usual()
    size = config.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return Usual((tuple(config["image_mean"]), tuple(config["image_std"])), size, _PREPROCESSOR)


def load_images(kind: str, rest: str, name: str, opening: Opening, usual: Usual) -> tuple[DataSet, tuple[str, ...]]:
    """Return labelled images, and what a reader should know of how they were made.

    Args:
        kind: one of ``KINDS``.
        rest: folder, path, or ``CLASS?root=FOLDER`` of torchvision.
        name: to call them by.
        opening: size and normalisation, which win over the usual ones.
        usual: of the network.

    Raises:
        ValueError: no such data set of torchvision, or moments of another number of channels.
        DataError: nothing there, or images that cannot be read or have several sizes.
        UnsupportedError: a library is needed and not installed.
    """
    size = opening.image_size or usual.size
    if kind == "torchvision":
        data = _of_torchvision(rest, name, size)
    else:
        data = load_dataset(f"{kind}:{rest}", image_size=size)
    said = [] if size is None else [f"images scaled to a shorter side of {size} and cut to {size} x {size}"]
    if opening.normalize is not None:
        moments = NORMALIZATION.get(opening.normalize)
        data = data if moments is None else _normalized(data, moments)
        said.append(f"images normalised by {opening.normalize}")
    elif usual.moments is not None:
        data = _normalized(data, usual.moments)
        said.append(f"images normalised by {usual.source}")
    else:
        said.append("images normalised by the mean and deviation of these data; --normalize names others")
    return data, tuple(said)


def _normalized(data: DataSet, moments: Moments) -> DataSet:
    channels = data.inputs.shape[1]
    mean, std = (values * channels if len(values) == 1 else values for values in moments)
    if len(mean) != channels:
        raise ValueError(
            f"--normalize must have as many channels as the images, {channels}; got {len(mean)}. Choose another."
        )
    return replace(data, mean=mean, std=std)


def _of_torchvision(rest: str, name: str, size: int | None) -> DataSet:
    library = require("torchvision", f"--data {name}").datasets
    title, _, listed = rest.partition("?")
    known = [each for each in dir(library) if isinstance(getattr(library, each), type)]
    factory = getattr(library, checks.one_of("--data torchvision:CLASS", title, known))
    options = parse_pairs(name, listed, "&", "torchvision:CLASS?root=FOLDER")
    parts = [_part(factory, {"root": ".", **options}, held_out, name) for held_out in (False, True)]
    rows = [row for part in parts for row in (part[index] for index in range(len(part)))]
    arrays = [to_array(image, size) for image, _ in rows]
    labels = torch.tensor([int(label) for _, label in rows])
    names = [f"{name} row {index}" for index in range(len(rows))]
    test = torch.arange(len(parts[0]), len(rows))
    return image_set(name, stack(arrays, names), labels, test, int(labels.max()) + 1)


def _part(factory: Any, options: dict[str, Any], held_out: bool, name: str) -> Sequence[Any]:
    parameters = inspect.signature(factory).parameters
    choices: list[dict[str, Any]]
    if "train" in parameters:
        choices = [{"train": not held_out}]
    elif "split" in parameters:
        choices = [{"split": each} for each in (("test", "val", "valid") if held_out else ("train",))]
    else:
        raise UnsupportedError(f"--data {name} has no training part of its own. Lay its images out as class folders.")
    download = {"download": False} if "download" in parameters else {}
    failure: Exception | None = None
    for choice in choices:
        try:
            part: Sequence[Any] = factory(**options, **choice, **download)
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            failure = failure or error
        else:
            return part
    reason = " ".join(str(failure).split()).rstrip(".")
    raise DataError(f"--data {name} cannot be read: {reason}. Give its folder: torchvision:CLASS?root=FOLDER.")


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
                about(
                    "split",
                    f"must be 'all' for data {self.name!r}, which has no split of its own; got {split!r}. "
                    "Leave --split out.",
                )
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
