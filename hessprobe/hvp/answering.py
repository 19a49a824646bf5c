"""Which of several ranks are alive: what the others say, and when, where one has died or hangs.

A collective operation that waits for a lost rank fails after the timeout of its group, or at once where a connection is
closed, and neither says whom it waited for. So every rank writes a number into the store that the ranks have met in, a
few times in each timeout, from a thread; one whose number stands still is named. Where the ranks were not started by
``torchrun``, whose launcher has the store, rank 0 has it: a store that is gone, or does not answer, is one of a rank 0
that has died or been stopped.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from hessprobe.errors import RanksError

# Beats after which a store does not answer, and what torchrun says where its launcher has the store.
_UNANSWERED, _LAUNCHED = 2.0, "TORCHELASTIC_USE_AGENT_STORE"


class Watchman:
    """Knows which of several ranks are alive: each writes into their store as long as it is.

    A rank that has died or been stopped writes no more. Use as a context, inside which this rank writes.

    Args:
        store: of torch.distributed, that outlives a rank.
        rank, count: of this process, and of all.
        seconds: how long a rank may be waited for, >= 1.
    """

    def __init__(self, store: Any, rank: int, count: int, seconds: float) -> None:
        self._store, self._rank, self._count, self.seconds = store, rank, count, seconds
        self._beat = min(1.0, seconds / 10)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    @property
    def patience(self) -> timedelta:
        """How long a collective operation may take, so that time is left to see who is missing."""
        return timedelta(seconds=self.seconds - 2.5 * self._beat)

    def __enter__(self) -> Watchman:
        """Begin to write."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write no more."""
        self._over.set()
        # A store that does not answer holds the thread up.
        self._thread.join(_UNANSWERED * self._beat)

    def _write(self) -> None:
        beats = 0
        while not self._over.is_set():
            beats += 1
            try:
                self._store.set(f"alive-{self._rank}", str(beats))
            except RuntimeError:
                return  # the store is gone; ``lost`` says so
            self._over.wait(self._beat)

    def lost(self) -> RanksError | None:
        """Return an error that names the ranks which have ended or hang, None where all live.

        Takes 2.4 beats, and up to 2 more for each of two questions to a store that is slow; a beat is 1 s at most.
        """
        before = self._asked()
        if before is not None:
            # Not an event: a signal must not cut it short, as launchers send one when a rank has died.
            end = time.monotonic() + 2.4 * self._beat
            while time.monotonic() < end:
                time.sleep(0.02)
        after = None if before is None else self._asked()
        if before is None or after is None:
            return self._of("the launcher" if os.environ.get(_LAUNCHED) == "True" else f"rank 0 of {self._count}")
        gone = [rank for rank in range(self._count) if after[rank] == before[rank] and rank != self._rank]
        if not gone:
            return None
        names = ", ".join(map(str, gone))
        return self._of(f"rank{'s' * (len(gone) > 1)} {names} of {self._count}", "has" if len(gone) == 1 else "have")

    def _of(self, those: str, has: str = "has") -> RanksError:
        return RanksError(
            f"{those} {has} ended or hung, so that nothing more can be made together "
            f"(waited {self.seconds:g} s at most). What is known is written; start the command again, with --resume "
            "where it has a journal."
        )

    def _asked(self) -> list[str] | None:
        """Return what the ranks have written; None where the store is gone or does not answer."""
        found: list[list[str]] = []

        def ask() -> None:
            with suppress(RuntimeError):
                found.append(self._beats())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(_UNANSWERED * self._beat)
        return found[0] if found else None

    def _beats(self) -> list[str]:
        keys = [f"alive-{rank}" for rank in range(self._count)]
        return [self._store.get(key).decode() if self._store.check([key]) else "" for key in keys]


@contextmanager
def answered(seconds: float | None, watch: Watchman | None = None) -> Iterator[None]:
    """Say which rank is missing where an operation of all ranks fails inside the block.

    Args:
        seconds: how long they were waited for, where they have not met yet; None afterwards.
        watch: who knows which are alive.

    Raises:
        RanksError: one has ended or hangs, or they have not met.
    """
    try:
        yield
    except RuntimeError as error:
        lost = None if watch is None else watch.lost()
        if lost is not None:
            raise lost from error
        if watch is None and seconds is not None:
            raise RanksError(
                f"The ranks must meet within {seconds:g} s; they have not. Start all of them, with one address."
            ) from error
        raise
