"""Progress bars with the time left, on stderr, where a person is watching."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

# To the start of the line, which is then emptied.
_CLEAR = "\r\x1b[2K"

Update = Callable[[str, float, float | None, str], None]


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


@contextmanager
def progress_bars() -> Iterator[Update]:
    """Yield ``update(stage, done, total, remark)``, which draws one bar a stage; it does nothing off a terminal.

    ``total`` is None where it is not known; the remark stands behind the bar.
    """
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[remark]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def update(stage: str, done: float, total: float | None, remark: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, remark=remark)
            bars.update(tasks[stage], completed=done, total=total, remark=remark)

        yield update
