"""Files that are either whole or not there.

Locks on files, which the kernel lets go of when their process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]

AVAILABLE = fcntl is not None


@dataclass(frozen=True)
class Lock:
    """A lock on an output that this process holds.

    Attributes:
        path: of the lock's own file, which is empty and lies beside the output.
        descriptor: the open file that carries the lock.
    """

    path: Path
    descriptor: int

    def release(self) -> None:
        """Let another process have the output, and leave nothing behind."""
        # While the lock is held: once it is let go, the file may be another's.
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self.descriptor)


def lock(descriptor: int) -> bool | None:
    """Lock an open file for as long as it is open.

    Args:
        descriptor: of the open file.

    Returns:
        Whether it is locked now; False where another process holds it, None where the file system or the operating
        system has no such locks.
    """
    if not AVAILABLE:  # pragma: no cover
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def take(target: Path) -> Lock | None:
    """Return the lock on an output, or None where there are no locks.

    Args:
        target: the output; its folder exists and can be written.

    Raises:
        BlockingIOError: another process holds it.
    """
    path = target.with_name(f".{target.name[:100]}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = lock(descriptor)
        if locked and _is_still(path, descriptor):
            return Lock(path, descriptor)
        os.close(descriptor)
        if locked is False:
            raise BlockingIOError(f"{target} is the output of another process")
        if locked is None:
            path.unlink(missing_ok=True)
            return None
        # Its last holder removed the file between our opening and locking it.


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


_NEW_FILE_MODE = 0o666
_LONGEST_STEM = 40


def real(path: str | Path) -> Path:
    """Return where a path leads, as ``Path.resolve`` does; of a loop of links that path itself, not an error."""
    return Path(os.path.realpath(path))


def check_output(name: str, path: str | Path) -> Path:
    """Return ``path`` after proving, by making and removing a file, that its folder can be written.

    Args:
        name: what to call the path in a message, e.g. ``"--out"``.
        path: the file that will be written later.

    Raises:
        ValueError: the folder is missing or cannot be written, or ``path`` is a folder, a loop of links, or a named
            pipe, whose reader could be waited for in vain once the work is done.
    """
    target = Path(path)
    mode = _mode(name, target)
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name} must be a file; got the folder {str(target)!r}. Add a file name.")
    if stat.S_ISFIFO(mode) and target.parts[:2] not in (("/", "dev"), ("/", "proc")):
        raise ValueError(f"{name} must be a file; got the named pipe {str(target)!r}. Write a file, and pass that on.")
    if mode and not stat.S_ISREG(mode) and os.access(target, os.W_OK):
        return target
    folder = real(target).parent if target.is_symlink() else target.parent
    if not folder.is_dir():
        raise ValueError(
            f"{name} must lie in an existing folder; got {str(target)!r}. Make the folder {str(folder)!r} first."
        )
    try:
        descriptor, probe = _temporary(target)
        try:
            os.close(descriptor)
        finally:
            os.unlink(probe)
    except OSError as error:
        raise ValueError(
            f"{name} must lie in a folder that can be written; got {str(target)!r} ({error.strerror}). "
            "Choose another folder."
        ) from error
    return target


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that ``path`` holds either its old content or all of the new one, whatever interrupts.

    Once it returns, the file outlives a loss of power. What an earlier process left when it was killed while it wrote
    the same file is removed.

    Args:
        path: the file to make or replace; its folder exists.
        write: called once with a binary file open for writing.

    Raises:
        OSError: the folder cannot be written or the disk is full; it names ``path``, which is unchanged.
    """
    # A link keeps pointing at its file, and what is no file (a pipe, a terminal) is written to, never replaced.
    target = real(path)
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as stream:
                write(stream)
            return
        _remove_rests(target)
        _replace(target, write)
    except OSError as error:
        if error.errno is None or error.filename in (str(target), target):
            raise
        raise type(error)(error.errno, error.strerror, str(target)) from error


def _replace(target: Path, write: Callable[[BinaryIO], object]) -> None:
    descriptor, temporary = _temporary(target)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, _usual_mode())
            if AVAILABLE:
                # Under the lock: once it is let go, the file counts as left behind.
                os.replace(temporary, target)
        if not AVAILABLE:
            # Where there are no locks (Windows) nothing is taken for left behind, and an open file cannot be renamed.
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _temporary(target: Path) -> tuple[int, str]:
    """Return a new locked file beside ``target``: open descriptor and path."""
    while True:
        descriptor, path = tempfile.mkstemp(dir=target.parent, prefix=f".{_stem(target)}.", suffix=".tmp")
        lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        # Another process took it for a rest before it was locked.
        os.close(descriptor)


def _remove_rests(target: Path) -> None:
    """Remove temporary files of ``target`` whose processes are dead, as only the dead hold no lock."""
    pattern = re.compile(rf"\.{re.escape(_stem(target))}\.[a-z0-9_]{{8}}\.tmp")
    with os.scandir(target.parent) as entries:
        rests = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    for path in rests:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                if lock(descriptor):
                    os.unlink(path)
            finally:
                os.close(descriptor)


def _stem(target: Path) -> str:
    name = target.name
    if len(name) <= _LONGEST_STEM:
        return name
    return f"{name[: _LONGEST_STEM - 9]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _sync_folder(folder: Path) -> None:
    # The name of a file is the folder's content. Some systems cannot open or sync a folder; there it is not needed.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode(name: str, target: Path) -> int:
    """Return the mode of what is at ``target``, 0 where nothing is.

    Raises:
        ValueError: no file can be there.
    """
    try:
        return os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{name} must be the path of a file; got {str(target)!r} ({reason}). Rename it.") from error


def _usual_mode() -> int:
    # mkstemp makes private files; a result should be as readable as any other file of the user.
    mask = os.umask(0)
    os.umask(mask)
    return _NEW_FILE_MODE & ~mask
