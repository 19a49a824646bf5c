"""Arrays of ``.npz`` files and columns of ``.csv`` files as labelled examples.

Rows of named values from ``.jsonl``, ``.csv`` and text files, and from data sets of the library ``datasets``.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import DataError
from hessprobe.models.images import Examples
from hessprobe.training.datasets.base import read_utf8
from hessprobe.training.datasets.hub import HELD_OUT, load_splits

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
# What NumPy and zipfile raise on bytes that they did not write.
_DAMAGE = (
    OSError, ValueError, EOFError, LookupError, AttributeError, TypeError, RuntimeError, MemoryError, SyntaxError,
    struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
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
        # Opened here: what NumPy cannot read it leaves open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays: dict[str, Array] = {key: archive[key] for key in archive.files}
    except _DAMAGE as error:
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


KINDS = ("text", "jsonl", "csv", "hf")
# Names that columns of texts and of targets usually have, for those that are not given by name.
TEXTS = ("text", "sentence", "content", "review", "question", "tokens", "words", "input", "source", "prompt")
LABELS = ("label", "labels", "target", "targets", "ner_tags", "tags", "summary", "answer", "translation", "class")


@dataclass(frozen=True)
class Rows:
    """Rows of named values.

    Attributes:
        name: as they were asked for.
        rows: one mapping a row, all of the same keys.
        held_out: how many at the end are held out; None where the source has no split.
        stream: whether the rows are pieces of one text.
    """

    name: str
    rows: list[Mapping[str, Any]]
    held_out: int | None = None
    stream: bool = False

    def column(self, given: str | None, usual: tuple[str, ...], option: str) -> str:
        """Return the name of a column: the given one, or the first usual one that is there.

        Raises:
            ValueError: there is no column of the given name.
            DataError: there is none of the usual names.
        """
        keys = tuple(map(str, self.rows[0]))
        if given is not None:
            return checks.one_of(option, given, keys)
        found = next((each for each in usual if each in keys), None)
        if found is None:
            flag = "--" + option.replace("_", "-")
            raise DataError(f"data {self.name!r} has the columns {', '.join(keys)}. Name the one to use by {flag}.")
        return found


def read_rows(kind: str, rest: str, name: str) -> Rows:
    """Return the rows of a file or data set.

    Args:
        kind: one of ``KINDS``.
        rest: path of the file; of ``hf`` a name or path, with ``:split`` behind it where one split is wanted.
        name: to call them by.

    Raises:
        DataError: nothing there, or it cannot be read.
        UnsupportedError: the library ``datasets`` is needed and not installed.
    """
    if kind == "hf":
        return _hub(rest, name)
    path = Path(rest).expanduser()
    if not path.is_file():
        raise DataError(f"data {name!r} must name a file that exists; got {rest!r}. Check the path.")
    content = read_utf8(path)
    if kind == "text":
        rows: list[Mapping[str, Any]] = [{"text": content}]
    elif kind == "csv":
        rows = _table(path)
    else:
        rows = _lines(content, path)
    if not rows or (kind == "text" and not content.strip()):
        raise DataError(f"{path} must hold at least one example; got none. Check the file.")
    return Rows(name, rows, stream=kind == "text")


def _lines(content: str, path: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path} line {number} is not JSON ({error}). Write one object a line.") from error
        if not isinstance(row, dict) or (rows and row.keys() != rows[0].keys()):
            raise DataError(f"{path} line {number} must be an object with the keys of the first line. Mend it.")
        rows.append(row)
    return rows


def _table(path: Path) -> list[Mapping[str, Any]]:
    import pandas as pd

    try:
        frame = pd.read_csv(path)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as CSV ({error}). Check the file.") from error
    if frame.isna().any().any():
        raise DataError(f"{path} has empty cells. Fill them, or leave those rows out.")
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _hub(rest: str, name: str) -> Rows:
    source, colon, split = rest.rpartition(":")
    if not colon or Path(rest).exists() or not split.isidentifier():
        source, split = rest, ""
    splits = load_splits(source)
    if split:
        checks.one_of("split in --data", split, tuple(map(str, splits)))
        return _some(name, [dict(row) for row in splits[split]])
    if "train" not in splits:
        only = next(iter(splits))
        if len(splits) > 1:
            raise DataError(f"data {name!r} has the splits {', '.join(map(str, splits))}. Name one: hf:PATH:SPLIT.")
        return _some(name, [dict(row) for row in splits[only]])
    held_out = next((each for each in HELD_OUT if each in splits), None)
    rows = [dict(row) for row in splits["train"]]
    if held_out is None:
        return _some(name, rows)
    rest_of = [dict(row) for row in splits[held_out]]
    return Rows(name, [*rows, *rest_of], len(rest_of))


def _some(name: str, rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> Rows:
    if not rows:
        raise DataError(f"data {name!r} must hold at least one example; got none. Choose another split.")
    return Rows(name, list(rows))
