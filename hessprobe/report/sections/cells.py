"""Cells of the tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hessprobe.records.typed import Number, errors_legend, tells_data
from hessprobe.report.document import Cell, Column
from hessprobe.report.sections import wording
from hessprobe.report.sources import Source
from hessprobe.report.typography import count, listed, number, seconds, steady

RECORD = Column("record")
_INTERVAL = "interval"
_UNITS = {"curvature": "curvature (loss per squared parameter)"}


def value_columns(name: str = "value") -> Column:
    """Return the column of a value and its error, which stand in two cells so that the signs align."""
    return Column(f"{name} ± measurement", "value", span=2)


def data_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Return the column of the errors from the data being a sample, or none where no row knows its own."""
    return (Column("± data", "number"),) if tells_data(map(Number.of, rows)) else ()


def data_cells(row: Mapping[str, Any], columns: Sequence[Column]) -> tuple[Cell, ...]:
    """Return the data error, empty where it is not known, for ``data_columns``."""
    return (Cell(wording.data_text(row), row["errors"].get("data"), "number"),) if columns else ()


def errors_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the errors of a table mean, in sentences."""
    return [f"{text}." for text in errors_legend([*map(Number.of, rows)], "±")] if rows else []


def value_cells(row: Mapping[str, Any] | None) -> tuple[Cell, Cell]:
    """Return value and error."""
    if row is None:
        return Cell("", kind="number"), Cell("", kind="error")
    value, error, _ = wording.value_texts(row)
    return Cell(value, row["value"], "number"), Cell(error, Number.of(row).error, "error")


def stacked_cell(row: Mapping[str, Any] | None, *, data: bool = False) -> Cell:
    """Return value and error in one cell, their interval below them, for tables that have no room for more columns.

    Args:
        row: of a record.
        data: put the data error behind the interval where it is known.
    """
    if row is None:
        return Cell("", kind="number")
    sampled = wording.data_text(row) if data else ""
    below = [wording.value_texts(row)[2], *([f"{sampled} data"] if sampled else [])]
    return Cell(wording.with_error(row), row["value"], "number", note="; ".join(below))


def below(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sentence that says what stands below the values of stacked cells, or nothing without any."""
    levels = list(dict.fromkeys(wording.level(row) for row in rows))
    return [f"Below each value stands its {listed(levels)} interval."] if levels else []


def interval_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the header of a column of intervals: with their level where it is one."""
    levels = list(dict.fromkeys(wording.level(row) for row in rows))
    return f"{levels[0]} {_INTERVAL}" if len(levels) == 1 else _INTERVAL


def interval_cell(row: Mapping[str, Any], header: str) -> Cell:
    """Return the interval, sorted by its lower end; with its level where the header does not say it."""
    note = wording.level(row) if header == _INTERVAL else ""
    return Cell(wording.value_texts(row)[2], row["interval"][0], "number", note=note)


def cost_cells(row: Mapping[str, Any]) -> tuple[Cell, Cell]:
    """Return products and seconds."""
    found, time = row["matvecs"], row["seconds"]
    return Cell(count(found), found, "number"), Cell(seconds(time), time, "number")


def estimate_columns(interval: str, data: Sequence[Column] = ()) -> tuple[Column, ...]:
    """Return the columns that follow measure and checkpoint wherever results stand in a table: see ``estimate_cells``.

    Args:
        interval: header of the intervals, from ``interval_name``.
        data: from ``data_columns``.
    """
    return (
        value_columns(),
        *data,
        Column(interval, "number"),
        Column("products", "number"),
        Column("time", "number"),
        Column("method"),
        RECORD,
    )


def estimate_cells(
    row: Mapping[str, Any], source: Source, interval: str, data: Sequence[Column] = ()
) -> tuple[Cell, ...]:
    """Return the cells of ``estimate_columns``: value, errors, interval, cost, method, record."""
    return (
        *value_cells(row),
        *data_cells(row, data),
        interval_cell(row, interval),
        *cost_cells(row),
        Cell(row["method"], kind="code"),
        record_cell(source),
    )


def number_cell(value: float | None, digits: int = 4) -> Cell:
    """Return a number; empty where there is none."""
    return Cell("" if value is None else number(value, digits), value, "number")


def steady_cell(value: float | None, error: float | None = None, digits: int = 4) -> Cell:
    """Return a number to the digit that its error leaves, or always to as many digits; empty where there is none."""
    return Cell("" if value is None else steady(value, error, digits), value, "number")


def units_note(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in one sentence the units of the measures in a table, or nothing where they are not known."""
    units: dict[str, list[str]] = {}
    for row in rows:
        names = units.setdefault(str(row.get("unit") or ""), [])
        if row["measure"] not in names:
            names.append(str(row["measure"]))
    known = [f"{_UNITS.get(unit, unit)} for {listed(names)}" for unit, names in units.items() if unit]
    return [f"Units: {'; '.join(known)}."] if known else []


def record_cell(source: Source) -> Cell:
    """Return the link to the record."""
    return Cell(source.label, int(source.label[1:]), "text", link=source.id)
