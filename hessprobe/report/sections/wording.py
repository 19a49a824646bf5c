"""Measures and results in words, as a sentence of a paper would have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hessprobe.measures.table import entry_of
from hessprobe.records.typed import Number, error_texts
from hessprobe.report.typography import combined, count, joined, numbers, pretty, seconds

_OPERATORS = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "functional": "functional part",
}
_TO = "\u00a0to\u00a0"
_AND = ",\u00a0"
_NARROW = "within its last digit"
_BOUNDS = {"lower bound": "≥\u00a0", "upper bound": "≤\u00a0"}


def operator(name: str) -> str:
    """Return a matrix in words."""
    return _OPERATORS.get(name, name)


def measure(name: str, matrix: str = "hessian") -> str:
    """Return a measure in words, without an article."""
    return f"{entry_of(name).words} of the {operator(matrix)}"


def meaning(name: str) -> str:
    """Return what a measure means, in one sentence, or nothing."""
    return entry_of(name).meaning


def capital(text: str) -> str:
    """Return a sentence with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def value_texts(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return value, measurement error with its sign, and interval of an estimate for print.

    The error is empty where there is none, and the arms of a bracket: ``+0.006`` where the quantity lies between the
    value and that much above. The interval is ``[0.61, 0.62]`` for a bracket; it says ``exact``, ``lower bound``, ...
    where it has no ends, and ``within its last digit`` where both would be written like the value.
    """
    found = Number.of(row)
    value, error, low_text, high_text = numbers(found.value, found.error, *found.interval)
    bound = _BOUNDS.get(found.kind, "")
    if found.value is None:
        return "not finite", "", "none"
    shown = bound + value
    if not error:
        return shown, "", "exact" if found.is_exact else found.kind
    bracket = found.kind == "bracket"
    error = pretty(error_texts(found)[1]) if bracket else f"± {error}"
    if low_text == high_text:
        return shown, error, found.kind if bound else _NARROW
    between = _AND if bracket else _TO
    together, plain = joined(low_text, high_text, between), f"{low_text}{between}{high_text}"
    if bracket:
        return shown, error, together.replace("(", "[").replace(")", "]") if together else f"[{plain}]"
    return shown, error, together or plain


def data_text(row: Mapping[str, Any]) -> str:
    """Return ``± 0.15``, the error from the data being a sample, or nothing where it is not known."""
    return pretty(error_texts(Number.of(row))[2])


def with_error(row: Mapping[str, Any]) -> str:
    """Return ``1.234 ± 0.005`` for print, with one power of ten where there is one."""
    value, error, _ = value_texts(row)
    together = None if row["kind"] == "bracket" else combined(row["value"], Number.of(row).error)
    if together:
        return _BOUNDS.get(row["kind"], "") + together
    return f"{value} {error}" if error else value


def interval(row: Mapping[str, Any]) -> str:
    """Return ``95 % interval 1.2 to 1.3``, or what stands in place of one."""
    text = value_texts(row)[2]
    if row["kind"] == "bracket" and _AND in text:
        return f"bracket {text}, {_sure(row)}"
    if _TO not in text:
        narrow = f"{level(row)} interval {_NARROW}"
        return {"exact": "exact up to rounding", "none": "no interval", _NARROW: narrow}.get(text, f"a {text}")
    return f"{level(row)} interval {text}"


def _sure(row: Mapping[str, Any]) -> str:
    """Return how sure a bracket is."""
    chance = row.get("bracket_confidence")
    return "certain" if chance is None or chance >= 1 else "probability " + pretty(f"{100 * chance:.4g}") + "\u00a0%"


def level(row: Mapping[str, Any]) -> str:
    """Return the level of the interval in percent."""
    return pretty(f"{100 * row['confidence']:.4g}") + "\u00a0%"


def cost(row: Mapping[str, Any]) -> str:
    """Return ``95 products, 0.6 s``."""
    found = row["matvecs"]
    products = "products unknown" if found is None else f"{count(found)} product{'' if found == 1 else 's'}"
    return f"{products}, {seconds(row['seconds'])}"


def quoted(row: Mapping[str, Any]) -> str:
    """Return a result as a sentence has it: ``1.23 (95 % interval 1.2 to 1.3; data ± 0.2; 8 products, 2 s)``."""
    sampled = data_text(row)
    return f"{value_texts(row)[0]} ({interval(row)}; {f'data {sampled}; ' if sampled else ''}{cost(row)})"
