"""The answer of the records: one sentence a comparison, and one table, for a reader with ten seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hessprobe.comparison.names import FLATTER, SHARPER, UNDECIDED, WITHIN
from hessprobe.report.document import Cell, Column, Section, Table, Text, section
from hessprobe.report.sections import wording
from hessprobe.report.sections.page import Page
from hessprobe.report.sources import Source
from hessprobe.report.typography import number, pretty

Row = Mapping[str, Any]
# Measures whose columns have room on a page; the tables further down have all.
_MOST = 6
_HOLDS, _MAY_VANISH = "holds on other data", "may vanish on other data"
_VALUES = "Each value with its measurement's error"
_DATA = "the error from the data being a sample"
_DIFFERENCES = "the difference to the baseline"


def build(page: Page) -> Section | None:
    """Return the section, or None where nothing was compared or measured."""
    said = tuple(sentences(page))
    tables: list[Table | None] = [_compared(source) for source in page.of("compare") if source.rows]
    if not tables:
        tables = [_measured(page)]
    return section("verdict", "The answer", [Text(said) if said else None, *tables])


def sentences(page: Page) -> Iterator[str]:
    """Yield one sentence a comparison; of records of ``measure`` alone, one a checkpoint with its numbers."""
    compared = page.of("compare")
    for source in compared:
        rows: Sequence[Row] = source.record["differences"]
        for name in dict.fromkeys(row["checkpoint"] for row in rows):
            yield _sentence(source, name, [row for row in rows if row["checkpoint"] == name])
    if not compared:
        for source, found in _by_checkpoint(page).values():
            numbers = ", ".join(f"{row['measure']}\u00a0{_whole(wording.with_error(row))}" for row in found[:_MOST])
            yield f"{page.data_name(source)}: {numbers}."


def _sentence(source: Source, name: str, rows: Sequence[Row]) -> str:
    resolved = [row for row in rows if row["value"] is not None and row["verdict"] not in (WITHIN, UNDECIDED)]
    open_ = [str(row["measure"]) for row in rows if row not in resolved]
    baseline = rows[0]["baseline"]
    rest = f"{', '.join(open_)}: not resolved" if open_ else ""
    if not resolved:
        return f"{name} and {baseline} cannot be told apart: {rest}."
    directions = {row["verdict"] for row in resolved} & {FLATTER, SHARPER}
    one = directions.pop() if len(directions) == 1 else None
    said = ", ".join(_change(source, row, "" if row["verdict"] == one else f"{row['verdict']}, ") for row in resolved)
    head = f"{name} is {one} than {baseline}" if one else f"{name} differs from {baseline}"
    return f"{head}: {said}{f'; {rest}' if rest else ''}."


def _change(source: Source, row: Row, direction: str) -> str:
    beyond = row.get("beyond_data")
    holds = "" if beyond is None else _HOLDS if beyond else _MAY_VANISH
    alone = "" if row["stands"] else "not for all differences together"
    inside = ", ".join(part for part in (direction.removesuffix(", "), alone, holds) if part)
    return f"{row['measure']}\u00a0{_percent(source, row)}{f' ({inside})' if inside else ''}"


def _percent(source: Source, row: Row) -> str:
    """Return the difference in percent of the baseline's value; as it is where that is not positive."""
    base = next(
        (
            each["value"]
            for each in source.rows
            if (each["checkpoint"], each["measure"]) == (row["baseline"], row["measure"])
        ),
        None,
    )
    if not base or not base > 0:
        return f"{'+' if row['value'] > 0 else ''}{_whole(number(row['value'], 3))}"
    return (
        pretty(f"{100 * row['value'] / base:+.2g}" if abs(row["value"]) < base else f"{100 * row['value'] / base:+.0f}")
        + "\u00a0%"
    )


def _whole(text: str) -> str:
    """Return a number that no line breaks."""
    return text.replace(" ", "\u00a0")


def _compared(source: Source) -> Table:
    measures = list(dict.fromkeys(str(row["measure"]) for row in source.rows))[:_MOST]
    differences = {(row["checkpoint"], row["measure"]): row for row in source.record["differences"]}
    rows = []
    for name in dict.fromkeys(str(row["checkpoint"]) for row in source.rows):
        found = {row["measure"]: row for row in source.rows if row["checkpoint"] == name}
        cells = [_cell(found.get(each), source, differences.get((name, each))) for each in measures]
        rows.append((Cell(name, kind="name"), *cells))
    return Table("Checkpoints side by side", _columns(measures), tuple(rows), (_note(source.rows, _DIFFERENCES),))


def _measured(page: Page) -> Table | None:
    found = _by_checkpoint(page)
    measures = list(dict.fromkeys(str(row["measure"]) for _, rows in found.values() for row in rows))[:_MOST]
    if not measures:
        return None
    rows = []
    for source, results in found.values():
        own = {row["measure"]: row for row in results}
        rows.append(
            (Cell(page.data_name(source), kind="name"), *(_cell(own.get(each), source, None) for each in measures))
        )
    shown = [row for _, results in found.values() for row in results]
    return Table("Checkpoints side by side", _columns(measures), tuple(rows), (_note(shown),))


def _note(rows: Sequence[Row], *more: str) -> str:
    """Return what stands in the cells, the data error only where a row knows its own."""
    told = any((row.get("errors") or {}).get("data") is not None for row in rows)
    below = " and ".join([*([_DATA] if told else []), *more])
    return f"{_VALUES}; below it {below}." if below else f"{_VALUES}."


def _columns(measures: Sequence[str]) -> tuple[Column, ...]:
    return (Column("checkpoint"), *(Column(name, "number") for name in measures))


def _by_checkpoint(page: Page) -> dict[str, tuple[Source, list[Row]]]:
    """Return the results of the Hessian by checkpoint and data, in the order of their records."""
    found: dict[str, tuple[Source, list[Row]]] = {}
    for source in page.of("measure"):
        rows = [row for row in source.rows if row["operator"] == "hessian"]
        if rows:
            found.setdefault(page.data_name(source), (source, []))[1].extend(rows)
    return found


def _cell(row: Row | None, source: Source, difference: Row | None) -> Cell:
    if row is None:
        return Cell("", kind="number")
    data = (row.get("errors") or {}).get("data")
    parts = [f"data\u00a0±\u00a0{_whole(number(data, 2))}"] if data is not None and math.isfinite(data) else []
    if difference is not None and difference["value"] is not None:
        # A verdict belongs to its percentage.
        parts.append(f"{_percent(source, difference)}, {difference['verdict']}")
    return Cell(_whole(wording.with_error(row)), row["value"], "number", note="; ".join(parts))
