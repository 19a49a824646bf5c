"""Progress on stderr, where a person is watching: bars, or one line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hessprobe.progress import Update, progress_bars

__all__ = ["Update", "progress_bars", "status_line"]

# To the start of the line, which is then emptied.
_CLEAR = "\r\x1b[2K"


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yield ``say(text)``, which shows one line on stderr in place of the one before; it does nothing off a terminal.

    The line is gone when the block ends.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return

    def say(text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"{_CLEAR}{text[:width]}")
        sys.stderr.flush()

    try:
        yield say
    finally:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()
