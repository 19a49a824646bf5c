"""Progress on stderr: bars or one line where a person is watching, a plain line a minute where nobody is."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hessprobe.cli import process

if TYPE_CHECKING:
    from hessprobe.progress import Update

# To the start of the line, which is then emptied.
_CLEAR = "\r\x1b[2K"
_STARTING = "starting ..."
_MINUTE = 60.0


@dataclass
class _State:
    # Whether the line of ``starting`` stands on the terminal.
    stands: bool = False


_state = _State()


@contextmanager
def starting() -> Iterator[None]:
    """Show one line while the block loads what is needed, which takes seconds; it is gone at the first message."""
    if sys.stderr.isatty() and not process.current_invocation().quiet:
        sys.stderr.write(_STARTING)
        sys.stderr.flush()
        _state.stands = True
    try:
        yield
    finally:
        clear()


def clear() -> None:
    """Empty the line of ``starting``, where it stands, for what is written in its place."""
    if _state.stands:
        _state.stands = False
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()


@contextmanager
def progress_bars() -> Iterator[Update]:
    """Yield ``update(stage, done, total, remark)``, which draws one bar a stage that never goes back.

    Off a terminal a line is written once a minute, from the first minute on. With ``--quiet`` there is nothing.
    """
    from hessprobe import progress

    if process.current_invocation().quiet:
        yield lambda *_: None
        return
    if sys.stderr.isatty():
        with progress.progress_bars(True, waiting="starting") as update:
            yield update
        return
    say, stages = _now_and_then(_MINUTE), progress.Stages()

    def write(stage: str, done: float, total: float | None, remark: str) -> None:
        name, share = stages.at(stage, done, total)
        how_far = f"{done:g} done" if share is None else f"{share:.0%}"
        say(f"{name}: {how_far}{f', {remark}' if remark else ''}")

    yield write


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yield ``say(text)``, which shows one line on stderr in place of the one before; it is gone when the block ends.

    Off a terminal a line is written once a minute, from the first minute on: a long run shows that it goes on.
    """
    if process.current_invocation().quiet:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield _now_and_then(_MINUTE)
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
