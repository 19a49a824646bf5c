"""The loss on lines and planes through checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from hessprobe.report.document import Cell, Column, Section, Table, section
from hessprobe.report.schema import part
from hessprobe.report.sections.cells import RECORD, record_cell, steady_cell
from hessprobe.report.sections.page import Page, unfinished
from hessprobe.report.sources import Source
from hessprobe.report.typography import number, percent, plural

_COLUMNS = (
    Column("checkpoint"),
    Column("directions"),
    Column("points", "number"),
    Column("loss at the checkpoint", "number"),
    Column("least loss", "number"),
    Column("largest loss", "number"),
    Column("holes", "number"),
    Column("second order within 10 %", "number"),
    RECORD,
)


def build(page: Page) -> Section | None:
    """Return the section, or None without records of ``hessprobe landscape``."""
    sources = page.of("landscape")
    rows = tuple(_row(page, source, row) for source in sources for row in source.rows)
    notes = tuple(dict.fromkeys(str(note) for source in sources for note in source.record.get("notes") or ()))
    blocks = [
        unfinished(sources),
        page.drawn("landscape"),
        Table("The loss on the grid", _COLUMNS, rows, notes) if rows else None,
    ]
    return section("landscape", "Landscapes", blocks)


def sentences(page: Page) -> Iterator[str]:
    """Yield how the loss varies on each grid."""
    for source in page.of("landscape"):
        for row in source.rows:
            center, least, largest = _losses(row)
            if center is None or least is None or largest is None:
                continue
            trusted = part(row, "quadratic").get("within_10_percent")
            model = "" if trusted is None else f"; the second-order model is within 10 % on {percent(trusted)} of it"
            holes = _holes(row)
            missing = f"; {plural(holes, 'point')} had no finite loss" if holes else ""
            yield (
                f"On the {_points(row)} {row['directions']} {'plane' if len(row['axes']) == 2 else 'line'} through "
                f"{page.data_name(source)} the loss goes from {number(least)} to {number(largest)}, and is "
                f"{number(center)} at the checkpoint{model}{missing} [{source.label}]."
            )


def _row(page: Page, source: Source, row: Mapping[str, Any]) -> tuple[Cell, ...]:
    center, least, largest = _losses(row)
    trusted = part(row, "quadratic").get("within_10_percent")
    holes = _holes(row)
    return (
        Cell(page.data_name(source), kind="name"),
        Cell(row["directions"]),
        Cell(_points(row), _size(row), "number"),
        steady_cell(center),
        steady_cell(least),
        steady_cell(largest),
        Cell(f"{holes:,}", holes, "number"),
        Cell("" if trusted is None else percent(trusted), trusted, "number"),
        record_cell(source),
    )


def _losses(row: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    loss = row["values"].get("loss") or []
    flat = list(chain.from_iterable(loss)) if len(row["axes"]) == 2 else list(loss)
    known = [each for each in flat if each is not None]
    return _at(loss, row["center"]), min(known, default=None), max(known, default=None)


def _at(values: Any, place: Sequence[int]) -> float | None:
    for index in place:
        if not isinstance(values, Sequence) or not 0 <= index < len(values):
            return None
        values = values[index]
    return values if isinstance(values, (int, float)) else None


def _points(row: Mapping[str, Any]) -> str:
    return "\u00a0\u00d7\u00a0".join(str(len(axis)) for axis in row["axes"])


def _size(row: Mapping[str, Any]) -> float:
    size = 1.0
    for axis in row["axes"]:
        size *= len(axis)
    return size


def _holes(row: Mapping[str, Any]) -> int:
    return int(row["holes"].get("loss") or 0)
