"""Small batches put together, so that a pass without derivatives is bound by arithmetic, not by the number of calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hessprobe.objective import EmpiricalBatch
from hessprobe.objective.base import BatchLoss

# What a pass over a merged batch may compute on its way: about what stays in a processor's cache.
ACTIVATION_BYTES = 1 << 24
# What merged copies of the data may hold; larger data are read anew at every point.
DATA_BYTES = 1 << 27


def merged(terms: Sequence[BatchLoss], nbytes: Sequence[int]) -> list[BatchLoss] | None:
    """Return the terms with neighbours put together where that changes nothing but the number of calls.

    The weighted sum of the losses is the same up to rounding: with n_b units in batch b and the mean loss L_b over
    them, sum_b n_b L_b / sum_b n_b is the mean over all units. That holds for a loss that is a mean over units and for
    no other: whoever merges compares the two once.

    Args:
        terms: of a risk, in order.
        nbytes: what each computes on its way.

    Returns:
        As few terms as the limits of this file allow; None where nothing can be put together.
    """
    groups: list[list[BatchLoss]] = []
    held = 0
    for term, cost in zip(terms, nbytes, strict=True):
        if groups and held + cost <= ACTIVATION_BYTES and _alike(groups[-1][0], term):
            groups[-1].append(term)
            held += cost
        else:
            groups.append([term])
            held = cost
    return None if len(groups) == len(terms) else [_joined(group) for group in groups]


def _alike(first: BatchLoss, other: BatchLoss) -> bool:
    if not (isinstance(first, EmpiricalBatch) and isinstance(other, EmpiricalBatch) and first.separable):
        return False
    pairs = ((first.inputs, other.inputs), (first.targets, other.targets))
    return all(
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.ndim == b.ndim > 0
        and (a.shape[1:], a.dtype) == (b.shape[1:], b.dtype)
        for a, b in pairs
    )


def _joined(group: Sequence[BatchLoss]) -> BatchLoss:
    first = group[0]
    if len(group) == 1 or not isinstance(first, EmpiricalBatch):
        return first
    batches = [term for term in group if isinstance(term, EmpiricalBatch)]
    return replace(
        first,
        inputs=torch.cat([term.inputs for term in batches]),
        targets=torch.cat([term.targets for term in batches]),
        examples=sum(term.examples for term in batches),
        size=sum(term.size for term in batches),
        weight=sum(term.weight for term in batches),
    )


def data_bytes(term: BatchLoss) -> int:
    """Return what the data of a batch hold."""
    tensors = term.tensors() if isinstance(term, EmpiricalBatch) else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
