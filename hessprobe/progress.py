"""Progress bars with the time left: on stderr where a person is watching, or in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from hessprobe import checks

if TYPE_CHECKING:
    from rich.progress import TaskID

Update = Callable[[str, float, float | None, str], None]
Show = bool | Literal["auto"]


@contextmanager
def progress_bars(show: Show = "auto") -> Iterator[Update]:
    """Yield ``update(stage, done, total, remark)``, which draws one bar a stage.

    ``total`` is None where it is not known; the remark stands behind the bar. The bars are gone when the block ends.

    Args:
        show: True draws them, False does not, ``"auto"`` does on a terminal and in a notebook.

    Raises:
        ValueError: something else.
    """
    if show not in (True, False):
        checks.one_of("progress", show, ("auto",))
    if show is False or (show == "auto" and not _watched()):
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

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


def _watched() -> bool:
    """Return whether stderr is a terminal, or this runs in a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    # Where IPython runs it is loaded already; its shell says whether it is that of a notebook.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
