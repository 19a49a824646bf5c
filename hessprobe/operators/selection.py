"""Which rows and columns of an operator are meant: names of parameters, or slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from hessprobe import checks


@dataclass(frozen=True)
class Selection:
    """Some of the entries 0..d-1 of a vector, in their order.

    Attributes:
        slices: disjoint, ascending.
        whole: d.
    """

    slices: tuple[slice, ...]
    whole: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return sum(part.stop - part.start for part in self.slices)

    def place(self, V: Tensor) -> Tensor:
        """Return rows (k, d) that hold the rows of ``V`` (k, size) at the entries, 0 elsewhere."""
        wide, start = V.new_zeros(V.shape[0], self.whole), 0
        for part in self.slices:
            stop = start + part.stop - part.start
            wide[:, part], start = V[:, start:stop], stop
        return wide

    def take(self, rows: Tensor) -> Tensor:
        """Return the entries (..., size) of ``rows`` (..., d)."""
        return torch.cat([rows[..., part] for part in self.slices], dim=-1)

    def inside(self, blocks: Mapping[str, slice]) -> dict[str, slice]:
        """Return the named slices that lie within, where they are among the entries."""
        found, start = {}, 0
        for part in self.slices:
            for name, own in blocks.items():
                if part.start <= own.start and own.stop <= part.stop:
                    found[name] = slice(start + own.start - part.start, start + own.stop - part.start)
            start += part.stop - part.start
        return found


def select(where: str | slice | Sequence[str | slice], blocks: Mapping[str, slice], dim: int) -> Selection:
    """Return the entries that are meant, neighbouring slices merged.

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
    return Selection(tuple(slice(*pair) for pair in merged), dim)


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
