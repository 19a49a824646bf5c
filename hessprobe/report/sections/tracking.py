"""Curvature along training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hessprobe.report.parts import Cell, Column, Section, Table, section
from hessprobe.report.sections import wording
from hessprobe.report.sections.cells import RECORD, cost_cells, number_cell, record_cell, value_cells, value_columns
from hessprobe.report.sections.page import Page, unfinished
from hessprobe.report.shapes import part
from hessprobe.report.sources import Source
from hessprobe.report.typography import count, number, plural

Row = Mapping[str, Any]


def build(page: Page) -> Section | None:
    """Return the section, or None without records of ``hessprobe track``."""
    sources = page.of("track")
    tables = [_table(source) for source in sources if source.rows]
    blocks = [unfinished(sources), page.drawn("track"), *tables]
    return section("tracking", "Along training", blocks)


def sentences(page: Page) -> Iterator[str]:
    """Yield where each measure begins, ends, and is largest."""
    for source in page.of("track"):
        for name in _measures(source.rows):
            known = [(row, row["measures"][name]) for row in source.rows if name in row["measures"]]
            finite = [(row, found) for row, found in known if found["value"] is not None]
            if not finite:
                continue
            first, last, top = finite[0], finite[-1], max(finite, key=lambda each: each[1]["value"])
            yield (
                f"Over {plural(len(finite), 'checkpoint')} the {wording.measure(name, _operator(source))} goes from "
                f"{_at(*first)} to {_at(*last)}; the largest is {_at(*top)} [{source.label}]."
            )


def _at(row: Row, found: Row) -> str:
    return f"{wording.value_texts(found)[0]} ({wording.interval(found)}) at step {count(row['step'])}"


def _operator(source: Source) -> str:
    return str(source.record["arguments"].get("operator") or "hessian")


def _measures(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(name) for row in rows for name in row["measures"]))


def _table(source: Source) -> Table:
    names = _measures(source.rows)
    scores = list(dict.fromkeys(str(name) for row in source.rows for name in part(row, "scores")))
    columns = (
        Column("step", "number"),
        Column("epoch", "number"),
        *(value_columns(name) for name in names),
        Column("stable up to", "number"),
        Column("loss", "number"),
        *(Column(name.replace("_", " "), "number") for name in scores),
        Column("products", "number"),
        Column("time", "number"),
        RECORD,
    )
    rows = tuple(tuple(_cells(source, row, names, scores)) for row in source.rows)
    levels = dict.fromkeys(wording.level(found) for row in source.rows for found in row["measures"].values())
    notes = [f"Below each value stands its {' or '.join(levels)} interval."] if levels else []
    notes += [str(note) for note in source.record.get("notes") or ()]
    return Table(f"Every checkpoint: {source.name}", columns, rows, tuple(notes))


def _cells(source: Source, row: Row, names: Sequence[str], scores: Sequence[str]) -> Iterator[Cell]:
    yield Cell(count(row["step"]), row["step"], "number")
    yield number_cell(row["epoch"])
    for name in names:
        found = row["measures"].get(name)
        value, error = value_cells(found)
        note = "" if found is None else wording.value_texts(found)[2]
        yield Cell(value.text, value.sort, value.kind, note=note)
        yield error
    yield number_cell(part(row, "edge").get("plain"))
    yield number_cell(row.get("loss"))
    for name in scores:
        score = part(row, "scores").get(name)
        yield Cell("" if score is None else number(score), score, "number")
    yield from cost_cells(row)
    yield record_cell(source)
