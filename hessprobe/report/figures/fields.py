"""Entries of a record for figures; a missing one is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessprobe.errors import RecordError
from hessprobe.records.record import require
from hessprobe.report.typography import joined, numbers, pretty

Floats = NDArray[np.float64]
NUMBER = (int, float, type(None))
OPERATORS = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "functional": "functional part",
}
# Those without negative eigenvalues.
POSITIVE = ("ggn", "fisher")


def entry(part: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return ``part[key]``.

    Raises:
        RecordError: it is missing or of another type.
    """
    require(part, {key: kind}, where)
    return part[key]


def floats(values: Sequence[Any], where: str) -> Floats:
    """Return a list of the record as an array; null, which stands for nan and inf, becomes nan.

    Raises:
        RecordError: something in it is no number, or rows differ in length.
    """
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where} holds something that is no number. Write the record again.") from error


def array(row: Mapping[str, Any], name: str, where: str) -> Floats:
    """Return an array of a result.

    Raises:
        RecordError: it is missing, or was too long to be kept.
    """
    arrays = entry(row, "arrays", dict, where)
    stored = entry(arrays, name, dict, f"{where} arrays")
    return floats(entry(stored, "values", list, f"{where} arrays, {name},"), f"{where} arrays, {name},")


def spread(part: Mapping[str, Any], where: str) -> tuple[float, float, float]:
    """Return value, and how far its interval reaches below and above; nan where there is none.

    Raises:
        RecordError: an entry is missing.
    """
    value = entry(part, "value", NUMBER, where)
    low, high = entry(part, "interval", list, where)
    if value is None:
        return math.nan, math.nan, math.nan
    below, above = (0.0 if end is None else abs(end - value) for end in (low, high))
    return float(value), below, above


def short(value: float | None) -> str:
    """Return a number in few digits, for print: ``−1.2 × 10⁻⁵``."""
    return "nan" if value is None or not math.isfinite(value) else pretty(f"{value:.4g}")


def between(value: float, below: float, above: float) -> str:
    """Return a value with its interval for print, all to the digit that it leaves: ``1.23 (1.20 to 1.26)``."""
    reach = max(below, above)
    text, _, low, high = numbers(value, reach if math.isfinite(reach) else None, value - below, value + above)
    return f"{text} ({joined(low, high, ' to ') or f'{low} to {high}'})" if reach > 0 else text
