"""Batches shared out over the ranks of a process group, with one all-reduce for a pass over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ranks:
    """The ranks that make a product together; every one of them runs the same program on the same data.

    Attributes:
        group: whose collectives are used.
        rank: of this process, from 0.
        count: how many there are.
    """

    group: ProcessGroup
    rank: int
    count: int

    def owns(self, index: int) -> bool:
        """Return whether batch ``index`` is this rank's: they are dealt out in turn, so that shares differ by one."""
        return index % self.count == self.rank

    def summed(self, part: Tensor) -> Tensor:
        """Return the sum of every rank's ``part``, the same on all, in place; one all-reduce."""
        dist.all_reduce(part, group=self.group)
        return part

    def agreed(self, decide: Callable[[], Any]) -> Any:
        """Return what the first rank decides, on all."""
        found = [decide() if self.rank == 0 else None]
        dist.broadcast_object_list(found, group_src=0, group=self.group)
        return found[0]


_active: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


@contextmanager
def shared_out(group: ProcessGroup) -> Iterator[Ranks]:
    """Share the batches of every product inside the block out over ``group``.

    All its ranks must enter the block with the same model and all of the data, and ask for the same products in the
    same order; each then holds the same results. What estimators take from single batches (the terms of an operator)
    every rank makes for itself. A rank that fails leaves the others waiting until the timeout of the group.
    """
    ranks = Ranks(group, dist.get_rank(group), dist.get_world_size(group))
    token = _active.set(ranks)
    try:
        yield ranks
    finally:
        _active.reset(token)


def current() -> Ranks | None:
    """Return the ranks that share products here, or None where this process makes them alone."""
    ranks = _active.get()
    return ranks if ranks is not None and ranks.count > 1 else None


def agreed(decide: Callable[[], Any]) -> Any:
    """Return ``decide()``, of the first rank where several share products."""
    ranks = current()
    return decide() if ranks is None else ranks.agreed(decide)
