"""The theory held against measurement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hessprobe.report.document import Cell, Column, Section, Table, section
from hessprobe.report.sections.cells import RECORD, record_cell
from hessprobe.report.sections.page import Page, unfinished
from hessprobe.report.sources import Source
from hessprobe.report.typography import number, numbers, pretty, seconds
from hessprobe.validation.table import score_text, summary

_TONES = {"holds": "good", "fails": "bad", "error": "bad"}
_COLUMNS = (
    Column("claim"),
    Column("predicted", "number"),
    Column("measured ± error", "value", span=2),
    Column("score"),
    Column("verdict"),
    Column("time", "number"),
    RECORD,
)
_NOTE = (
    "The numbers of a row are those of its comparison furthest from the claim. z: difference over standard error, 4 at "
    "most. Of bound, of tolerance: 1 at most. Observed: a measurement about which nothing is claimed."
)


def build(page: Page) -> Section | None:
    """Return the section, or None without records of ``hessprobe validate``."""
    sources = page.of("validate")
    tables = [
        Table(summary(source.rows), _COLUMNS, tuple(_row(source, row) for row in source.rows), (_NOTE,))
        for source in sources
        if source.rows
    ]
    blocks = [unfinished(sources), *tables, page.drawn("validate")]
    return section("validation", "Theory against measurement", blocks)


def sentences(page: Page) -> Iterator[str]:
    """Yield how many claims hold, and which do not."""
    for source in page.of("validate"):
        if not source.rows:
            continue
        failed = [str(row["claim"]) for row in source.rows if row["verdict"] in ("fails", "error")]
        bad = f" Not borne out: {', '.join(failed)}." if failed else ""
        yield f"Of the theory, {summary(source.rows)} [{source.label}].{bad}"


def _row(source: Source, row: Mapping[str, Any]) -> tuple[Cell, ...]:
    broken = row["verdict"] == "error"
    sign = {"bound": "≤\u00a0", "at least": "≥\u00a0"}.get(row.get("kind", ""), "")
    predicted = row.get("predicted")
    error, value = row.get("std_error"), row.get("measured")
    measured, spread, expected = numbers(value, error, predicted) if error else ("", "", "")
    return (
        Cell(row["claim"], kind="name", note=f"{row['statement']} {row['source']}"),
        Cell("" if predicted is None else sign + (expected or number(predicted)), predicted, "number"),
        Cell("", None, "number") if broken else Cell(measured or number(value), value, "number"),
        Cell(f"± {spread}" if spread else "", error, "error"),
        Cell(str(row.get("error", "")) if broken else pretty(score_text(row)), row.get("score")),
        Cell(row["verdict"], kind="verdict", tone=_TONES.get(row["verdict"], "")),
        Cell(seconds(row["seconds"]), row["seconds"], "number"),
        record_cell(source),
    )
