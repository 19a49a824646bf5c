"""Tasks in processes of their own, which end with their parent and take nothing with them that others have found."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeAlias

# Seconds between two looks of a process at whether its parent is still there.
_LOOK_AGAIN = 0.25


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes:
        task: the arguments of the function.
        result: what it returned; None where it did not.
        failure: why there is no result, as the rest of a sentence about the run, else empty.
        details: the traceback where the function raised.
    """

    task: tuple[Any, ...]
    result: Any = None
    failure: str = ""
    details: str = ""


_Running: TypeAlias = dict[Connection, tuple[tuple[Any, ...], BaseProcess]]


def run_apart(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    finished: Callable[[Outcome], None],
) -> None:
    """Call ``function(*task)`` for every task, each in a process of its own, ``jobs`` of them at a time.

    A process that is killed costs its own task and no other. The processes do not heed Ctrl-C and SIGTERM, which a
    terminal or a scheduler sends to all: this one does, hands over what was finished by then, and ends the others at
    once; also when it is killed itself. Their temporary files go with this call, however they ended.

    Args:
        function: of a module, so that another process can find it; its results must be picklable.
        tasks: arguments of each call.
        jobs: processes at a time, >= 1.
        finished: told of every task in the order of their ends; it is not interrupted by signals.
    """
    left, running = deque(tasks), _Running()
    with tempfile.TemporaryDirectory(prefix="hessprobe-") as scratch:
        try:
            while left or running:
                with _undisturbed():
                    while left and len(running) < jobs:
                        _start(function, left.popleft(), scratch, running)
                ready = wait(list(running))
                with _undisturbed():
                    _collect(ready, running, finished)
        except KeyboardInterrupt:
            with _undisturbed():
                _collect(wait(list(running), timeout=0), running, finished)
            raise
        finally:
            with _undisturbed():
                _end(running)


def _start(function: Callable[..., Any], task: tuple[Any, ...], scratch: str, running: _Running) -> None:
    # A fork has everything imported already; elsewhere than on Linux system libraries do not survive it.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, function, task, scratch, os.getpid()))
    process.start()
    # The end of the process is then the end of what can be read.
    theirs.close()
    running[ours] = (task, process)


def _child(connection: Connection, function: Callable[..., Any], task: tuple[Any, ...], scratch: str, to: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(to,), daemon=True).start()
    tempfile.tempdir = scratch
    # Without a parent, nobody is left to tell.
    with contextlib.suppress(BrokenPipeError):
        try:
            connection.send((function(*task), "", ""))
        except Exception as error:
            sentence = f"failed with {type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
            connection.send((None, sentence, traceback.format_exc()))


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_AGAIN)
    os._exit(1)


def _collect(ready: Sequence[Any], running: _Running, finished: Callable[[Outcome], None]) -> None:
    for connection in ready:
        task, process = running[connection]
        try:
            outcome = Outcome(task, *connection.recv())
        except (EOFError, OSError):
            process.join()
            outcome = Outcome(task, failure=_death(process.exitcode))
        process.join()
        connection.close()
        del running[connection]
        finished(outcome)


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code} and without an answer"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", as happens where memory runs out" if -code == signal.SIGKILL else "")


def _end(running: _Running) -> None:
    for _, process in running.values():
        process.kill()
    for connection, (_, process) in running.items():
        process.join()
        connection.close()
    running.clear()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let signals whose handlers may raise come at the end of the block.

    In the middle of it a process could be started and not be known, or a result be read and not be kept.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature of handlers
        came.append(number)

    try:
        with contextlib.ExitStack() as handlers:
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if callable(before):
                    handlers.callback(signal.signal, number, before)
                    signal.signal(number, note)
            yield
    finally:
        for seen in came:
            signal.raise_signal(seen)
