"""Nested batches: moving, counting rows, cutting, and hashing; and the check that data can be read again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from hessprobe.errors import DataError

TARGET_KEYS = ("labels", "label", "targets", "target")


class Hash(Protocol):
    """What ``digest`` writes to; any ``hashlib`` object."""

    def update(self, data: bytes | memoryview[int], /) -> None:
        """Add bytes."""
        ...


def require_reiterable(data: Any) -> None:
    """Refuse data that cannot be read again and again.

    Raises:
        TypeError: a one-shot iterator, a function, a map-style ``Dataset`` of single examples, a bare pair of
            tensors, or something that is not iterable.
    """
    hint = "Pass a list of batches or a DataLoader: curvature reads the data many times."
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"data must yield batches; got the {type(data).__name__} of single examples. Wrap it in DataLoader."
        )
    if isinstance(data, Tensor | Mapping | str) or (
        isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)
    ):
        got = "a pair of tensors" if isinstance(data, tuple) else f"a {type(data).__name__}"
        raise TypeError(
            f"data must be an iterable of batches; got {got}. Pass [(inputs, targets)], a list of one batch."
        )
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise TypeError(f"data must be an iterable of batches; got {type(data).__name__}. {hint}")
    if isinstance(data, Iterator) or iter_is_itself(data):
        raise TypeError(f"data must be re-iterable; got a one-shot {type(data).__name__}. {hint}")


def iter_is_itself(data: Any) -> bool:
    """Return whether ``iter(data)`` is ``data``, asked without starting the workers or generator of a loader."""
    return not isinstance(data, DataLoader | list | tuple) and iter(data) is data


def is_shuffled(data: Any) -> bool:
    """Return whether ``data`` is a DataLoader that draws its order at random."""
    return isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler)


def generators_of(data: Any) -> list[torch.Generator]:
    """Return the random generators that reading ``data`` may advance, each once."""
    sampler = getattr(data, "sampler", None)
    batch_sampler = getattr(data, "batch_sampler", None)
    owners = (data, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def seeded_by(data: Any, generator: torch.Generator) -> Iterator[None]:
    """Let a DataLoader without a generator of its own draw from ``generator`` inside, where it begins a pass.

    It draws a seed for its workers even where it has none; from the global generator this would be seen by all threads.
    """
    if not isinstance(data, DataLoader) or data.generator is not None:
        yield
        return
    data.generator = generator
    try:
        yield
    finally:
        data.generator = None


def to_device(tree: Any, device: torch.device) -> Any:
    """Return ``tree`` with every tensor on ``device``; tensors already there are shared, arrays become tensors.

    Tensors of inference mode, which autograd cannot save, are copied.
    """
    if isinstance(tree, Tensor):
        moved = tree.to(device, non_blocking=True)
        return moved.clone() if moved.is_inference() else moved
    if isinstance(tree, np.ndarray):
        return as_tensors(tree).to(device)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device) for key, value in tree.items()}
    if hasattr(tree, "to") and callable(tree.to):
        return tree.to(device)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(to_device(item, device) for item in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(to_device(item, device) for item in tree)
    return tree


def as_tensors(tree: Any) -> Any:
    """Return ``tree`` with NumPy arrays of numbers as tensors, which share their memory where it may be written."""
    if isinstance(tree, np.ndarray):
        if tree.dtype.kind not in "biufc":
            raise TypeError(f"arrays in data must hold numbers; got dtype {tree.dtype}. Convert them to numbers.")
        return torch.as_tensor(tree if tree.flags.writeable and all(s >= 0 for s in tree.strides) else tree.copy())
    if isinstance(tree, np.generic):
        return torch.as_tensor(tree)
    if isinstance(tree, Mapping) and any(isinstance(value, np.ndarray) for value in tree.values()):
        return {key: as_tensors(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(as_tensors(item) for item in tree)
    return tree


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree of mappings and sequences in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves(item)


def rows(*trees: Any) -> int:
    """Return the number of examples: the length of the first tensor that has a leading dimension.

    Raises:
        DataError: no tensor has one.
    """
    for leaf in leaves(trees):
        if leaf.ndim > 0:
            return len(leaf)
    raise DataError(
        "A batch holds no tensor with a leading dimension, so its examples cannot be counted. Pass forward=."
    )


def require_dtype(inputs: Any, dtype: torch.dtype, error: Exception) -> None:
    """Say that floating-point inputs of another dtype than the parameters are the likely cause of ``error``.

    Raises:
        TypeError: where there are such inputs.
    """
    other = next((leaf.dtype for leaf in leaves(inputs) if leaf.is_floating_point() and leaf.dtype != dtype), None)
    if other is not None:
        raise TypeError(f"inputs must have the dtype of the parameters, {dtype}; got {other}. Convert one.") from error


def cut(tree: Any, start: int, stop: int, length: int) -> Any:
    """Return rows ``start .. stop - 1`` of every tensor whose leading dimension is ``length``; others are shared."""
    return _mapped(tree, lambda leaf: leaf[start:stop] if leaf.ndim > 0 and len(leaf) == length else leaf)


def _mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(item, function) for item in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(item, function) for item in tree)
    return tree


def digest(tree: Any, into: Hash) -> None:
    """Add the content of ``tree`` (keys, dtypes, shapes, values, in order) to a hash."""
    if isinstance(tree, np.ndarray):
        tree = torch.as_tensor(tree)
    if isinstance(tree, Tensor):
        into.update(f"{tree.dtype}{tuple(tree.shape)}".encode())
        flat = tree.detach().to_dense() if tree.layout != torch.strided else tree.detach()
        into.update(flat.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            into.update(f"{key}:".encode())
            digest(value, into)
    elif isinstance(tree, list | tuple):
        into.update(f"[{len(tree)}".encode())
        for item in tree:
            digest(item, into)
    elif tree is None or isinstance(tree, bool | int | float | complex | str | bytes):
        into.update(repr(tree).encode())
    else:
        # A foreign batch object (a graph) is known by its tensors; other attributes may point anywhere.
        into.update(type(tree).__name__.encode())
        held = getattr(tree, "__dict__", {})
        digest({key: value for key, value in held.items() if isinstance(value, Tensor | np.ndarray)}, into)


def content_hash(tree: Any) -> str:
    """Return the sha256 of the content of ``tree`` as hexadecimal digits."""
    hasher = hashlib.sha256()
    digest(tree, hasher)
    return hasher.hexdigest()


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return ``(inputs, targets)`` of a batch; of a dict, its other entries and its labels (None without labels).

    Raises:
        TypeError: a batch of another form.
    """
    if isinstance(batch, Mapping):
        key = target_key(batch)
        return {k: v for k, v in batch.items() if k != key}, None if key is None else batch[key]
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, list | tuple) else type(batch).__name__
    raise TypeError(
        f"data must yield (inputs, targets) pairs or dicts; got a {got}. "
        "Pass forward=function(module, batch) -> (loss_sum, weight) for batches of another form."
    )


def target_key(batch: Mapping[str, Any]) -> str | None:
    """Return the key that holds the targets of a dict batch, or None."""
    return next((key for key in TARGET_KEYS if key in batch), None)
