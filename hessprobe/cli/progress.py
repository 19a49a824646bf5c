"""Progress on stderr, where a person is watching: bars, or one line."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hessprobe.progress import Update, progress_bars

__all__ = ["Update", "progress_bars", "status_line"]

# To the start of the line, which is then emptied.
_CLEAR = "\r\x1b[2K"


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yield ``say(text)``, which shows one line on stderr in place of the one before; it is gone when the block ends.

    Off a terminal a line is written once a minute, from the first minute on: a long run shows that it goes on.
    """
    if not sys.stderr.isatty():
        yield _now_and_then(60.0)
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


def _now_and_then(seconds: float) -> Callable[[str], None]:
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    return say
