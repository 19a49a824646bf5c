"""Products that are written down as they are made, and read back where a stopped run is gone through again.

Everything else of a run (probes, bases, sums) follows from the products and the seed, so that a run which finds its
first n products written down comes to the same state, bit for bit, without making them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor

from hessprobe.objective.batches import digest


class Ledger(Protocol):
    """Where products and decisions are written down."""

    def product(self, key: str) -> Tensor | None:
        """Return what is written under ``key``, on the CPU, or None."""
        ...

    def keep_product(self, key: str, value: Tensor) -> None:
        """Write a product down."""
        ...

    def value(self, key: str) -> Any:
        """Return the plain value written under ``key``, or None."""
        ...

    def keep_value(self, key: str, value: Any) -> None:
        """Write a value that JSON can hold down."""
        ...


class _Replay:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.counts: dict[str, int] = {}

    def numbered(self, name: str) -> str:
        self.counts[name] = self.counts.get(name, -1) + 1
        return f"{name}-{self.counts[name]}"


_active: ContextVar[_Replay | None] = ContextVar("replay", default=None)


@contextmanager
def replayed(ledger: Ledger) -> Iterator[None]:
    """Take from ``ledger`` inside the block what it holds, and write down what it lacks."""
    token = _active.set(_Replay(ledger))
    try:
        yield
    finally:
        _active.reset(token)


def place(name: str) -> str:
    """Return a name for the next source of products, the same in every run that makes them in this order.

    It is empty where nothing is written down; products of such a source never are.
    """
    replay = _active.get()
    return "" if replay is None else replay.numbered(name)


def product(source: str, V: Tensor | Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
    """Return ``make()``, or what it gave in the run that is gone through again.

    Args:
        source: of ``place``, with what else tells its products apart.
        V: what is multiplied, or the points at which something is evaluated.
        make: makes the product, on the device of ``V``; its shape and dtype do not matter here.
    """
    replay = _active.get()
    if replay is None or not source:
        return make()
    hasher = hashlib.sha256()
    digest(list(V) if not isinstance(V, Tensor) else V, hasher)
    key = f"{source}:{hasher.hexdigest()[:24]}"
    known = replay.ledger.product(key)
    if known is not None:
        return known.to(V.device if isinstance(V, Tensor) else V[0].device)
    made = make()
    replay.ledger.keep_product(key, made)
    return made


def value(key: str, make: Callable[[], Any]) -> Any:
    """Return ``make()``, a decision that JSON can hold, or what it was in the run that is gone through again.

    Args:
        key: of the decision, no other has it.
        make: decides, perhaps by the time of the day.
    """
    replay = _active.get()
    if replay is None:
        return make()
    known = replay.ledger.value(key)
    if known is None:
        known = make()
        replay.ledger.keep_value(key, known)
    return known


def decided(key: str) -> bool:
    """Return whether the run that is gone through again came to this decision."""
    replay = _active.get()
    return replay is not None and replay.ledger.value(key) is not None
