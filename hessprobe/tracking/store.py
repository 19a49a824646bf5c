"""Finished checkpoints of a track on disk, so that none is measured twice.

Points as plain tensors, numbers and strings, so that ``torch.load(weights_only=True)`` reads them back.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import files
from hessprobe.estimate import Batches, ErrorParts, Estimate, Influence
from hessprobe.measures.context import Result, Start
from hessprobe.tracking.point import Alignment, Point
from hessprobe.tracking.stability import Edge

FORMAT = "hessprobe.track/1"
_PARTS = ("eigenvectors", "directions")


def point_key(sha256: str, settings: Mapping[str, Any]) -> str:
    """Return the digest of a checkpoint's bytes and of everything else that decides what is measured."""
    return hashlib.sha256(json.dumps([FORMAT, sha256, dict(settings)], sort_keys=True).encode()).hexdigest()


@dataclass
class Store:
    """Rows of finished checkpoints, and what the next one starts from.

    Attributes:
        path: an npz file; it need not exist.
        rows: JSON-friendly row by key, see ``point_key``.
        latest: key of the row finished last, or "".
        start: what that one left.
    """

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    latest: str = ""
    start: Start = field(default_factory=Start)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Return what is stored; an empty store where there is no file, or one that is damaged or of another kind."""
        store = cls(Path(path))
        try:
            with store.path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                if str(content["format"]) != FORMAT:
                    return store
                rows, latest = json.loads(str(content["rows"])), str(content["latest"])
                parts: dict[str, Any] = {n: torch.from_numpy(content[n]) for n in _PARTS if n in content.files}
                own, surrogate = json.loads(str(content["engines"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return store
        store.rows, store.latest = rows, latest
        store.start = Start(**parts, engines=(own, surrogate))
        return store

    def add(self, key: str, row: dict[str, Any], start: Start) -> None:
        """Keep a finished row, on disk in one atomic step.

        Raises:
            OSError: the file cannot be written; the row is kept in memory.
        """
        self.rows[key], self.latest, self.start = row, key, start
        found = {name: getattr(start, name) for name in _PARTS}
        arrays = {name: _numpy(tensor) for name, tensor in found.items() if tensor is not None}
        texts = {"format": FORMAT, "rows": json.dumps(self.rows, allow_nan=False), "latest": key}
        texts["engines"] = json.dumps(start.engines)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays, **{name: np.array(text) for name, text in texts.items()})
        files.write_atomically(self.path, lambda file: file.write(buffer.getbuffer()))


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


STATE_FORMAT = "hessprobe.tracker/1"

_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Alignment, Batches, Edge, ErrorParts, Estimate, Influence, Point, Result, Start)
}
_KIND = "kind of record"


def packed(value: Any) -> Any:
    """Return ``value`` with every record in it as a dictionary that names its kind, and detached tensors.

    Raises:
        TypeError: something in it is neither a record of a point nor plain.
    """
    if type(value) in _KINDS.values():
        fields = {each.name: packed(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {_KIND: type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {key: packed(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        found = [packed(each) for each in value]
        return found if isinstance(value, list) else tuple(found)
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        # A number of NumPy's.
        return value.item()
    raise TypeError(f"points must hold tensors, numbers and strings; got {type(value).__name__}.")


def unpacked(value: Any) -> Any:
    """Return what ``packed`` was given.

    Raises:
        ValueError: a record of another kind, or of other fields than this version's.
    """
    if isinstance(value, Mapping):
        plain = {key: unpacked(each) for key, each in value.items() if key != _KIND}
        if _KIND not in value:
            return plain
        try:
            return _KINDS[value[_KIND]](**plain)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"state must be one of {STATE_FORMAT}; got {value[_KIND]!r} with {sorted(plain)}."
            ) from error
    if isinstance(value, (list, tuple)):
        found = [unpacked(each) for each in value]
        return found if isinstance(value, list) else tuple(found)
    return value


def placed(start: Start, device: torch.device) -> Start:
    """Return the same with its vectors on ``device``."""
    vectors, directions = start.eigenvectors, start.directions
    return dataclasses.replace(
        start,
        eigenvectors=None if vectors is None else vectors.to(device),
        directions=None if directions is None else directions.to(device),
    )


def width(start: Start) -> int | None:
    """Return how many parameters its vectors are of; None without any."""
    return next((v.shape[1] for v in (start.eigenvectors, start.directions) if v is not None), None)
