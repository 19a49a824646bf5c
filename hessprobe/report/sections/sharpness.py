"""How much the loss rises around a checkpoint, beside the second-order model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hessprobe.report.document import Cell, Column, Section, Table, section
from hessprobe.report.schema import part
from hessprobe.report.sections import wording
from hessprobe.report.sections.cells import (
    RECORD,
    below,
    number_cell,
    record_cell,
    stacked_cell,
    steady_cell,
)
from hessprobe.report.sections.page import Page, unfinished
from hessprobe.report.sources import Source
from hessprobe.report.typography import count, number, seconds, steady
from hessprobe.sharpness.names import MEANINGS

_KINDS = {"worst": "in the worst direction", "ascent": "along the gradient", "average": "in a random direction"}
_COLUMNS = (
    Column("sharpness"),
    Column("checkpoint"),
    Column("radius", "number"),
    Column("value ± error", "number"),
    Column("second order", "number"),
    Column("ratio", "number"),
    Column("losses", "number"),
    Column("gradients", "number"),
    Column("products", "number"),
    Column("time", "number"),
    RECORD,
)


def build(page: Page) -> Section | None:
    """Return the section, or None without records of ``hessprobe sharpness``."""
    sources = page.of("sharpness")
    rows = tuple(_row(page, source, row) for source in sources for row in source.rows)
    kinds = dict.fromkeys(row["measure"] for source in sources for row in source.rows)
    meanings = tuple(f"{wording.capital(name)}: {MEANINGS[name]}." for name in kinds if name in MEANINGS)
    ratio = "Ratio: value over second order; near 1 as long as the quadratic model holds."
    units = "Unit: that of the loss."
    notes = (*below([row for source in sources for row in source.rows]), units, *meanings, ratio)
    blocks = [
        unfinished(sources),
        Table("Every sharpness number", _COLUMNS, rows, notes, tuple(_remarks(page))) if rows else None,
        page.drawn("sharpness"),
    ]
    return section("sharpness", "Sharpness", blocks)


def sentences(page: Page) -> Iterator[str]:
    """Yield the rises of the loss at the smallest radius, one sentence a kind, to quote; the table has the others."""
    groups: dict[tuple[str, float | None], list[tuple[Source, Mapping[str, Any]]]] = {}
    for source in page.of("sharpness"):
        for row in source.rows:
            groups.setdefault((row["measure"], row.get("rho")), []).append((source, row))
    smallest = min((rho for _, rho in groups if rho is not None), default=None)
    for (kind, rho), found in groups.items():
        if rho != smallest and rho is not None:
            continue
        values = "; ".join(_quoted(page, source, row) for source, row in found)
        colon = ":" if len(found) > 1 else ""
        if rho is None or kind not in _KINDS:
            yield f"The {kind} sharpness is{colon} {values}."
        else:
            yield f"At distance {number(rho)} {_KINDS[kind]} the loss rises by{colon} {values}."


def _quoted(page: Page, source: Source, row: Mapping[str, Any]) -> str:
    ratio = row.get("ratio")
    model = "" if ratio is None else f", {steady(ratio, digits=3)} times the second-order prediction,"
    return f"{wording.quoted(row)}{model} at {page.data_name(source)} [{source.label}]"


def _row(page: Page, source: Source, row: Mapping[str, Any]) -> tuple[Cell, ...]:
    name = row["measure"] if row.get("m") is None else f"{row['measure']}, m = {row['m']}"
    predicted, spent = part(row, "predicted"), part(row, "cost")
    costs = [spent.get(kind) for kind in ("losses", "gradients", "products")]
    return (
        Cell(str(name), kind="name"),
        Cell(page.data_name(source)),
        number_cell(row.get("rho")),
        stacked_cell(row),
        steady_cell(predicted.get("value"), predicted.get("std_error")),
        steady_cell(row.get("ratio")),
        *(Cell("" if each is None else count(each), each, "number") for each in costs),
        Cell(seconds(row["seconds"]), row["seconds"], "number"),
        record_cell(source),
    )


def _remarks(page: Page) -> list[str]:
    said = [
        f"{row['measure']} of {page.data_name(source)} [{source.label}]: {remark}"
        for source in page.of("sharpness")
        for row in source.rows
        for remark in page.remarks(row)
    ]
    return list(dict.fromkeys(said))
