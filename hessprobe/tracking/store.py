"""Finished checkpoints of a track on disk, so that none is measured twice."""

from __future__ import annotations

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
from hessprobe.measures.context import Start

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
