"""The study: which cells there are, how each is made, and a file that keeps those that are done."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hessprobe.checks import nearest
from hessprobe.errors import HessprobeError, NumericalWarning
from hessprobe.journal import Journal
from hessprobe.validation.coverage import tally
from hessprobe.validation.coverage.problem import Answer, Trial
from hessprobe.validation.coverage.trials import TRIALS, questions, select
from hessprobe.validation.drawn import FAMILIES

# Runs that share a matrix.
PER_MATRIX = 20
# Stages draw matrices and probes of their own.
_STAGE, _RUN = 100_000, 1_000
_PACKAGE = Path(__file__).parents[2]
_ANEW = "Remove it to begin anew, or give another folder."


@dataclass(frozen=True)
class Settings:
    """What is studied.

    Attributes:
        pattern: of the names of estimators; None: all.
        families: of matrices; None: all. Estimators with families of their own keep those.
        sizes: numbers of probes; None: those of each estimator.
        seeds: runs of a cell.
        confirm: a cell under its floor is made again with this many times as many runs, on fresh matrices with fresh
            probes, and that alone decides: among hundreds of cells some fall short by chance. 0: the first decides.
        seed: of everything, >= 0.
    """

    pattern: str | None = None
    families: tuple[str, ...] | None = None
    sizes: tuple[int, ...] | None = None
    seeds: int = 400
    confirm: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.families or ():
            if name not in FAMILIES:
                raise ValueError(
                    f"family must be one of {', '.join(FAMILIES)}; got {name!r}.{nearest(name, FAMILIES)} Choose one."
                )


@dataclass(frozen=True)
class Unit:
    """One estimator on one family with one size: one cell for each of its questions."""

    trial: str
    family: str
    size: int


def units(settings: Settings) -> list[Unit]:
    """Return everything that is to be done, the longest first."""
    found = []
    for trial in select(settings.pattern):
        own = trial.families != tuple(FAMILIES)
        families = trial.families if own or settings.families is None else settings.families
        fixed = settings.sizes is None or trial.size not in ("probes", "passes", "chains", "draws")
        sizes = trial.sizes if fixed else settings.sizes or ()
        found += [Unit(trial.name, family, size) for family in families for size in sizes]
    return sorted(found, key=lambda unit: -unit.size)


def cells(unit: Unit, settings: Settings) -> list[dict[str, Any]]:
    """Return the cells of a unit; each that comes out under its floor is made anew, see ``Settings.confirm``."""
    first = _stage(unit, settings.seeds, settings.seed, 0)
    if not settings.confirm or all(tally.verdict(cell) != "low" for cell in first):
        return first
    second = _stage(unit, settings.confirm * settings.seeds, settings.seed, 1)
    kept = ("runs", "coverage", "flagged", "unflagged_runs", "unflagged_coverage", "width")
    return [
        {**new, "first": {key: old[key] for key in kept}} if tally.verdict(old) == "low" else old
        for old, new in zip(first, second, strict=True)
    ]


def _stage(unit: Unit, runs: int, seed: int, stage: int) -> list[dict[str, Any]]:
    trial = next(trial for trial in TRIALS if trial.name == unit.trial)
    started = time.perf_counter()
    found: dict[str, list[tuple[float, list[Answer]]]] = {question: [] for question in trial.questions}
    refusals: list[str] = []
    for block in range(math.ceil(runs / PER_MATRIX)):
        number = (2 * seed + stage) * _STAGE + block
        count = min(PER_MATRIX, runs - block * PER_MATRIX)
        _block(trial, unit, number, count, found, refusals)
    rows = [tally.row(trial, question, unit.family, unit.size, found[question]) for question in trial.questions]
    seconds = time.perf_counter() - started
    more = {"refused": len(refusals), "refusal": refusals[0] if refusals else None, "seconds": seconds / len(rows)}
    return [{**row, **more} for row in rows]


def _block(
    trial: Trial,
    unit: Unit,
    number: int,
    count: int,
    found: dict[str, list[tuple[float, list[Answer]]]],
    refusals: list[str],
) -> None:
    """Run a trial ``count`` times on the matrix of a number."""
    problem = trial.make(unit.family, number)
    answers: dict[str, list[Answer]] = {question: [] for question in trial.questions}
    for run in range(count):
        with warnings.catch_warnings():
            # What is weak is also flagged, and flags are counted.
            warnings.simplefilter("ignore", NumericalWarning)
            try:
                for question, answer in trial.run(problem, unit.size, number * _RUN + run):
                    answers[question].append(answer)
            except (HessprobeError, ArithmeticError, ValueError, RuntimeError) as error:
                refusals.append(f"{type(error).__name__}: {error} (matrix {number}, run {run})")
    for question in trial.questions:
        found[question].append((problem.size, answers[question]))


def fingerprint() -> str:
    """Return a hash of the package's source: cells of different code do not belong in one table."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Study:
    """Cells that are made one unit after the other and kept in a file, so that an interruption loses none.

    Args:
        settings: what is studied.
        keep: journal of the cells that are done, one unit a line; what it holds already is not made again. None:
            nothing is kept.

    Attributes:
        rows: the cells so far.

    Raises:
        JournalError: ``keep`` holds cells of other settings or of other code, or is damaged.
    """

    def __init__(self, settings: Settings, keep: Path | None = None) -> None:
        self.settings, self._keep = settings, keep
        self.units = units(settings)
        self.rows: list[dict[str, Any]] = []
        # Which estimators and families are asked for may change between two runs; how a cell is made may not.
        head = asdict(replace(settings, pattern=None, families=None, sizes=None))
        self._head = {**{k: head[k] for k in ("seeds", "confirm", "seed")}, "code": fingerprint()}
        self._done: set[Unit] = set()
        if keep is not None and keep.exists():
            self._opened().close()

    @property
    def code(self) -> str:
        """The hash of the source that made the cells."""
        return str(self._head["code"])

    @property
    def left(self) -> list[Unit]:
        """What is still to be done."""
        return [unit for unit in self.units if unit not in self._done]

    def run(self, jobs: int = 1) -> Iterator[Unit]:
        """Make what is left, yielding each unit when it is done and kept.

        Args:
            jobs: processes; each uses one thread.
        """
        work = partial(_work, settings=self.settings)
        journal = None if self._keep is None else self._opened()
        try:
            if jobs == 1:
                for unit in self.left:
                    yield self._kept(*work(unit), journal)
                return
            context = multiprocessing.get_context("spawn")
            with context.Pool(jobs, initializer=_begin) as pool:
                for unit, rows in pool.imap_unordered(work, self.left):
                    yield self._kept(unit, rows, journal)
        finally:
            if journal is not None:
                journal.close()

    def sorted_rows(self) -> list[dict[str, Any]]:
        """Return the cells in the order of the questions, families and sizes, whichever was done first."""
        order = {name: place for place, name in enumerate(questions())}
        return sorted(self.rows, key=lambda row: (order[row["question"]], row["family"], row["size"]))

    def finished(self) -> None:
        """Remove the file of cells, whose content is in the record by now."""
        if self._keep is not None:
            self._keep.unlink(missing_ok=True)

    def _kept(self, unit: Unit, rows: list[dict[str, Any]], journal: Journal | None) -> Unit:
        self._take(unit, rows)
        if journal is not None:
            journal.keep_value(_name(unit), rows)
        return unit

    def _opened(self) -> Journal:
        """Return the journal, with what it holds taken."""
        journal = Journal(str(self._keep), self._head, resume=True, anew=_ANEW)
        for unit in self.left:
            rows = journal.value(_name(unit))
            if rows is not None:
                self._take(unit, rows)
        return journal

    def _take(self, unit: Unit, rows: list[dict[str, Any]]) -> None:
        self.rows += rows
        self._done.add(unit)


def _name(unit: Unit) -> str:
    return json.dumps(asdict(unit))


def _work(unit: Unit, settings: Settings) -> tuple[Unit, list[dict[str, Any]]]:
    return unit, cells(unit, settings)


def _begin() -> None:
    """Set up a process of the pool: it dies with its parent's terminal, and leaves the other cores alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
