"""Every tool in every case: a process for each tool, a time limit for each case, one row for each cell of the table."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from hessprobe.benchmarks.conformance.case import Case, Tool, Verdict, check
from hessprobe.benchmarks.conformance.own import HESSPROBE
from hessprobe.benchmarks.conformance.peers import PEERS
from hessprobe.benchmarks.conformance.sam_table import SAM_CASES
from hessprobe.benchmarks.conformance.sam_tools import SAM_TOOLS
from hessprobe.benchmarks.conformance.table import CASES
from hessprobe.benchmarks.processes import Outcome, run_apart
from hessprobe.hvp import engines

# Seconds that a tool has for a case.
LIMIT = 120
ABSENT = "not installed"


@dataclass(frozen=True)
class Part:
    """One table.

    Attributes:
        title: over it.
        cases: its rows.
        tools: its columns, hessprobe first: name -> (distribution, what opens the tool).
    """

    title: str
    cases: tuple[Case, ...]
    tools: Mapping[str, tuple[str, Callable[[], Tool]]]


PARTS: dict[str, Part] = {
    "curvature": Part("Curvature", CASES, {"hessprobe": ("hessprobe", lambda: HESSPROBE), **PEERS}),
    "optimizers": Part("Sharpness-aware optimizers", SAM_CASES, SAM_TOOLS),
}


@dataclass(frozen=True)
class Cell:
    """A tool in a case.

    Attributes:
        part: a name in ``PARTS``.
        tool, version: of the package; version empty where it is not installed.
        case, must_hold: of the case.
        status: of the verdict, ``"crashed"`` where the tool's process died, or ``"not installed"``.
        error: of the verdict; None where there is none.
        rule: of the case.
        note: what is wrong, in words.
        seconds: that it took.
    """

    part: str
    tool: str
    version: str
    case: str
    must_hold: str
    rule: str
    status: str
    error: float | None = None
    note: str = ""
    seconds: float | None = None

    def row(self) -> dict[str, Any]:
        """Return it as an entry of a record."""
        return asdict(self)


def compare_tools(
    *,
    limit: int = LIMIT,
    jobs: int = 1,
    finished: Callable[[str, Sequence[Cell]], None] = lambda tool, cells: None,
    known: Mapping[tuple[str, str], Sequence[Cell]] = MappingProxyType({}),
) -> list[Cell]:
    """Hold every tool to every case of its table.

    Args:
        limit: seconds for a case, >= 1.
        jobs: tools at a time, >= 1.
        finished: told of every tool, and of its column.
        known: columns of ``columns`` that were made before, and are not made again.

    Returns:
        The cells, a table after the other, a tool after the other, in the order of the cases.
    """
    made = {place: list(cells) for place, cells in known.items()}

    def done(outcome: Outcome) -> None:
        part, tool, _ = outcome.task
        made[part, tool] = outcome.result if not outcome.failure else _lost(part, tool, outcome.failure)
        finished(tool, made[part, tool])

    run_apart(column, [(*place, limit) for place in columns() if place not in made], jobs=jobs, finished=done)
    return [cell for place in columns() for cell in made[place]]


def columns() -> list[tuple[str, str]]:
    """Return part and tool of every column, in order."""
    return [(part, tool) for part, each in PARTS.items() for tool in each.tools]


def column(part: str, name: str, limit: int) -> list[Cell]:
    """Hold one tool to every case, in this process.

    Args:
        part: a name in ``PARTS``.
        name: of the tool.
        limit: seconds for a case.
    """
    torch.set_num_threads(1)
    distribution, opened = PARTS[part].tools[name]
    cases = PARTS[part].cases
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return [_cell(part, name, "", case, Verdict(ABSENT)) for case in cases]
    # What a package prints, or warns of when it is imported, is no part of the table.
    # The journal is that of the process that this one was forked from.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), engines.unwritten():
        warnings.simplefilter("ignore")
        tool = opened()
        return [_one(part, tool, version, case, limit) for case in cases]


def _one(part: str, tool: Tool, version: str, case: Case, limit: int) -> Cell:
    # Tools without a seed of their own draw from the global generators: the table is the same whenever it is made.
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # the generator that packages draw from
    random.seed(0)
    start = time.perf_counter()
    try:
        with _within(limit):
            verdict = check(case, tool)
    except TimeoutError as error:
        verdict = Verdict("refused", note=f"TimeoutError: {error}")
    spent = time.perf_counter() - start
    return _cell(part, tool.name, version, case, verdict, None if verdict.status == "missing" else spent)


def _cell(part: str, tool: str, version: str, case: Case, verdict: Verdict, seconds: float | None = None) -> Cell:
    error = None if verdict.error != verdict.error else verdict.error
    said = (tool, version, case.name, case.must_hold, case.rule)
    return Cell(part, *said, verdict.status, error, " ".join(verdict.note.split()), seconds)


def _lost(part: str, tool: str, failure: str) -> list[Cell]:
    verdict = Verdict("crashed", note=f"its process {failure}")
    return [_cell(part, tool, "", case, verdict) for case in PARTS[part].cases]


@contextlib.contextmanager
def _within(limit: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"no answer within {limit} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
