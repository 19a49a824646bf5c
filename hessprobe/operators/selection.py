"""Which rows and columns of an operator are meant: names of parameters, or slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from hessprobe import checks


def slices_of(where: str | slice | Sequence[str | slice], blocks: Mapping[str, slice], dim: int) -> tuple[slice, ...]:
    """Return disjoint slices of 0..d-1 in ascending order, neighbours merged.

    Args:
        where: a pattern of names in ``blocks``, case-sensitive, a contiguous slice, or several of them. What two
            patterns both fit is taken once.
        blocks: named slices.
        dim: d.

    Raises:
        ValueError: a pattern that fits no name, a slice that is empty or has gaps, or slices that overlap.
    """
    found: set[tuple[int, int]] = set()
    for one in [where] if isinstance(where, str | slice) else where:
        found.update(_named(one, blocks) if isinstance(one, str) else [_span(one, dim)])
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(found):
        if merged and start < merged[-1][1]:
            raise ValueError(f"where must not overlap; got {merged[-1]} and {(start, stop)}. Name every entry once.")
        if merged and start == merged[-1][1]:
            start = merged.pop()[0]
        merged.append((start, stop))
    if not merged:
        raise ValueError("where must name a part of the operator; got none. Pass a pattern or a slice.")
    return tuple(slice(*pair) for pair in merged)


def _span(where: slice, dim: int) -> tuple[int, int]:
    start, stop, step = where.indices(dim)
    if step != 1 or not start < stop:
        raise ValueError(f"where must be a contiguous, non-empty slice of 0..{dim}; got {where}. Use slice(a, b).")
    return start, stop


def _named(pattern: str, blocks: Mapping[str, slice]) -> list[tuple[int, int]]:
    spans = [(own.start, own.stop) for name, own in blocks.items() if fnmatchcase(name, pattern)]
    if not spans:
        known = checks.nearest(pattern, blocks) or f" The operator has {len(blocks)} named parts, see A.blocks."
        raise ValueError(f"where must fit the name of a parameter; got {pattern!r}.{known}")
    return spans
