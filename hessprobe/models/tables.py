"""Arrays of ``.npz`` files and columns of ``.csv`` files as labelled examples."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import DataError
from hessprobe.models.examples import Examples

TARGETS = ("label", "labels", "target", "targets", "class", "y")
# How arrays of inputs and targets are called, those with a split of their own first.
_PAIRS = (
    ("x_train", "y_train"),
    ("X_train", "y_train"),
    ("train_images", "train_labels"),
    ("inputs", "targets"),
    ("inputs", "labels"),
    ("x", "y"),
    ("X", "y"),
    ("data", "target"),
    ("data", "labels"),
    ("images", "labels"),
    ("features", "labels"),
    ("arr_0", "arr_1"),
)
_BYTE_MAX = 255.0
_CHANNELS = (1, 3, 4)

Array = np.ndarray[Any, Any]


def load_npz(name: str, path: Path, label: str | None = None) -> Examples:
    """Return arrays of a ``.npz`` file as inputs and targets.

    Taken are the arrays ``x``/``y``, ``inputs``/``targets``, ``images``/``labels`` and the like, with ``x_test`` and
    ``y_test`` beside ``x_train`` and ``y_train`` as the held-out part. Images of bytes (n, H, W) or (n, H, W, C) become
    (n, C, H, W) on the scale [0, 1].

    Args:
        name: to call them by.
        path: the file.
        label: name of the array of targets, where it is none of these.

    Raises:
        DataError: not such a file, arrays that cannot be told apart, of different lengths, or that hold no numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, Array] = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(f"{path} is not a file of NumPy arrays ({error}). Write it with numpy.savez.") from error
    x, y = _pair(arrays, label, path)
    inputs, targets = arrays[x], arrays[y]
    others = [each.replace("train", "test") for each in (x, y)]
    held_out = x != others[0] and all(each in arrays for each in others)
    for key, count in ((x, len(targets)), (others[0], len(arrays[others[1]]))) if held_out else ((x, len(targets)),):
        if len(arrays[key]) != count:
            raise DataError(
                f"{path} must have as many targets as inputs; got {len(arrays[key])} of {key!r} and {count}."
            )
    test = None
    if held_out:
        test = torch.arange(len(inputs), len(inputs) + len(arrays[others[0]]))
        inputs, targets = (np.concatenate([arrays[a], arrays[b]]) for a, b in zip((x, y), others, strict=True))
    tensor, notes = _inputs(inputs, f"{path}, array {x!r}")
    return Examples(name, tensor, _targets(targets, f"{path}, array {y!r}"), test, notes)


def load_csv(name: str, path: Path, label: str | None = None) -> Examples:
    """Return the numeric columns of a ``.csv`` file as inputs (n, columns) and one column as targets (n,).

    Args:
        name: to call them by.
        path: the file, its first line the names of the columns.
        label: the column of targets; by default the one that is called ``label``, ``target``, ``class`` or ``y``.
            Integers stay class labels, texts become numbers of classes in the order of their names, other numbers stay.

    Raises:
        DataError: not such a file, no column of targets, a column of texts among the inputs, or missing values.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}). Check the file.") from error
    columns = [str(each) for each in frame.columns]
    target = _target_column(columns, label, path)
    empty = [str(each) for each in frame.columns[frame.isna().any()]]
    if empty:
        raise DataError(f"{path} has empty cells in column {empty[0]!r}. Fill them, or leave those rows out.")
    inputs = frame.drop(columns=target)
    words = [str(each) for each, kind in inputs.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if words or not len(inputs.columns):
        what = f"column {words[0]!r} holds texts" if words else "there is no other column"
        raise DataError(f"{path} must have columns of numbers beside {target!r}; {what}. Encode or drop it.")
    values = frame[target].to_numpy()
    notes: tuple[str, ...] = ()
    if not pd.api.types.is_numeric_dtype(frame[target].dtype):
        classes = sorted(set(map(str, values)))
        values = np.array([classes.index(str(each)) for each in values])
        notes = (f"classes of {target!r} in the order of their names: {', '.join(classes[:5])}",)
    return Examples(
        name, torch.tensor(inputs.to_numpy(np.float64)), _targets(values, f"{path}, {target!r}"), None, notes
    )


def _pair(arrays: Mapping[str, Array], label: str | None, path: Path) -> tuple[str, str]:
    listed = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
    if label is not None:
        checks.one_of("label_column", label, tuple(arrays))
        rest = [key for key in arrays if key != label]
        if len(rest) == 1:
            return rest[0], label
        raise DataError(f"{path} must hold one array beside {label!r}; got {listed}. Save inputs and targets alone.")
    found = next((pair for pair in _PAIRS if pair[0] in arrays and pair[1] in arrays), None)
    if found is None:
        raise DataError(f"{path} must hold arrays x and y; got {listed}. Rename them, or name one by --label-column.")
    return found


def _target_column(columns: Sequence[str], label: str | None, path: Path) -> str:
    if label is not None:
        return checks.one_of("label_column", label, columns)
    found = [each for each in columns if each.lower() in TARGETS]
    if len(found) != 1:
        seen = f"{', '.join(found)} all could be" if found else f"none of {', '.join(columns[:5])} is called so"
        raise DataError(f"{path} must have one column of targets; {seen}. Name it by --label-column.")
    return found[0]


def _inputs(array: Array, where: str) -> tuple[Tensor, tuple[str, ...]]:
    _require_numbers(array, where)
    if array.dtype != np.uint8:
        tensor = torch.tensor(array if array.dtype.kind == "f" else array.astype(np.int64))
        return tensor, ()
    tensor, notes = torch.tensor(array), ["bytes of the inputs divided by 255"]
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    elif tensor.ndim == 4 and tensor.shape[-1] in _CHANNELS and tensor.shape[1] not in _CHANNELS:
        tensor = tensor.movedim(-1, 1)
        notes.append("channels moved from last to first")
    return tensor.contiguous().to(torch.float32).div_(_BYTE_MAX), tuple(notes)


def _targets(array: Array, where: str) -> Tensor:
    _require_numbers(array, where)
    tensor = torch.tensor(array if array.dtype.kind == "f" else array.astype(np.int64))
    # Keras stores class labels as a column.
    return tensor[:, 0] if tensor.ndim == 2 and tensor.shape[1] == 1 and not tensor.is_floating_point() else tensor


def _require_numbers(array: Array, where: str) -> None:
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise DataError(f"{where} must hold numbers, one row an example; got {array.dtype} {array.shape}. Convert it.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{where} must hold finite numbers; got nan or inf. Fill them, or leave those rows out.")
