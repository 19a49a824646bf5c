"""Curvature along training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hessprobe.report.document import Cell, Column, Section, Table, section
from hessprobe.report.schema import part
from hessprobe.report.sections import wording
from hessprobe.report.sections.cells import (
    RECORD,
    below,
    cost_cells,
    number_cell,
    record_cell,
    stacked_cell,
    steady_cell,
    units_note,
)
from hessprobe.report.sections.page import Page, unfinished
from hessprobe.report.sources import Source
from hessprobe.report.typography import count, number, plural, share, steady

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
    scores = _scores(source.rows)
    columns = (
        Column("step", "number"),
        *(Column(f"{name} ± error", "number") for name in names),
        Column("stable up to", "number"),
        Column("loss", "number"),
        *(Column(heading, "number") for heading in scores),
        Column("time", "number"),
        RECORD,
    )
    rows = tuple(tuple(_cells(source, row, names, scores)) for row in source.rows)
    found = [{"measure": name} | one for row in source.rows for name, one in row["measures"].items()]
    notes = [*below(found), *units_note(found)]
    notes.append("Stable up to: the largest eigenvalue of a quadratic on which these steps are stable.")
    notes += [str(note) for note in source.record.get("notes") or ()]
    return Table(f"Every checkpoint: {source.name}", columns, rows, tuple(notes))


def _cells(source: Source, row: Row, names: Sequence[str], scores: Mapping[str, tuple[str, ...]]) -> Iterator[Cell]:
    epoch = "" if row["epoch"] is None else f"epoch {number(row['epoch'])}"
    yield Cell(count(row["step"]), row["step"], "number", note=epoch)
    for name in names:
        yield stacked_cell(row["measures"].get(name), data=True)
    yield number_cell(part(row, "edge").get("plain"), 3)
    yield steady_cell(row.get("loss"))
    yield from (_score(row, names) for names in scores.values())
    products, time = cost_cells(row)
    yield Cell(time.text, time.sort, "number", note=f"{products.text} products")
    yield record_cell(source)


def _scores(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Return the scores in each column by its header: what is known of training and of test data shares one."""
    names = list(dict.fromkeys(str(name) for row in rows for name in part(row, "scores")))
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        split, _, kind = name.partition("_")
        pair = (f"train_{kind}", f"test_{kind}")
        if split in ("train", "test") and all(each in names for each in pair):
            found[f"{kind}: train, below it test"] = pair
        else:
            found[name.replace("_", " ")] = (name,)
    return found


def _score(row: Row, names: tuple[str, ...]) -> Cell:
    values = [part(row, "scores").get(name) for name in names]
    texts = [
        "" if value is None else share(value) if name.endswith("accuracy") else steady(value)
        for name, value in zip(names, values, strict=True)
    ]
    return Cell(texts[0], values[0], "number", note="".join(texts[1:]))
