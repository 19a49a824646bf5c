"""Processes of their own for tasks: what is finished is handed over, and nobody outlives the parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from hessprobe.benchmarks.processes import Outcome, run_apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tasks of this file need a fork")

LONG = 60


def double(number):
    return 2 * number


def dies_by(number):
    os.kill(os.getpid(), number)
    time.sleep(LONG)


def leaves(code):
    os._exit(code)


def breaks(message):
    raise RuntimeError(message)


def collected(function, tasks, jobs=2):
    seen = []
    run_apart(function, tasks, jobs=jobs, finished=seen.append)
    return {one.task[0]: one for one in seen}


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_every_task_is_done_once(jobs):
    tasks = [(number,) for number in range(5)]
    seen = []
    run_apart(double, tasks, jobs=jobs, finished=seen.append)
    assert sorted(seen, key=lambda one: one.task) == [Outcome(task, 2 * task[0]) for task in tasks]
    assert multiprocessing.active_children() == []


def one_of_three(what):
    return what() if callable(what) else what


def test_a_process_that_dies_costs_its_own_task_only(capfd):
    kill, leave, fail = (lambda: dies_by(signal.SIGKILL)), (lambda: leaves(3)), (lambda: breaks("no\n good."))
    seen = collected(one_of_three, [(1,), (kill,), (leave,), (fail,), (2,)])
    assert (seen[1].result, seen[2].result) == (1, 2)
    assert seen[kill].failure == "was killed by SIGKILL, as happens where memory runs out"
    assert seen[leave].failure == "ended with exit code 3 and without an answer"
    assert seen[fail].failure == "failed with RuntimeError: no good"
    assert "Traceback" in seen[fail].details
    assert capfd.readouterr() == ("", "")


def test_a_result_that_cannot_be_handed_over_is_a_failure(capfd):
    (outcome,) = collected(one_of_three, [(lambda: lambda: None,)]).values()
    assert outcome.failure.startswith("failed with ")
    assert capfd.readouterr().err == ""


def interrupts_the_parent(what):
    if what == "long":
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(LONG)
    return what


@pytest.fixture
def heeding():
    """Ctrl-C raises, as in a program that is started from a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interruption_keeps_what_is_finished_and_ends_the_rest_at_once(heeding, jobs):
    seen, start = [], time.monotonic()
    # The third task can begin only when the first has been handed over, as the second does not end.
    tasks = [("short",), ("long",)] if jobs == 1 else [("short",), ("idle",), ("long",), ("long",)]
    function = interrupts_the_parent if jobs == 1 else idles_or_interrupts
    with pytest.raises(KeyboardInterrupt):
        run_apart(function, tasks, jobs=jobs, finished=seen.append)
    assert seen == [Outcome(("short",), "short")]
    assert time.monotonic() - start < LONG / 10
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def idles_or_interrupts(what):
    if what == "idle":
        time.sleep(LONG)
    return interrupts_the_parent(what)


def at_once_or_when_told(pipe):
    return os.read(pipe, 1) if pipe else b""


def test_a_result_that_waits_to_be_read_when_the_signal_comes_is_kept(heeding):
    seen, (reading, writing) = [], os.pipe()

    def finished(outcome):
        seen.append(outcome.result)
        if len(seen) == 1:
            # Held back until the callback is over; by then the other process has sent its answer and ended, too.
            signal.raise_signal(signal.SIGINT)
            os.write(writing, b"x")
            while multiprocessing.active_children():
                time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        run_apart(at_once_or_when_told, [(0,), (reading,)], jobs=2, finished=finished)
    assert seen == [b"", b"x"]


def ignores_signals(number):
    signal.raise_signal(number)
    return number


def test_the_processes_leave_signals_to_the_parent():
    seen = collected(ignores_signals, [(int(signal.SIGINT),), (int(signal.SIGTERM),)])
    assert all(one.result == number for number, one in seen.items())


def leaves_a_file(seed):
    return tempfile.mkdtemp()


def test_temporary_files_of_the_tasks_are_gone():
    (outcome,) = collected(leaves_a_file, [(0,)]).values()
    scratch = Path(outcome.result).parent
    assert scratch.name.startswith("hessprobe-")
    assert not scratch.exists()


def says_that_it_lives(end):
    end.send(os.getpid())
    time.sleep(LONG)


def runs_two(end):
    run_apart(says_that_it_lives, [(end,), (end,)], jobs=2, finished=print)


def test_they_end_when_the_parent_is_killed():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    parent = context.Process(target=runs_two, args=(theirs,))
    parent.start()
    theirs.close()
    for _ in range(2):
        ours.recv()
    parent.kill()
    parent.join()
    # Only they still hold the other end.
    assert wait([ours], timeout=LONG / 10)
    with pytest.raises(EOFError):
        ours.recv()
