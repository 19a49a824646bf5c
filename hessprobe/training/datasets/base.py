"""A data set in memory, its fixed split, and batches of it.

Parts of a data set, and wrong labels in it: both drawn from a seed of their own.

The handwritten digits that scikit-learn ships.

Images made from numbers: classes of a chosen size and difficulty, the same on every machine.

Text as characters, each to be predicted from those before it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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


# Streams of one seed that share nothing.
_SUBSET, _NOISE = 1, 2


def subset(data: DataSet, share: float, seed: int) -> DataSet:
    """Return ``data`` with a random ``share`` of the training examples of every class; held-out ones all stay.

    Args:
        data: not changed.
        share: in (0, 1]; of each class round(share * count) examples stay, at least one.
        seed: which, >= 0.

    Raises:
        TypeError, ValueError: share outside (0, 1].
    """
    checks.real("subset", share, low=0, low_open=True, high=1, hint="0.1 keeps a tenth of the training examples.")
    if share == 1:
        return data
    generator, train = _generator(seed, _SUBSET), data.positions("train")
    groups = torch.zeros(len(train)) if data.is_text else data.labels[train]
    kept = [_draw(train[groups == each], share, generator) for each in torch.unique(groups)]
    rows = torch.cat([*kept, data.test]).sort().values
    held_out = torch.zeros(len(data.labels), dtype=torch.bool)
    held_out[data.test] = True
    return dataclasses.replace(
        data,
        inputs=data.inputs[rows],
        labels=data.labels[rows],
        test=torch.nonzero(held_out[rows]).flatten(),
        clean_labels=None if data.clean_labels is None else data.clean_labels[rows],
    )


def mislabel(data: DataSet, share: float, seed: int) -> DataSet:
    """Return ``data`` with round(share n) of the n training labels changed, each to another class, all equally likely.

    Held-out labels stay right, and the right ones of the training examples are kept in ``clean_labels``.

    Args:
        data: images; not changed.
        share: in [0, 1].
        seed: which labels, and to what, >= 0.

    Raises:
        TypeError, ValueError: share outside [0, 1], or text, or a single class.
    """
    checks.real("label_noise", share, low=0, high=1, hint="0.2 makes a fifth of the training labels wrong.")
    if share == 0:
        return data
    if data.is_text:
        raise ValueError(about("label_noise", f"must be 0 for text; got {share:g}. Leave it out."))
    if data.n_classes < 2:
        raise ValueError(about("label_noise", f"must be 0 for data of one class; got {share:g}. Leave it out."))
    generator, train = _generator(seed, _NOISE), data.positions("train")
    count = round(share * len(train))
    chosen = train[torch.randperm(len(train), generator=generator)[:count]]
    step = torch.randint(1, data.n_classes, (count,), generator=generator)
    labels = data.labels.clone()
    labels[chosen] = (labels[chosen] + step) % data.n_classes
    return dataclasses.replace(data, labels=labels, clean_labels=data.labels)


def _draw(rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    count = max(1, round(share * len(rows)))
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((checks.resolve_seed(seed) * 8 + stream) % 2**63)


_SIDE = 8
_MAX = 16.0


@functools.cache
def load_digits() -> DataSet:
    """Return 1,797 handwritten digits of 8 x 8 pixels, scaled from 0..16 to [0, 1]; every fifth of a class held out.

    References:
        Alpaydin, Kaynak (1998), "Optical recognition of handwritten digits", UCI machine learning repository.
    """
    table = torch.from_numpy(_table())
    images, labels = table[:, :-1].to(torch.float32).div_(_MAX), table[:, -1].to(torch.int64)
    return DataSet("digits", images.view(-1, 1, _SIDE, _SIDE), labels, every_fifth_of_each_class(labels), 10)


def _table() -> np.ndarray[Any, np.dtype[np.float64]]:
    # Read from scikit-learn's file where it can be found: importing scikit-learn takes most of a second.
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits as load

    raw = load()
    return np.column_stack([raw.data, raw.target])


def make_synthetic(
    name: str = "synthetic",
    *,
    n: int = 2000,
    n_classes: int = 10,
    side: int = 8,
    channels: int = 1,
    noise: float = 0.5,
    seed: int = 0,
) -> DataSet:
    """Return n images (1 - noise) p_c + noise u, of a random prototype p_c of their class and uniform u in [0, 1].

    Args:
        name: to call it by.
        n: number of images, >= 5 * n_classes; classes take turns, every fifth image of a class is held out.
        n_classes: >= 2.
        side: height and width in pixels, >= 1.
        channels: >= 1.
        noise: weight in [0, 1] of u; 1 leaves nothing to learn.
        seed: of prototypes and noise, >= 0.

    Raises:
        TypeError, ValueError: a value outside its range.
    """
    checks.positive_int("n_classes", n_classes, minimum=2)
    checks.positive_int("n", n, minimum=5 * n_classes, hint="Give every class at least five images.")
    for key, size in {"side": side, "channels": channels}.items():
        checks.positive_int(key, size)
    share = checks.real("noise", noise, low=0, high=1)
    # numpy promises the stream of a bit generator for good, and what follows is exact elementwise arithmetic.
    generator = np.random.Generator(np.random.PCG64(checks.resolve_seed(seed)))
    prototypes = generator.random((n_classes, channels, side, side))
    labels = np.arange(n) % n_classes
    pixels = (1 - share) * prototypes[labels] + share * generator.random((n, channels, side, side))
    targets = torch.from_numpy(labels).to(torch.int64)
    images = torch.from_numpy((pixels * 255).astype(np.uint8))
    return image_set(name, images, targets, every_fifth_of_each_class(targets), n_classes)


DEFAULT_CONTEXT = 64

# The last tenth of the windows is held out: text has no classes, and neighbouring windows belong together.
_HOLD_OUT = 10


def load_text(name: str, path: Path, context: int | None = None) -> DataSet:
    """Return a UTF-8 text as windows of ``context`` characters and, as labels, the character after each.

    The windows do not overlap; the vocabulary is the sorted set of characters of the file; the last tenth of the
    windows is held out.

    Args:
        name: to call it by.
        path: the file.
        context: characters in a window, >= 1; 64 by default.

    Raises:
        ValueError: context is not a positive integer.
        DataError: not UTF-8, or too short for two windows.
    """
    length = checks.positive_int("context", DEFAULT_CONTEXT if context is None else context)
    if path.exists() and not path.is_file():
        raise DataError(f"data must be a text file; got {str(path)!r}, which is none. Check the path.")
    text = read_utf8(path)
    windows = (len(text) - 1) // length
    if windows < 2:
        raise DataError(
            f"{path} must hold at least {2 * length + 1} characters for context {length}; got {len(text)}. "
            "Take a longer text or a smaller context."
        )
    # The characters as numbers: their places in the sorted vocabulary.
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    vocabulary, tokens = torch.unique(codes, sorted=True, return_inverse=True)
    used = windows * length
    inputs = tokens[:used].view(windows, length).contiguous()
    labels = tokens[1 : used + 1].view(windows, length).contiguous()
    test = torch.arange(windows - max(1, windows // _HOLD_OUT), windows)
    return DataSet(name, inputs, labels, test, len(vocabulary))


def read_utf8(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: not UTF-8, or it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Convert it, e.g. with iconv.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path and its permissions.") from error
