"""A record where a checkpoint belongs, a checkpoint where a record does: told by the command that takes it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from hessprobe.cli.process import UsageError
from hessprobe.errors import CheckpointError

_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
_HEAD = 4096
_RECORD = re.compile(rb'\A\s*\{\s*"schema":\s*"hessprobe\.')
_COMMAND = re.compile(rb'"command":\s*"([a-z-]+)"')
# How files of torch.save begin: a zip archive, or, before torch 1.6, a pickle.
_WEIGHTS = (b"PK\x03\x04", b"\x80\x02")


def require_records(paths: Iterable[str | Path]) -> None:
    """Refuse files of weights.

    Raises:
        UsageError: names the command that makes a record of the first one.
    """
    for path in map(Path, paths):
        if path.suffix in _CHECKPOINTS or _head(path).startswith(_WEIGHTS):
            made = shlex.join(["hessprobe", "measure", str(path), "--json", str(path.with_suffix(".json"))])
            raise UsageError(f"RECORD must be a record; got the checkpoint {str(path)!r}. Measure it first: {made}")


def refuse_record(path: str | Path) -> None:
    """Refuse a record of this program.

    Raises:
        UsageError: names the commands that show it.
    """
    head = _head(Path(path))
    if _RECORD.match(head):
        found = _COMMAND.search(head)
        of = f" of hessprobe {found[1].decode()}" if found else ""
        raise UsageError(
            f"CKPT must be a checkpoint; got the record {str(path)!r}{of}. See it with: "
            f"{shlex.join(['hessprobe', 'report', str(path)])}"
        )


def require_there(paths: Iterable[str | Path]) -> None:
    """Refuse a path at which there is nothing, before the first of several is measured.

    Raises:
        CheckpointError: names the first one.
    """
    for path in paths:
        if not Path(path).exists():
            raise CheckpointError(f"{path} does not exist. Check the path.")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        # Missing or unreadable: whoever reads it says so.
        return b""
