"""Orthogonality of long rows, with fp64 dot products whatever their dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hessprobe.probes import ProbeStream
from hessprobe.vectors import row_dots

# fp64 copies of the basis are made this many elements at a time: what a processor's cache holds, and on an accelerator
# enough to keep it busy.
_CPU_CHUNK, _DEVICE_CHUNK = 1 << 18, 1 << 24


def orthogonalise(row: Tensor, bases: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return ``row`` minus its projection on the span of orthonormal rows, and the coefficients of the projection.

    Classical Gram-Schmidt, twice: after the second pass the remainder is orthogonal to working precision unless
    it is itself made of rounding errors, which the caller sees from its norm.

    Args:
        row: (1, d).
        bases: blocks of rows (m_i, d), all of them together orthonormal; blocks may be empty.

    Returns:
        The remainder (1, d) and, for each block, fp64 coefficients (m_i,) with row = remainder + sum_i c_i B_i.

    References:
        Giraud, Langou, Rozloznik, van den Eshof (2005), "Rounding error analysis of the classical Gram-Schmidt
        orthogonalization process".
    """
    rest = row.to(torch.float64, copy=True)
    first = _sweep(rest, bases, None)
    second = _sweep(rest, bases, first)
    _sweep(rest, bases, second, last=True)
    return rest.to(row.dtype), [one + two for one, two in zip(first, second, strict=True)]


def _sweep(
    rest: Tensor, bases: Sequence[Tensor], coefficients: Sequence[Tensor] | None, *, last: bool = False
) -> list[Tensor]:
    """Subtract combinations of the bases from ``rest`` (1, d) in place and return the coefficients of what is left.

    After the ``last`` sweep nobody asks for them, and zeros are returned.
    One reading of the bases serves both: for low-precision rows, the conversion to fp64 is most of the work.
    """
    totals = [torch.zeros(len(basis), dtype=torch.float64, device=rest.device) for basis in bases]
    elements = _CPU_CHUNK if rest.device.type == "cpu" else _DEVICE_CHUNK
    width = max(elements // max(sum(len(basis) for basis in bases), 1), 256)
    for start in range(0, rest.shape[1], width):
        piece = rest[:, start : start + width]
        blocks = [basis[:, start : start + width].double() for basis in bases]
        if coefficients is not None:
            for factors, block in zip(coefficients, blocks, strict=True):
                piece.sub_(factors[None] @ block)
        if last:
            continue
        for total, block in zip(totals, blocks, strict=True):
            total.add_(block @ piece[0])
    return totals


def normalised(row: Tensor) -> Tensor:
    """Return ``row`` (1, d) divided by its norm, which must not be 0."""
    return row / row_dots(row, row).sqrt().to(row.dtype)


def random_row(stream: ProbeStream, index: int, bases: Sequence[Tensor] = ()) -> Tensor:
    """Return a unit row (1, d), uniform on the sphere of the orthogonal complement of all ``bases``.

    Args:
        stream: of law ``"gaussian"`` (rotation-invariant, hence uniform after projection and scaling).
        index: which probe of the stream.
        bases: blocks of orthonormal rows that together span less than the whole space.
    """
    row = normalised(stream.probe(index)[None])
    # Near full dimension little is left after the projection; projecting the scaled remainder again restores accuracy.
    for _ in range(2):
        row = normalised(orthogonalise(row, bases)[0])
    return row
