"""What products by finite differences are off by, measured on directions of the kinds that estimators use.

A difference D(v) of gradients along v is not linear in v: its truncation error is a third derivative along v three
times, so that D - H is larger along a coordinate or a leading eigenvector, where the loss bends most, than along a
random direction of the same length. An error seen with random signs alone says too little about an exact trace, made
of coordinates, or about an eigenvalue.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hessprobe.probes import ProbeStream
from hessprobe.vectors import row_dots

# Directions of random signs, and of single coordinates.
_SIGNS, _COORDINATES = 4, 8
# Products that turn a random direction towards the leading eigenvector.
_TURNS = 3
# Standard errors that a mean over few directions is given.
_WIDE = 3.0
# Coordinates that are compared at a time.
_BLOCK = 64

# Vectors that are compared in all, where not every coordinate is.
COMPARED = _SIGNS + _COORDINATES + 1


class ProductError(NamedTuple):
    """What the products of an operator are off by: E the difference to the Hessian. Estimates, not bounds.

    Attributes:
        norm: of E in the Frobenius sense, sqrt(d * mean ||E(u)||^2) over unit vectors u of the kind where it is
            largest, with three standard errors; no less than ||E(x)|| at the leading direction x.
        trace: |sum_i e_i^T E(e_i)| from coordinates e_i and |d * mean u^T E(u)| from random signs, the larger, each
            with three standard errors.
        relative: ``norm`` over the Frobenius norm of the operator.
    """

    norm: float
    trace: float
    relative: float


def compare(
    own: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    like: Tensor,
    seed: int = 0,
    *,
    every_coordinate: bool = False,
) -> ProductError:
    """Return by how much products differ from a reference.

    Args:
        own: maps V (k, d) to the products by differences.
        reference: the same by an exact engine, or by a smaller step.
        like: (d,) of their dtype and device.
        seed: of the directions, >= 0.
        every_coordinate: compare all d of them, as an answer that is made of all needs: a kink lies across a few, and
            a part of them may cross none.
    """
    d = like.numel()
    signs = ProbeStream(d, seed, "rademacher", like.dtype, like.device, "pilot").block(0, _SIGNS)
    chosen = torch.randperm(d, generator=torch.Generator().manual_seed(seed))
    chosen = (chosen if every_coordinate else chosen[:_COORDINATES]).to(like.device)
    squares, forms, size = _missed(own, reference, signs)
    parts = [_missed(own, reference, _units(like, part)) for part in torch.split(chosen, _BLOCK)]
    unit_squares, unit_forms = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    leading = _missed(own, reference, _leading(own, signs[:1]))
    # The mean over all coordinates has no error.
    wide = _WIDE if len(chosen) < d else 0.0
    norm = math.sqrt(max(_upper(squares, _WIDE), _upper(unit_squares, wide), float(leading[0]) / d))
    trace = max(abs(float(forms.mean())) + _WIDE * math.sqrt(2 / _SIGNS) * norm, _upper(unit_forms, wide))
    length = math.sqrt(float(size.mean()))
    return ProductError(norm, trace, norm / length if length > 0 else 0.0)


def _missed(
    own: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ||E(v)||^2, v^T E(v) and the squared length of the product, a row; all rows have length sqrt(d).

    Squared lengths are then those of the Frobenius norm in the mean.
    """
    made = own(V)
    missed = made - reference(V)
    return row_dots(missed, missed), row_dots(V, missed), row_dots(made, made)


def _units(like: Tensor, chosen: Tensor) -> Tensor:
    rows = torch.zeros(len(chosen), like.numel(), dtype=like.dtype, device=like.device)
    rows[torch.arange(len(chosen), device=like.device), chosen] = math.sqrt(like.numel())
    return rows


def _leading(own: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    leading = start
    for _ in range(_TURNS):
        turned = own(leading)
        length = float(turned.double().norm())
        if not 0 < length < math.inf:
            break
        leading = turned * (math.sqrt(start.numel()) / length)
    return leading


def _upper(values: Tensor, times: float) -> float:
    """Return the size of the mean of ``values`` with ``times`` standard errors."""
    spread = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return abs(float(values.mean())) + times * spread
