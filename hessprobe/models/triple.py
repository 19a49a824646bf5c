"""The model, loss and data that a user's function returns, measured with the options of every other command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from hessprobe import checks
from hessprobe.errors import DataError, UnsupportedError, about
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.batches import as_tensors, cut, is_shuffled, rows

_BATCH_SIZE = 256


def risk_of(
    parts: Sequence[Any],
    *,
    split: str | None = None,
    examples: int | None = None,
    batch_size: int | None = None,
    params: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    batchnorm: str = "eval",
    seed: int = 0,
) -> EmpiricalRisk:
    """Return the mean loss of ``(model, loss, data)``.

    Args:
        parts: a module; a loss as ``EmpiricalRisk`` takes it; and batches, a DataLoader, a Dataset of single examples,
            or a dict of these by the names of splits. A shuffled DataLoader is read in the order of its data set.
        split: which of the dict; its only one or ``"train"`` by default.
        examples: how many to draw at random without replacement, >= 1; all by default.
        batch_size: examples a batch, >= 1; as the data come by default, 256 for a Dataset.
        params: as in ``EmpiricalRisk``.
        dtype: floating dtype of parameters and data; that of the model by default.
        device: where to compute.
        batchnorm: as in ``EmpiricalRisk``.
        seed: which examples are drawn, >= 0.

    Raises:
        TypeError: not a module, a loss and data.
        ValueError: an argument outside its range, or a split that the data do not have.
        UnsupportedError: examples of a stream, or of batches that cannot be cut, are to be drawn or batched anew.
    """
    model, loss, data = parts
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}. Return (model, loss, data).")
    chosen = _batched(_of_split(data, split), examples, batch_size, checks.resolve_seed(seed))
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype is not None and dtype != own:
        model, chosen = model.to(dtype), _Cast(chosen, dtype)
    return EmpiricalRisk(model.to(device), loss, chosen, params, batchnorm=batchnorm)


def _of_split(data: Any, split: str | None) -> Any:
    if isinstance(data, Mapping):
        name = split or (next(iter(data)) if len(data) == 1 else "train")
        checks.one_of("split", name, tuple(map(str, data)))
        return data[name]
    if split not in (None, "all"):
        raise ValueError(
            about("split", f"must be 'all' for data without splits; got {split!r}. Return a dict of splits as data.")
        )
    return data


def _batched(data: Any, examples: int | None, batch_size: int | None, seed: int) -> Any:
    fixed = examples is None and batch_size is None
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data, fixed = DataLoader(data, batch_size or _BATCH_SIZE), examples is None
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        if fixed and not is_shuffled(data):
            return data
        rows_of = data.dataset if examples is None else _drawn(data.dataset, examples, seed)
        return DataLoader(rows_of, batch_size or data.batch_size or _BATCH_SIZE, collate_fn=data.collate_fn)
    if fixed:
        return data
    if isinstance(data, DataLoader | IterableDataset):
        raise UnsupportedError(
            "--examples and --batch-size need data that can be counted; got a stream. Leave them out."
        )
    whole = [as_tensors(batch) for batch in data]
    pieces = [cut(batch, at, at + 1, n) for batch in whole for n in [rows(batch)] for at in range(n)]
    kept = pieces if examples is None else [pieces[at] for at in _positions(len(pieces), examples, seed)]
    size = batch_size or max(rows(batch) for batch in whole)
    return [_joined(kept[start : start + size]) for start in range(0, len(kept), size)]


def _drawn(data: Any, examples: int, seed: int) -> Any:
    return Subset(data, _positions(len(data), examples, seed))


def _positions(count: int, examples: int, seed: int) -> list[int]:
    checks.positive_int("examples", examples)
    if examples > count:
        raise ValueError(
            about("examples", f"must be at most {count}, all that there are; got {examples}. Ask for fewer.")
        )
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:examples]
    return [int(each) for each in drawn.sort().values]


def _joined(pieces: list[Any]) -> Any:
    first = pieces[0]
    if isinstance(first, Tensor):
        try:
            return torch.cat(pieces) if first.ndim else first
        except RuntimeError as error:
            raise DataError(
                f"examples of several shapes cannot be put in one batch ({error}). Leave --batch-size out."
            ) from error
    if isinstance(first, Mapping):
        return {key: _joined([each[key] for each in pieces]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_joined(list(each)) for each in zip(*pieces, strict=True))
    return first


class _Cast:
    """Batches with floating-point tensors of another dtype."""

    def __init__(self, data: Any, dtype: torch.dtype) -> None:
        self._data, self._dtype = data, dtype

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            yield tree_map(self._cast, as_tensors(batch))

    def _cast(self, leaf: Any) -> Any:
        return leaf.to(self._dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
