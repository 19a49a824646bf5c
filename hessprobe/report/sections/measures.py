"""Curvature numbers: cards, a table, the shares of layers, spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from hessprobe.measures.table import TABLE, entry_of
from hessprobe.records.typed import Number
from hessprobe.report.document import Bar, Card, Cards, Cell, Column, Reading, Section, Table, section
from hessprobe.report.sections import wording
from hessprobe.report.sections.cells import (
    data_cells,
    data_columns,
    errors_notes,
    estimate_cells,
    estimate_columns,
    interval_cell,
    interval_name,
    units_note,
    value_cells,
    value_columns,
)
from hessprobe.report.sections.page import Page, unfinished
from hessprobe.report.sources import Source

Row = Mapping[str, Any]
Found = tuple[Source, Row]


def headlines(page: Page) -> Section | None:
    """Return the numbers in large type, or None without records of ``hessprobe measure``."""
    cards = tuple(_card(page, name, matrix, found) for (name, matrix), found in grouped(page).items())
    told = any(reading.bar is not None and reading.bar.data is not None for card in cards for reading in card.readings)
    paler = ", paler that from the data being a sample" if told else ""
    lead = f"A bar is as long as the value; over its end lies the error that stands beside the value{paler}."
    barred = any(reading.bar is not None for card in cards for reading in card.readings)
    return section("numbers", "The numbers", [Cards(cards) if cards else None], lead if barred else "")


def build(page: Page) -> Section | None:
    """Return the section, or None without records of ``hessprobe measure``."""
    sources = page.of("measure")
    groups = grouped(page)
    blocks = [
        unfinished(sources),
        _table(page, groups) if groups else None,
        *_layers(page),
        page.drawn("measure"),
    ]
    lead = "A product is one Hessian-vector product over all the data, about the price of one or two gradients."
    return section("curvature", "Curvature", blocks, lead)


def sentences(page: Page) -> Iterator[str]:
    """Yield what was measured, one sentence a measure, to quote."""
    for (name, matrix), found in grouped(page).items():
        values = [f"{wording.quoted(row)} at {page.data_name(source)} [{source.label}]" for source, row in found]
        verb = "is" if len(found) == 1 else "is:"
        yield f"The {wording.measure(name, matrix)} {verb} {'; '.join(values)}.{_order(page, found)}"


def grouped(page: Page) -> dict[tuple[str, str], list[Found]]:
    """Return results by measure and operator, in the order of the table of measures."""
    found: dict[tuple[str, str], list[Found]] = {}
    for source in page.of("measure"):
        for row in source.rows:
            found.setdefault((row["measure"], row["operator"]), []).append((source, row))
    order = list(TABLE)
    rank = {name: order.index(name) if name in order else len(order) for name, _ in found}
    return dict(sorted(found.items(), key=lambda item: (rank[item[0][0]], item[0])))


def bars(rows: Sequence[Row]) -> list[Bar | None]:
    """Return values with the errors printed beside them on one scale that holds zero, None where one is not finite."""
    known = [(row["value"], *_error(row), *(_sampled(row) or ())) for row in rows if row["value"] is not None]
    flat: list[float] = [number for each in known for number in each]
    low, high = min([0.0, *flat]), max([0.0, *flat])
    if not high > low or not math.isfinite(high - low):
        return [None] * len(rows)

    def place(number: float) -> float:
        return round(100 * (number - low) / (high - low), 3)

    return [None if row["value"] is None else _bar(row, place) for row in rows]


def _bar(row: Row, place: Callable[[float], float]) -> Bar:
    low, high = _error(row)
    data = _sampled(row)
    return Bar(place(row["value"]), place(low), place(high), place(0.0), data and (place(data[0]), place(data[1])))


def _error(row: Row) -> tuple[float, float]:
    """Return the ends of what is printed behind the value: one standard error, or a bracket."""
    found = Number.of(row)
    if found.kind == "bracket":
        return _ends(row)
    error = found.error if found.error is not None and math.isfinite(found.error) else 0.0
    return row["value"] - error, row["value"] + error


def _sampled(row: Row) -> tuple[float, float] | None:
    data = Number.of(row).errors.data
    return None if data is None or not math.isfinite(data) else (row["value"] - data, row["value"] + data)


def _ends(row: Row) -> tuple[float, float]:
    low, high = row["interval"]
    value = row["value"]
    return (value if low is None else low, value if high is None else high)


def _card(page: Page, name: str, matrix: str, found: Sequence[Found]) -> Card:
    readings = []
    for (source, row), bar in zip(found, bars([row for _, row in found]), strict=True):
        value, error, _ = wording.value_texts(row)
        readings.append(
            Reading(
                page.data_name(source),
                value,
                error,
                wording.data_text(row),
                wording.interval(row),
                wording.cost(row),
                bar if len(found) > 1 else None,
                source.id,
                source.label,
                tuple(page.remarks(_weakness(row))),
            )
        )
    unit = str(found[0][1]["unit"])
    return Card(wording.capital(wording.measure(name, matrix)), wording.meaning(name), unit, tuple(readings))


def _weakness(row: Row) -> Row:
    # What is weak about a number stands beside it; what was found with it, below the table.
    return {"measure": "", "flags": row["flags"], "notes": []}


def _table(page: Page, groups: Mapping[tuple[str, str], Sequence[Found]]) -> Table:
    shown = [row for found in groups.values() for _, row in found]
    interval, data = interval_name(shown), data_columns(shown)
    columns = (Column("measure"), Column("checkpoint"), *estimate_columns(interval, data))
    rows = tuple(
        (
            Cell(name if matrix == "hessian" else f"{name}, {wording.operator(matrix)}", kind="name"),
            Cell(page.data_name(source)),
            *estimate_cells(row, source, interval, data),
        )
        for (name, matrix), found in groups.items()
        for source, row in found
    )
    remarks = [
        f"{name} of {page.data_name(source)} [{source.label}]: {said}"
        for (name, _), found in groups.items()
        for source, row in found
        for said in page.remarks(row)
    ]
    return Table("Every curvature number", columns, rows, (*errors_notes(shown), *units_note(shown)), tuple(remarks))


def _layers(page: Page) -> Iterator[Table]:
    for source in page.of("measure"):
        for row in source.rows:
            layers = row.get("layers")
            if not isinstance(layers, Mapping) or not layers:
                continue
            shares = _are_shares(row)
            shown = list(layers.values())
            interval, data = interval_name(shown), data_columns(shown)
            rows = tuple(
                (
                    Cell(str(name), kind="code"),
                    *value_cells(layer),
                    *data_cells(layer, data),
                    interval_cell(layer, interval),
                    _share(layer["value"], 1.0 if shares else row["value"]),
                )
                for name, layer in layers.items()
            )
            columns = (
                Column("parameter"),
                value_columns(),
                *data,
                Column(interval, "number"),
                Column("share", "number"),
            )
            title = f"{wording.capital(wording.measure(row['measure'], row['operator']))}, layer by layer"
            yield Table(
                f"{title}: {page.data_name(source)} [{source.label}]",
                columns,
                rows,
                ("Values are shares of the squared norm; they add up to 1.",) if shares else (),
            )


def _are_shares(row: Row) -> bool:
    layers = entry_of(str(row["measure"])).layers
    return layers is not None and layers.adding == "shares"


def _share(value: float | None, whole: float | None) -> Cell:
    if value is None or not whole:
        return Cell("", None, "number")
    share = value / whole
    return Cell(f"{100 * share:.1f}\u00a0%", share, "number")


def _order(page: Page, found: Sequence[Found]) -> str:
    """Return which checkpoint has more of a measure and whether the intervals can tell; nothing for one checkpoint."""
    known = [(source, row) for source, row in found if row["value"] is not None]
    if len({source.subject for source, _ in known}) < 2:
        return ""
    ordered = sorted(known, key=lambda each: each[1]["value"])
    apart = all(_ends(left)[1] < _ends(right)[0] for (_, left), (_, right) in pairwise(ordered))
    names = " < ".join(page.data_name(source) for source, _ in ordered)
    if apart:
        return f" Their intervals for these data do not overlap: {names}."
    return f" Some of their intervals overlap, so the order {names} is not certain."
