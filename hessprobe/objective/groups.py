"""Batches cut into groups of examples, so that a few large batches still say how much the data decide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import pairwise

import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.checking import MISFITS


class GroupedObjective(Objective):
    """The same objective as a sum over groups of neighbouring examples of its batches.

    Args:
        risk: the objective.
        edges: of every batch with weight, where its groups begin and end; ``()`` for a batch that stays whole.
        passes: forward passes over the data that it took to see that the groups add up.
    """

    def __init__(self, risk: Objective, edges: tuple[tuple[tuple[int, int], ...], ...], passes: float = 0.0) -> None:
        self._risk, self._edges, self.passes = risk, edges, passes
        self.dim, self.dtype, self.device = risk.dim, risk.dtype, risk.device
        self.theta, self.layout, self.caveats = risk.theta, risk.layout, risk.caveats
        self.n_terms = sum(max(len(own), 1) for own in edges)

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of the risk."""
        return self._risk.evaluating()

    def require_finite_loss(self, theta: Tensor | None = None) -> None:
        """See that of the risk."""
        self._risk.require_finite_loss(theta)

    def terms(self) -> Iterator[BatchLoss]:
        """Yield the groups, in the order of the data."""
        for batch, edges in zip(self._risk.terms(), self._edges, strict=True):
            yield from (batch.slice(start, stop) for start, stop in edges) if edges else (batch,)


def by_groups(risk: Objective, count: int) -> GroupedObjective | None:
    """Return the objective as a sum over about ``count`` groups of examples; None where it has no finer ones.

    A batch of weight w becomes ceil(count * w) groups of examples as equal as can be, at most one an example, so that
    there are ``count`` groups or somewhat more wherever there are as many examples. The data are read once, and what is
    cut is evaluated twice, of losses that are known to be means over examples (``LossRule.known``) one batch alone.

    None where there are ``count`` batches already; where no batch can be cut (a loss computed by a user's ``forward``,
    BatchNorm by the statistics of the batch); and where the losses of the groups of a batch do not add up to its own,
    as of examples that see each other (contrastive losses): such batches are one draw each.

    Args:
        risk: the objective.
        count: groups >= 2.
    """
    if risk.n_terms >= count:
        return None
    edges: list[tuple[tuple[int, int], ...]] = []
    passes = 0.0
    with risk.evaluating(), torch.no_grad():
        for batch in risk.terms():
            own = _edges(batch, _pieces(batch, count))
            known = any(edges) and getattr(getattr(batch, "rule", None), "known", False)
            if own and not known:
                if not _adds_up(batch, own, risk.theta):
                    return None
                passes += 2 / risk.n_terms
            edges.append(own)
    return GroupedObjective(risk, tuple(edges), passes) if any(edges) else None


def passes_to_cut(risk: Objective, batch: BatchLoss, count: int) -> float:
    """Return about how many forward passes over the data ``by_groups`` takes, from the first ``batch`` of the risk."""
    if risk.n_terms >= count or not _edges(batch, _pieces(batch, count)):
        return 0.0
    return 2 / risk.n_terms if getattr(getattr(batch, "rule", None), "known", False) else 2.0


def parts_of(batch: BatchLoss, pieces: int, theta: Tensor) -> tuple[tuple[int, int], ...]:
    """Return the examples ``(start, stop)`` of up to ``pieces`` parts whose losses have the batch's as their mean.

    None where there are no two such parts: the examples see each other, or the batch has no slices.
    """
    with torch.no_grad():
        own = _edges(batch, min(int(getattr(batch, "examples", 1)), pieces))
        return own if own and _adds_up(batch, own, theta) else ()


def _pieces(batch: BatchLoss, count: int) -> int:
    # A weight of 1/16 up to rounding is one group, not two.
    return min(int(getattr(batch, "examples", 1)), math.ceil(count * batch.weight - 1e-9))


def _edges(batch: BatchLoss, pieces: int) -> tuple[tuple[int, int], ...]:
    """Return the groups of a batch that have weight; none where it stays whole."""
    if pieces < 2:
        return ()
    examples = int(getattr(batch, "examples", 1))
    ends = [round(examples * number / pieces) for number in range(pieces + 1)]
    try:
        groups = [(start, stop, batch.slice(start, stop).size) for start, stop in pairwise(ends)]
    except (UnsupportedError, *MISFITS) as error:
        # Sparse inputs have no slices.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return ()
    counted = tuple((start, stop) for start, stop, size in groups if size > 0)
    return counted if len(counted) > 1 else ()


def _adds_up(batch: BatchLoss, edges: tuple[tuple[int, int], ...], theta: Tensor) -> bool:
    """Return whether the losses of the groups have the loss of the batch as their mean."""
    together = float(batch(theta))
    groups = [batch.slice(start, stop) for start, stop in edges]
    try:
        losses = [float(group(theta)) for group in groups]
    except MISFITS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False  # a loss made for one number of examples
    shares = [group.weight / batch.weight for group in groups]
    apart = math.fsum(share * loss for share, loss in zip(shares, losses, strict=True))
    size = math.fsum(share * abs(loss) for share, loss in zip(shares, losses, strict=True))
    whole = abs(math.fsum(shares) - 1) < 1e-6
    return whole and abs(together - apart) <= torch.finfo(theta.dtype).eps ** 0.5 * (abs(together) + size)
