"""Whether the loss of a batch is the mean of its parts, as a loss must be whose batches are weighted by their size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hessprobe.objective.base import BatchLoss
from hessprobe.objective.checking import MISFITS
from hessprobe.objective.terms import EmpiricalBatch

# Batches up to which every one is cut in two and compared; of more, this many.
MOST = 32


def label_range(targets: Any) -> tuple[float, float]:
    """Return where in its targets a batch may differ from others: its labels' ends, or how many values are missing.

    What a loss leaves out stands outside the classes, below 0 or above them, or is nan where targets are numbers.

    Args:
        targets: of a batch.

    Returns:
        The smallest and the largest label; (0, number of nan) for targets that are no labels.
    """
    if not isinstance(targets, Tensor) or targets.numel() == 0 or targets.is_complex():
        return 0.0, 0.0
    if targets.is_floating_point():
        return 0.0, float(targets.isnan().sum())
    low, high = targets.aminmax()
    return float(low), float(high)


def to_compare(ranges: Sequence[tuple[float, float]], most: int = MOST) -> list[int]:
    """Return which batches to cut and compare: all of them, or ``most`` that are likely to hold what others do not.

    These are the first, the last (the ragged one), those with the smallest and the largest label or the most missing
    values, and others evenly spread.

    Args:
        ranges: of every batch, see ``label_range``.
        most: how many, >= 4.
    """
    count = len(ranges)
    if count <= most:
        return list(range(count))
    lowest = min(range(count), key=lambda i: ranges[i][0])
    highest = max(range(count), key=lambda i: ranges[i][1])
    found = {0, count - 1, lowest, highest}
    between = [round(i * (count - 1) / (most - 1)) for i in range(most)]
    found |= set([index for index in between if index not in found][: most - len(found)])
    return sorted(found)


def unlike_a_mean(term: BatchLoss, theta: Tensor) -> str:
    """Refuse a loss of unknown make that is no mean over the batch's examples where it is known what it is instead.

    The loss of the whole batch is compared with those of two parts of it: a sum would weight batches by their size once
    more, and a mean over targets that are not ignored must be told so. Costs two forward passes of the batch.

    Args:
        term: the batch.
        theta: (d,) where.

    Returns:
        A sentence for every number measured on it, where the loss is something else (its examples see each other, or
        have weights); else ``""``.

    Raises:
        ValueError: with the three values.
    """
    if not isinstance(term, EmpiricalBatch) or term.rule.known or term.examples < 2 or not term.separable:
        return ""
    middle = _place_to_cut(term.targets, term.examples)
    parts = term.slice(0, middle), term.slice(middle, term.examples)
    if not all(part.size > 0 for part in parts):
        return ""
    try:
        with torch.no_grad():
            whole, one, other = (float(batch(theta)) for batch in (term, *parts))
    except MISFITS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return ""  # a loss for batches of one size only
    # A part of ignored targets alone has no loss: 0/0.
    scale = abs(one) + abs(other) if math.isfinite(one + other) else abs(whole)
    mean = (parts[0].size * one + parts[1].size * other) / term.size
    rounding = torch.finfo(theta.dtype).eps ** 0.5 * scale
    if abs(whole - mean) <= rounding or not math.isfinite(whole):
        return ""
    told = f"batch {term.index} has {whole:.6g}, its two parts have {one:.6g} and {other:.6g}"
    if abs(whole - one - other) <= rounding and abs(whole - mean) > 0.01 * scale:
        raise ValueError(
            f"loss must be a mean over the batch; got {term.rule.name}, which sums: {told}. Divide by the number of "
            "examples, or pass weighting='examples' to have it weighted as if it were a mean."
        )
    left_out = _left_out(parts, (whole, one, other), rounding)
    if left_out is not None:
        raise ValueError(
            f"loss must be a mean over the batch's {term.rule.unit}; got {term.rule.name}, which leaves out targets of "
            f"{left_out}: {told}. Pass torch.nn.CrossEntropyLoss(ignore_index={left_out}) itself, which is weighted by "
            "the targets that count, or weighting='examples' to have every batch weighted by its size."
        )
    return (
        f"the loss {term.rule.name} of a batch is not the mean of its parts ({told}): the number is that of these "
        "batches, and others would give another"
    )


def _place_to_cut(targets: Any, examples: int) -> int:
    """Return where to cut a batch in two: where the parts hold the most different shares of what may be left out.

    Halves with equally many ignored targets would have the mean of the whole. No part has less than a quarter.
    """
    middle = examples // 2
    if not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) != examples or targets.numel() == 0:
        return middle
    if targets.is_floating_point() or targets.is_complex():
        marks = [targets.isnan()]
    else:
        marks = [targets == end for end in targets.aminmax()]
    places = torch.arange(max(1, examples // 4), max(2, examples - examples // 4), dtype=torch.float64)
    best, farthest = middle, 0.0
    for mark in marks:
        held = mark.reshape(examples, -1).sum(1).cpu().double().cumsum(0)
        apart = (held[places.long() - 1] - places / examples * held[-1]).abs()
        where = int(apart.argmax())
        if float(apart[where]) > farthest + 1e-9:
            best, farthest = int(places[where]), float(apart[where])
    return best


def _left_out(parts: Sequence[EmpiricalBatch], losses: tuple[float, float, float], rounding: float) -> int | None:
    """Return the target value whose absence explains the loss of a batch from those of its parts, or None."""
    whole, one, other = losses
    targets = [part.targets for part in parts]
    if not all(isinstance(t, Tensor) and not t.is_floating_point() for t in targets):
        return None
    # What is ignored stands outside the classes: below 0 or above them. Small batches leave more than one explanation.
    found = torch.unique(torch.cat([t.flatten() for t in targets])).tolist()
    for value in sorted(found, key=lambda label: (label >= 0, -label)):
        counts = [float((t != value).sum()) for t in targets]
        total = sum(counts)
        if 0 < total < sum(t.numel() for t in targets):
            mean = sum(count * loss for count, loss in zip(counts, (one, other), strict=True) if count) / total
            if abs(whole - mean) <= rounding:
                return int(value)
    return None
