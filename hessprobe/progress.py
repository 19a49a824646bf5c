"""Progress bars with the time left: on stderr where a person is watching, or in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from hessprobe import checks

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Update = Callable[[str, float, float | None, str], None]
Show = bool | Literal["auto"]

# Colour would mean nothing here.
_PLAIN = dict.fromkeys(
    ("bar.complete", "bar.finished", "bar.pulse", "progress.percentage", "progress.remaining", "progress.description"),
    "none",
) | {"bar.back": "dim"}


class Stages:
    """How far each stage is, as a share that never goes back.

    A sample whose size is chosen on the way finds its total only then, and that of a search can but be guessed: where
    more is left than was thought, the share waits. A stage that was done and begins again starts from nothing, in its
    next round.
    """

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._rounds: dict[str, int] = {}

    def at(self, stage: str, done: float, total: float | None) -> tuple[str, float | None]:
        """Return the name of a stage, with its round from the second on, and its share; None while none is known."""
        before = self._shares.get(stage)
        share = None if total is None or not total > 0 else min(max(done / total, 0.0), 1.0)
        again = before == 1 and done == 0 if share is None else before == 1 and share < 1
        if again or stage not in self._rounds:
            self._rounds[stage] = self._rounds.get(stage, 0) + 1
            self._shares.pop(stage, None)
            before = None
        if share is not None:
            self._shares[stage] = share if before is None else max(share, before)
        number = self._rounds[stage]
        return f"{stage} {number}" if number > 1 else stage, self._shares.get(stage)


@contextmanager
def progress_bars(show: Show = "auto", *, waiting: str = "") -> Iterator[Update]:
    """Yield ``update(stage, done, total, remark)``, which draws one bar a stage; none of them ever goes back.

    ``total`` is None where it is not known; the remark stands behind the bar. The bars are gone when the block ends.

    Args:
        show: True draws them, False does not, ``"auto"`` does on a terminal and in a notebook.
        waiting: what is drawn until the first stage begins; nothing where it is empty.

    Raises:
        ValueError: something else.
    """
    if show not in (True, False):
        checks.one_of("progress", show, ("auto",))
    if show is False or (show == "auto" and not _watched()):
        yield lambda *_: None
        return
    tasks: dict[str, TaskID] = {}
    stages = Stages()
    with _bars() as bars:
        first = bars.add_task(waiting, total=None, remark="") if waiting else None

        def update(stage: str, done: float, total: float | None, remark: str) -> None:
            if first is not None and not tasks:
                bars.update(first, visible=False)
            name, share = stages.at(stage, done, total)
            if stage not in tasks:
                tasks[stage] = bars.add_task(name, total=None, remark=remark)
            elif bars.tasks[tasks[stage]].description != name:
                bars.reset(tasks[stage], total=None, description=name)
            known = share is not None
            bars.update(tasks[stage], completed=share or 0.0, total=1.0 if known else None, remark=remark)

        yield update


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.theme import Theme

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[remark]}"),
    )
    return Progress(*columns, console=Console(stderr=True, theme=Theme(_PLAIN)), transient=True)


def _watched() -> bool:
    """Return whether stderr is a terminal, or this runs in a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    # Where IPython runs it is loaded already; its shell says whether it is that of a notebook.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
