"""Which measures survive transforms that leave the function alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hessprobe.invariance.names import CHANGES, INVARIANT, NOT_MEASURED, TRANSFORMS
from hessprobe.measures.table import entry_of
from hessprobe.report.document import Cell, Column, Section, Table, section
from hessprobe.report.sections import wording
from hessprobe.report.sections.cells import RECORD, below, number_cell, record_cell, stacked_cell, steady_cell
from hessprobe.report.sections.page import Page, unfinished
from hessprobe.report.sources import Source
from hessprobe.report.typography import count, listed, number, steady

_TONES = {INVARIANT: "good", CHANGES: "bad", NOT_MEASURED: ""}
_COLUMNS = (
    Column("transform"),
    Column("measure"),
    Column("verdict"),
    Column("before ± error", "number"),
    Column("after ± error", "number"),
    Column("ratio", "number"),
    Column("z", "number"),
    Column("outputs moved by", "number"),
    RECORD,
)


def build(page: Page) -> Section | None:
    """Return the section, or None without records of ``hessprobe invariance``."""
    sources = page.of("invariance")
    tables = [
        Table(f"Before and after: {page.data_name(source)}", _COLUMNS, tuple(_rows(source)), *_notes(source))
        for source in sources
        if source.rows
    ]
    blocks = [unfinished(sources), *tables, page.drawn("invariance")]
    return section("invariance", "Invariance", blocks, "Each transform gives another network with the same outputs.")


def sentences(page: Page) -> Iterator[str]:
    """Yield which measures changed and which did not, with the largest factor."""
    for source in page.of("invariance"):
        verdicts: dict[str, list[str]] = {}
        for row in source.rows:
            verdicts.setdefault(row["measure"], []).append(row["verdict"])
        if not verdicts:
            continue
        changed = [name for name, said in verdicts.items() if CHANGES in said]
        kept = [name for name, said in verdicts.items() if set(said) <= {INVARIANT, NOT_MEASURED} and INVARIANT in said]
        distance = max((row["outputs_distance"] or 0.0 for row in source.rows), default=0.0)
        yield (
            f"Transforms of {page.data_name(source)} that leave its outputs alone (to {number(distance, 2)}) "
            f"{_changed(source, changed)}, and leave {listed(kept) or 'no measure'} as "
            f"{'they are' if len(kept) > 1 else 'it is'} [{source.label}]."
        )


def _changed(source: Source, names: list[str]) -> str:
    if not names:
        return "change no measure"
    ratios = [
        (max(abs(row["ratio"]), 1 / abs(row["ratio"])), row)
        for row in source.rows
        if row["verdict"] == CHANGES and row["ratio"] and not entry_of(row["measure"]).logarithmic
    ]
    if not ratios:
        return f"change {listed(names)}"
    factor, row = max(ratios, key=lambda each: each[0])
    strength = "" if row["strength"] is None else f" {number(row['strength'])}"
    most = f"most {row['measure']}, by a factor {_factor(factor)}, under {row['transform']}{strength}"
    return f"change {listed(names)} ({most})"


def _factor(value: float) -> str:
    return count(value) if 100 <= value < 1e6 else number(value, 3)


def _rows(source: Source) -> Iterator[tuple[Cell, ...]]:
    for row in source.rows:
        tone = "bad" if row.get("contradicts_theory") else _TONES.get(row["verdict"], "weak")
        yield (
            _transform(row),
            Cell(row["measure"]),
            _verdict(row["verdict"], tone),
            stacked_cell(row["before"]),
            stacked_cell(row["after"]),
            _ratio(row),
            number_cell(row["z"], 3),
            number_cell(row["outputs_distance"], 2),
            record_cell(source),
        )


def _transform(row: Mapping[str, Any]) -> Cell:
    if row["strength"] is None:
        return Cell(row["transform"], kind="name")
    strength = number(row["strength"])
    # Sorted by strength within the transform.
    return Cell(row["transform"], f"{row['transform']} {row['strength']}", "name", note=f"strength {strength}")


def _verdict(said: str, tone: str) -> Cell:
    """Return a verdict, with what stands in brackets behind it on a line of its own."""
    word, _, why = said.partition(" (")
    return Cell(word, said, "verdict", note=why.removesuffix(")"), tone=tone)


def _ratio(row: Mapping[str, Any]) -> Cell:
    # A ratio of determinants has hundreds of digits; the difference of their logarithms says as much.
    if entry_of(row["measure"]).logarithmic and row["difference"] is not None:
        error = (row["difference_error"] or {}).get("std_error")
        return Cell(f"exp({steady(row['difference'], error)})", row["difference"], "number")
    return steady_cell(row["ratio"], row.get("ratio_error"), 5)


def _notes(source: Source) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a reader needs for the table, and the reasons of its verdicts."""
    notes = below([row[side] for row in source.rows for side in ("before", "after") if row[side]])
    notes.append("Ratio: after over before. z: their difference over its standard error.")
    kinds = dict.fromkeys(row["transform"] for row in source.rows)
    notes += [f"{wording.capital(name)}: {TRANSFORMS[name].meaning}." for name in kinds if name in TRANSFORMS]
    wrong = [row for row in source.rows if row.get("contradicts_theory")]
    notes += [f"{row['measure']} under {row['transform']} contradicts the theory." for row in wrong]
    found: dict[str, list[str]] = {}
    for row in source.rows:
        if row["reason"]:
            found.setdefault(row["reason"], []).append(f"{row['measure']} under {row['transform']}")
    reasons = [f"{listed(list(dict.fromkeys(places)))}: {reason}" for reason, places in found.items()]
    return tuple(notes), tuple(reasons)
