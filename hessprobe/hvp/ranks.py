"""Batches shared out over the ranks of a process group, with one all-reduce for a pass over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
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
        examples: how many of each batch every rank has made products of in the latest pass, by the index of the batch.
    """

    group: ProcessGroup
    rank: int
    count: int
    examples: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def all(self) -> range:
        """The numbers of all ranks."""
        return range(self.count)

    def owns(self, index: int, rank: int | None = None) -> bool:
        """Return whether batch ``index`` is that of ``rank``, by default of this one.

        Batches are dealt out in turn, so that shares differ by one.
        """
        return index % self.count == (self.rank if rank is None else rank)

    def note(self, index: int, examples: Sequence[int]) -> None:
        """Note how many examples of batch ``index`` every rank makes products of; batch 0 begins a pass."""
        if index == 0:
            self.examples.clear()
        self.examples[index] = tuple(examples)

    def summed(self, part: Tensor) -> Tensor:
        """Return the sum of every rank's ``part``, the same on all, in place; one all-reduce."""
        dist.all_reduce(part, group=self.group)
        return part

    def described(self) -> dict[str, Any]:
        """Return what a record says: the number of ranks, and how many examples each had in the latest pass."""
        parts = [sum(counts[rank] for counts in self.examples.values()) for rank in self.all]
        return {"count": self.count, "examples": parts}

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
    same order; each then holds the same results. In a pass over all batches each rank makes the products of its own
    batches, with one all-reduce at the end; of a single batch (a term of the operator) it makes those of its own
    examples, with one all-reduce a batch and block of vectors, where the loss of the batch is the mean of theirs. A
    rank that fails leaves the others waiting until the timeout of the group.
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


def on_this_machine() -> int:
    """Return how many of the ranks that share products run on this machine, as ``torchrun`` says; else all of them."""
    ranks = current()
    return 1 if ranks is None else int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count))
