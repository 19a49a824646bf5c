"""The program in a child of this process, which can end at any of its moments: fork costs no second start.

A moment is a product that is begun, or a call that changes a file. ``Ending.number`` chooses one; what happens there is
chosen by ``Ending.kind``: death (before the call, or for a write in the middle of it), or an exception.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stand_ins

import hessprobe.cli.app
from hessprobe.hvp.batch_products import BatchOperator
from hessprobe.hvp.pool import ProductPool
from hessprobe.landscape.points import Points
from hessprobe.sharpness.neighborhood import Neighborhood
from hessprobe.training import loop
from hessprobe.training import run as training_run

# What is lost with the process: one call is one product (of a block of vectors), one pass over points, one step of
# training, or one row of a benchmark.
PRODUCTS = (
    (ProductPool, "_sum"),
    (BatchOperator, "_multiplied"),
    (Neighborhood, "_sum"),
    (Neighborhood, "_slope"),
    (Points, "at_center"),
    (Points, "at"),
    (loop, "_step"),
    *((module, name) for module, name, _ in stand_ins.PARTS),
)
FILES = ("pwrite", "fsync", "replace", "unlink", "ftruncate")
# When a journal is synced is a matter of time, so that it is no moment with a number of its own.
_TIMED = "fsync"
WIDTH = 16


@dataclass(frozen=True)
class Ending:
    """At which moment a run ends, and how.

    Attributes:
        number: of the moment, from 0; None for none.
        kind: ``"kill"``, ``"torn"`` (half of a write reaches the file, then death), ``"term"`` (SIGTERM), ``"error"``
            (RuntimeError), ``"memory"`` (MemoryError), or ``"full"`` (ENOSPC, from there on, for all that writes).
    """

    number: int | None = None
    kind: str = "kill"


@dataclass(frozen=True)
class Run:
    """How a child ended: exit code (negative: signal), what it said, and its moments by name, in order."""

    code: int
    out: str
    err: str
    moments: tuple[str, ...]

    @property
    def products(self) -> int:
        """How many products were made to the end."""
        return Counter(self.moments)["made"]

    @property
    def begun(self) -> int:
        """How many moments there were at which it could have ended."""
        return sum(name != "made" for name in self.moments)


def warm(words: list[Any], folder: Path) -> None:
    """Run the program once in this process, so that its children have imported and compiled what it needs."""
    before = os.getcwd(), sys.argv
    try:
        os.chdir(folder)
        sys.argv = ["hessprobe", *map(str, words)]
        hessprobe.cli.app.main()
    except SystemExit as left:
        if left.code:
            raise RuntimeError(f"{words} ended with {left.code}") from None
    finally:
        os.chdir(before[0])
        sys.argv = before[1]


def run(words: list[Any], folder: Path, ending: Ending = Ending()) -> Run:
    """Run the program in a child, in ``folder``; everything it says goes to files beside that folder."""
    places = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err", "moments")]
    for place in places:
        place.unlink(missing_ok=True)
    with warnings.catch_warnings():
        # Threads of the test runner hold nothing that a child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _be_child(words, folder, ending, places)
    _, status = os.waitpid(child, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    out, err, moments = (place.read_text(errors="replace") for place in places)
    return Run(code, out, err, tuple(moments.split()))


def _be_child(words: list[Any], folder: Path, ending: Ending, places: list[Path]) -> None:
    code = 70
    try:
        descriptors = [os.open(place, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for place in places]
        sys.stdout, sys.stderr = (os.fdopen(each, "w", encoding="utf-8") for each in descriptors[:2])
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[1], 2)
        os.chdir(folder)
        _Moments(ending, descriptors[2]).patch()
        sys.argv = ["hessprobe", *map(str, words)]
        try:
            hessprobe.cli.app.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 71
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Moments:
    """Counts the moments of this process, writes them down, and ends it at one of them."""

    def __init__(self, ending: Ending, descriptor: int) -> None:
        self.ending, self._descriptor, self.count = ending, descriptor, 0
        self.full = False
        self.write, self.pwrite = os.write, os.pwrite  # as they are before they are replaced

    def patch(self) -> None:
        for owner, name in PRODUCTS:
            setattr(owner, name, self.product(getattr(owner, name)))
        # A matter of time, as the engine is where --engine does not name it; digits depend on it.
        Points._choose = lambda points, thetas: (points._room(thetas[0]), WIDTH)[1]  # type: ignore[method-assign]
        # How often the state of a training is written is a matter of time as well: here after every step.
        training_run._SAVING_SHARE = float("inf")
        for name in FILES:
            setattr(os, name, self.file(name, getattr(os, name)))

    def note(self, name: str) -> None:
        self.write(self._descriptor, f"{name}\n".encode())

    def product(self, original: Any) -> Any:
        def make(*arguments: Any, **more: Any) -> Any:
            self.moment("product")
            made = original(*arguments, **more)
            self.note("made")
            return made

        return make

    def file(self, name: str, original: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            if name == "pwrite":
                descriptor, content, place = arguments
                self.moment(name, lambda: self.pwrite(descriptor, content[: len(content) // 2], place))
            elif name != _TIMED:
                self.moment(name)
            if self.full and name in ("pwrite", "fsync"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **more)

        return call

    def moment(self, name: str, half: Callable[[], object] | None = None) -> None:
        number, self.count = self.count, self.count + 1
        self.note(name)
        if number != self.ending.number:
            return
        kind = self.ending.kind
        if kind == "torn" and half is not None:
            half()
        if kind in ("kill", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif kind == "full":
            self.full = True
        elif kind == "memory":
            raise MemoryError
        else:
            raise RuntimeError("injected")
