"""Locks on files, which the kernel lets go of when their process dies, however it dies."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

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
