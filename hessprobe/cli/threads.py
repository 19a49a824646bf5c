"""How many threads a command computes with: what ``--threads`` says, or what a short trial finds the fastest.

On a machine that others keep busy the threads of one operation wait for each other, by spinning, until the last has
been given a core: a product of the digits network, 2 to 3 ms of one core, took 15 to 100 ms on two busy ones, and
``train`` 271 s in place of 1.3. An idle machine gains from threads where operations are large. Neither is known but by
trying.

Left out: the load average, which lags by a minute and does not say what a large operation gains, and a trial of the
network itself, which takes seconds where it matters most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from hessprobe.cli import outputs

AUTO = "auto"

# Seconds that the trial takes at most, and how often each number has its turn.
_LONGEST, _ROUNDS = 0.15, 12
# More threads must be this many times as fast as fewer: they take cores from others.
_WORTH = 1.15

_settled: list[int] = []


def check(threads: str) -> None:
    """Refuse what is no number of threads.

    Raises:
        ValueError: neither a whole number >= 1 nor ``auto``.
    """
    if threads != AUTO and not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
        raise ValueError(
            f"--threads must be a whole number, 1 or more, or auto; got {threads!r}. Leave it out to have it chosen."
        )


def settle() -> int:
    """Let torch compute with the threads that the command was given, and return their number.

    With ``auto`` one trial serves the process, and never takes more threads than torch has by itself: one a core, or
    what the environment says.
    """
    import torch

    asked = outputs.current().threads
    if asked != AUTO:
        torch.set_num_threads(int(asked))
        _settled[:] = [int(asked)]
    elif not _settled:
        torch.set_num_threads(_fastest(torch.get_num_threads()))
        _settled[:] = [torch.get_num_threads()]
    return _settled[0]


def identity() -> int | str:
    """Return what a stopped run is known by: a number that was asked for, or that it was left open."""
    asked = outputs.current().threads
    return asked if asked == AUTO else int(asked)


def _fastest(most: int) -> int:
    if most < 2:
        return most
    import torch

    left, right = torch.rand(256, 256), torch.rand(256, 256)

    def work(threads: int) -> None:
        torch.set_num_threads(threads)
        # A matrix product and passes over memory, of the sizes that a layer of a small network has.
        (left @ right).relu_().add_(left).sum()

    counts = [most, *(2**power for power in range(most.bit_length()) if 2**power < most)]
    return choose(counts, work, time.perf_counter)


def choose(counts: list[int], work: Callable[[int], None], clock: Callable[[], float]) -> int:
    """Return the number of threads with the least time in all, fewer where they are nearly as fast.

    All numbers have their turn in every round, so that a moment in which the machine is busy slows none alone; means
    count, not the fastest rounds, as waiting is what is to be found out.

    Args:
        counts: numbers of threads.
        work: does the same work with so many threads.
        clock: seconds.
    """
    spent = dict.fromkeys(counts, 0.0)
    for count in counts:
        work(count)  # threads are started
    began = clock()
    for _ in range(_ROUNDS):
        for count in counts:
            start = clock()
            work(count)
            spent[count] += clock() - start
        if clock() - began > _LONGEST:
            break
    return _fewest(spent)


def _fewest(spent: Mapping[int, float]) -> int:
    best, *others = sorted(spent)
    for count in others:
        if spent[count] * _WORTH < spent[best]:
            best = count
    return best
