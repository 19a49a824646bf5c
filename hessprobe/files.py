"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_NEW_FILE_MODE = 0o666


def check_output(name: str, path: str | Path) -> Path:
    """Return ``path`` after proving, by making and removing a file, that its folder can be written.

    Args:
        name: what to call the path in a message, e.g. ``"--out"``.
        path: the file that will be written later.

    Raises:
        ValueError: the folder is missing or cannot be written, or ``path`` is a folder.
    """
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise ValueError(f"{name} must be a file; got the folder {str(target)!r}. Add a file name.")
    if not folder.is_dir():
        raise ValueError(
            f"{name} must lie in an existing folder; got {str(target)!r}. Make the folder {str(folder)!r} first."
        )
    try:
        descriptor, probe = tempfile.mkstemp(dir=folder, prefix=f".{target.name[:40]}.")
        os.close(descriptor)
        os.unlink(probe)
    except OSError as error:
        raise ValueError(
            f"{name} must lie in a folder that can be written; got {str(target)!r} ({error.strerror}). "
            "Choose another folder."
        ) from error
    return target


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that ``path`` holds either its old content or all of the new one, whatever interrupts.

    Args:
        path: the file to make or replace; its folder exists.
        write: called once with a binary file open for writing.

    Raises:
        OSError: the folder cannot be written or the disk is full; ``path`` is unchanged.
    """
    # A link keeps pointing at its file, and what is no file (a pipe, a terminal) is written to, never replaced.
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            write(stream)
        return
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _usual_mode())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _usual_mode() -> int:
    # mkstemp makes private files; a result should be as readable as any other file of the user.
    mask = os.umask(0)
    os.umask(mask)
    return _NEW_FILE_MODE & ~mask
