"""Points as plain tensors, numbers and strings, so that ``torch.load(weights_only=True)`` reads them back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.jackknife import Batches, Influence
from hessprobe.measures.context import Start
from hessprobe.measures.settings import Result
from hessprobe.tracking.point import Alignment, Point
from hessprobe.tracking.stability import Edge

FORMAT = "hessprobe.tracker/1"

_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Alignment, Batches, Edge, ErrorParts, Estimate, Influence, Point, Result, Start)
}
_KIND = "kind of record"


def packed(value: Any) -> Any:
    """Return ``value`` with every record in it as a dictionary that names its kind, and detached tensors.

    Raises:
        TypeError: something in it is neither a record of a point nor plain.
    """
    if type(value) in _KINDS.values():
        fields = {each.name: packed(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {_KIND: type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {key: packed(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        found = [packed(each) for each in value]
        return found if isinstance(value, list) else tuple(found)
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        # A number of NumPy's.
        return value.item()
    raise TypeError(f"points must hold tensors, numbers and strings; got {type(value).__name__}.")


def unpacked(value: Any) -> Any:
    """Return what ``packed`` was given.

    Raises:
        ValueError: a record of another kind, or of other fields than this version's.
    """
    if isinstance(value, Mapping):
        plain = {key: unpacked(each) for key, each in value.items() if key != _KIND}
        if _KIND not in value:
            return plain
        try:
            return _KINDS[value[_KIND]](**plain)
        except (KeyError, TypeError) as error:
            raise ValueError(f"state must be one of {FORMAT}; got {value[_KIND]!r} with {sorted(plain)}.") from error
    if isinstance(value, (list, tuple)):
        found = [unpacked(each) for each in value]
        return found if isinstance(value, list) else tuple(found)
    return value


def placed(start: Start, device: torch.device) -> Start:
    """Return the same with its vectors on ``device``."""
    vectors, directions = start.eigenvectors, start.directions
    return dataclasses.replace(
        start,
        eigenvectors=None if vectors is None else vectors.to(device),
        directions=None if directions is None else directions.to(device),
    )


def width(start: Start) -> int | None:
    """Return how many parameters its vectors are of; None without any."""
    return next((v.shape[1] for v in (start.eigenvectors, start.directions) if v is not None), None)
