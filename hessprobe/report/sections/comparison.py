"""Checkpoints against one another: differences with their own errors, and rank correlations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hessprobe.comparison.names import UNDECIDED, WITHIN
from hessprobe.report.document import Block, Cell, Column, Section, Table, section
from hessprobe.report.schema import part
from hessprobe.report.sections import wording
from hessprobe.report.sections.cells import (
    RECORD,
    data_cells,
    data_columns,
    errors_notes,
    estimate_cells,
    estimate_columns,
    interval_cell,
    interval_name,
    number_cell,
    record_cell,
    units_note,
    value_cells,
    value_columns,
)
from hessprobe.report.sections.page import Page, unfinished
from hessprobe.report.sources import Source
from hessprobe.report.typography import count, number

Row = Mapping[str, Any]


def build(page: Page) -> Section | None:
    """Return the section, or None without records of ``hessprobe compare``."""
    sources = page.of("compare")
    blocks: list[Block | None] = [unfinished(sources)]
    for source in sources:
        blocks += [_differences(source), _values(page, source), _correlations(source)]
    lead = (
        "All on the same data, with the same probes: what they have in common cancels in a difference, whose error is "
        "then smaller than that of either value."
    )
    return section("comparison", "Comparison", blocks, lead)


def sentences(page: Page) -> Iterator[str]:
    """Yield each difference, one sentence a checkpoint, and what rescaling means for them."""
    for source in page.of("compare"):
        found = source.record["differences"]
        for name in dict.fromkeys(row["checkpoint"] for row in found):
            said = [_said(row) for row in found if row["checkpoint"] == name]
            baseline = next(row["baseline"] for row in found if row["checkpoint"] == name)
            yield f"Against {baseline}, {name} is {'; '.join(said)} [{source.label}]."
        sentence = part(source.record, "rescaling").get("sentence")
        if sentence:
            yield f"{wording.capital(str(sentence))}."


def _said(row: Row) -> str:
    difference = f"difference {wording.value_texts(row)[0]}, {wording.interval(row)}"
    if row["verdict"] in (WITHIN, UNDECIDED):
        return f"{row['verdict']} in {row['measure']} ({difference})"
    alone = "" if row["stands"] else ", which does not hold for all differences together"
    lost = "" if row.get("beyond_data") is not False else ", which may vanish on other data"
    return f"{row['verdict']} in {row['measure']} ({difference}{alone}{lost})"


def _differences(source: Source) -> Table | None:
    found: Sequence[Row] = source.record["differences"]
    if not found:
        return None
    interval, data = interval_name(found), data_columns(found)
    columns = (
        Column("measure"),
        Column("checkpoint"),
        Column("verdict"),
        value_columns("difference"),
        *data,
        Column(interval, "number"),
        Column("against"),
        Column("error if unpaired", "number"),
        RECORD,
    )
    rows = tuple(
        (
            Cell(row["measure"], kind="name"),
            Cell(row["checkpoint"]),
            _verdict(row),
            *value_cells(row),
            *data_cells(row, data),
            interval_cell(row, interval),
            Cell(row["baseline"]),
            number_cell(row.get("independent_std_error") or None, 2),
            record_cell(source),
        )
        for row in found
    )
    sentence = part(source.record, "rescaling").get("sentence")
    notes = (*errors_notes(found), *((f"{wording.capital(str(sentence))}.",) if sentence else ()))
    return Table("Differences", columns, rows, notes)


def _verdict(row: Row) -> Cell:
    if row["verdict"] in (WITHIN, UNDECIDED):
        return Cell(row["verdict"], kind="verdict", tone="weak")
    note = "" if row.get("beyond_data") is not False else "may vanish on other data"
    return Cell(row["verdict"] if row["stands"] else f"{row['verdict']} (alone)", kind="verdict", note=note)


def _values(page: Page, source: Source) -> Table | None:
    if not source.rows:
        return None
    interval, data = interval_name(source.rows), data_columns(source.rows)
    columns = (Column("measure"), Column("checkpoint"), *estimate_columns(interval, data))
    rows = tuple(
        (
            Cell(row["measure"], kind="name"),
            Cell(row["checkpoint"]),
            *estimate_cells(row, source, interval, data),
        )
        for row in source.rows
    )
    remarks = [f"{row['measure']} of {row['checkpoint']}: {said}" for row in source.rows for said in page.remarks(row)]
    return Table(
        "The compared values",
        columns,
        rows,
        (*errors_notes(source.rows), *units_note(source.rows)),
        tuple(dict.fromkeys(remarks)),
    )


def _correlations(source: Source) -> Table | None:
    found = source.record.get("correlations") or []
    if not found:
        return None
    columns = (
        Column("measure"),
        Column("gap"),
        Column("Kendall's tau", "number"),
        Column("interval", "number"),
        Column("checkpoints", "number"),
        Column("verdict"),
        RECORD,
    )
    rows = tuple(
        (
            Cell(str(row["measure"]), kind="name"),
            Cell(str(row["gap"])),
            number_cell(row["tau"], 3),
            Cell(_span(row), row["interval"][0], "number"),
            Cell(count(row["count"]), row["count"], "number"),
            Cell(str(row["verdict"]), kind="verdict"),
            record_cell(source),
        )
        for row in found
    )
    return Table("Rank correlation with the generalization gap", columns, rows)


def _span(row: Row) -> str:
    low, high = row["interval"]
    return f"{number(low, 3)}\u00a0to\u00a0{number(high, 3)}"
