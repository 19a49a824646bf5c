"""What the results of every command must hold, checked before a page is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hessprobe.errors import RecordError
from hessprobe.records.record import require

Keys = Mapping[str, type | tuple[type, ...]]

NUMBER = (int, float, type(None))
_WORDS = (str, type(None))
_ESTIMATE: Keys = {
    "value": NUMBER,
    "std_error": NUMBER,
    "interval": list,
    "confidence": (int, float),
    "matvecs": NUMBER,
    "seconds": NUMBER,
    "method": str,
    "kind": str,
    "errors": dict,
    "flags": list,
}
_RESULTS: dict[str, Keys] = {
    "measure": {"measure": str, "operator": str, "unit": str, "notes": list, "engine": str},
    "sharpness": {"measure": str, "unit": str, "notes": list, "engine": str, "cost": dict},
    "invariance": {
        "transform": str,
        "strength": NUMBER,
        "measure": str,
        "before": (dict, type(None)),
        "after": (dict, type(None)),
        "ratio": NUMBER,
        "difference": NUMBER,
        "difference_error": (dict, type(None)),
        "z": NUMBER,
        "verdict": str,
        "reason": _WORDS,
        "outputs_distance": NUMBER,
    },
    "landscape": {
        "directions": str,
        "axes": list,
        "center": list,
        "values": dict,
        "holes": dict,
        "quadratic": (dict, type(None)),
    },
    "compare": {"checkpoint": str, "measure": str, "operator": str, "unit": str, "notes": list, "engine": str},
    "track": {"step": NUMBER, "epoch": NUMBER, "measures": dict, "matvecs": NUMBER, "seconds": NUMBER},
    "validate": {"claim": str, "statement": str, "source": str, "verdict": str, "seconds": NUMBER},
}
_JUDGED: Keys = {"predicted": NUMBER, "measured": NUMBER, "std_error": NUMBER, "score": NUMBER, "kind": str}
_DIFFERENCE: Keys = {"checkpoint": str, "baseline": str, "measure": str, "verdict": str, "stands": bool}
# Whose rows are estimates themselves.
_ESTIMATES = frozenset({"measure", "sharpness", "compare"})


def check_results(record: Mapping[str, Any], where: str) -> None:
    """Refuse a record whose results lack what a page shows of them.

    Args:
        record: as ``read_record`` returns it.
        where: its file, for the message.

    Raises:
        RecordError: names file, result and entry.
    """
    command = record["command"]
    for position, row in enumerate(record["results"]):
        place = f"{where}, results[{position}],"
        require(row, _RESULTS.get(command, {}), place)
        for part_of_it, name in _estimates(command, row):
            check_estimate(part_of_it, f"{place} {name}".strip())
        if command == "validate" and row["verdict"] != "error":
            require(row, _JUDGED, place)
    if command == "compare":
        require(record, {"differences": list}, where)
        for position, row in enumerate(record["differences"]):
            place = f"{where}, differences[{position}],"
            require(row, _DIFFERENCE, place)
            check_estimate(row, place)


def _estimates(command: str, row: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the estimates in a row, and where in it they stand."""
    if command in _ESTIMATES:
        yield row, ""
    if command == "invariance":
        yield from ((row[side], f"{side},") for side in ("before", "after") if row[side] is not None)
    if command == "track":
        yield from ((found, f"measures, {name},") for name, found in row["measures"].items())


def check_estimate(row: Mapping[str, Any], where: str) -> None:
    """Refuse an estimate without value, error, interval or cost.

    Raises:
        RecordError: names the entry.
    """
    require(row, _ESTIMATE, where)
    require(row["errors"], {"solver": NUMBER}, f"{where} errors,")
    ends = row["interval"]
    if len(ends) != 2 or not all(isinstance(end, NUMBER) for end in ends):
        raise RecordError(f"{where} must have two numbers as 'interval'; got {ends!r}. Write the record again.")


def part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an entry that is an object, or an empty one where the record has none."""
    entry = record.get(name)
    return entry if isinstance(entry, Mapping) else {}


def objects(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the objects of an entry that is a list, none where the record has no such entry."""
    entry = record.get(name)
    return [one for one in entry if isinstance(one, Mapping)] if isinstance(entry, list) else []
