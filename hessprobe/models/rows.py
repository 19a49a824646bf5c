"""Rows of named values from ``.jsonl``, ``.csv`` and text files, and from data sets of the library ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hessprobe import checks
from hessprobe.errors import DataError
from hessprobe.training.datasets.hub import HELD_OUT, load_splits
from hessprobe.training.datasets.text import read_utf8

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
