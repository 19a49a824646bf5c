"""The answer of the records: one sentence a comparison, and one table, for a reader with ten seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from hessprobe.comparison.names import FLATTER, SHARPER, UNDECIDED, WITHIN
from hessprobe.measures.table import entry_of
from hessprobe.report.document import Cell, Column, Section, Table, Text, section
from hessprobe.report.sections import invariance, landscape, sharpness, validation, wording
from hessprobe.report.sections.cells import data_cells, data_columns, interval_cell, interval_name
from hessprobe.report.sections.page import Page
from hessprobe.report.sources import Source
from hessprobe.report.typography import number, plural, pretty

Row = Mapping[str, Any]
_Step = tuple[float, Row]
# Measures whose columns have room on a page; the tables further down have all.
_MOST = 6
_HOLDS, _MAY_VANISH = "holds on other data", "may vanish on other data"
_VALUES = "Each value with its measurement's error"
_DATA = "the error from the data being a sample"
_DIFFERENCES = "the difference to the baseline"
# Sentences that are read in ten seconds.
_FEW = 4
_ARROWS = {FLATTER: "\u25bc\u00a0", SHARPER: "\u25b2\u00a0"}


def build(page: Page) -> Section | None:
    """Return the section: of comparisons, else of numbers, else of runs, else of whatever else was done."""
    said = tuple(sentences(page))
    tables: list[Table | None] = [_compared(source) for source in page.of("compare") if source.rows]
    if not tables:
        tables = [_measured(page)]
    if not any(tables):
        tables = [_followed(source) for source in page.of("track") if source.rows]
    return section("verdict", "The answer", [Text(said) if said else None, *tables], folded=False)


def sentences(page: Page) -> Iterator[str]:
    """Yield one sentence a comparison; without any, one a checkpoint with its numbers; without these, what else is."""
    own = tuple(_own(page))
    others = (_runs(page), *(module.sentences(page) for module in (validation, invariance, sharpness, landscape)))
    yield from own or tuple(chain.from_iterable(others))[:_FEW]


def _runs(page: Page) -> Iterator[str]:
    """Yield one sentence a run: where each measure begins and ends, and where it is largest."""
    for source in page.of("track"):
        said = [
            f"{name} from\u00a0{number(first[1]['value'], 3)} to\u00a0{number(last[1]['value'], 3)}"
            f" (at most {number(largest[1]['value'], 3)}, step\u00a0{largest[0]:,.0f})"
            for name, (first, largest, last) in _turns(source).items()
        ]
        if said:
            yield f"{source.name} over {plural(len(source.rows), 'checkpoint')}: {', '.join(said)}."


def _turns(source: Source) -> dict[str, tuple[_Step, _Step, _Step]]:
    """Return by measure the first, the largest and the last finite value, each with its step."""
    found = {}
    for name in dict.fromkeys(str(name) for row in source.rows for name in row["measures"]):
        known = [(row["step"] or 0, row["measures"][name]) for row in source.rows if name in row["measures"]]
        finite = [each for each in known if each[1]["value"] is not None]
        if finite:
            found[name] = (finite[0], max(finite, key=lambda each: each[1]["value"]), finite[-1])
    return found


def _own(page: Page) -> Iterator[str]:
    compared = page.of("compare")
    for source in compared:
        rows: Sequence[Row] = source.record["differences"]
        for name in dict.fromkeys(row["checkpoint"] for row in rows):
            yield _sentence(source, name, [row for row in rows if row["checkpoint"] == name])
    if not compared:
        for source, found in _by_checkpoint(page).values():
            plain = [row for row in found if not _is_curve(str(row["measure"]))] or found
            numbers = ", ".join(f"{row['measure']}\u00a0{_whole(wording.with_error(row))}" for row in plain[:_MOST])
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
    note = _note(source.rows, _DIFFERENCES)
    return Table("Checkpoints side by side", _columns(measures), tuple(rows), (note,), stacks=True)


def _measured(page: Page) -> Table | None:
    found = _by_checkpoint(page)
    measures = list(dict.fromkeys(str(row["measure"]) for _, rows in found.values() for row in rows))[:_MOST]
    if not measures:
        return None
    if len(found) == 1:
        return _alone(page, *next(iter(found.values())))
    rows = []
    for source, results in found.values():
        own = {row["measure"]: row for row in results}
        rows.append(
            (Cell(page.data_name(source), kind="name"), *(_cell(own.get(each), source, None) for each in measures))
        )
    shown = [row for _, results in found.values() for row in results]
    return Table("Checkpoints side by side", _columns(measures), tuple(rows), (_note(shown),), stacks=True)


def _alone(page: Page, source: Source, found: Sequence[Row]) -> Table:
    """Return the numbers of one checkpoint, a measure a row with what it means."""
    interval, data = interval_name(found), data_columns(found)
    columns = (Column("measure"), Column("value ± measurement", "number"), *data, Column(interval, "number"))
    rows = tuple(
        (
            Cell(str(row["measure"]), kind="name", note=_meaning(str(row["measure"]))),
            Cell(_whole(wording.with_error(row)), row["value"], "number"),
            *data_cells(row, data),
            interval_cell(row, interval),
        )
        for row in found
    )
    return Table(page.data_name(source), columns, rows, stacks=True)


def _meaning(name: str) -> str:
    """Return what a measure means; of a whole distribution the number is the median."""
    return f"median of the {wording.meaning(name)}" if _is_curve(name) else wording.meaning(name)


def _is_curve(name: str) -> bool:
    return "density" in entry_of(name).drawn


def _followed(source: Source) -> Table:
    """Return where each measure of a run begins, is largest, and ends."""
    rows = [
        (Cell(name, kind="name"), *(_at(step, row) for step, row in turns)) for name, turns in _turns(source).items()
    ]
    columns = (Column("measure"), *(Column(name, "number") for name in ("first", "largest", "last")))
    note = _note([row for each in source.rows for row in each["measures"].values()])
    return Table(f"Along training: {source.name}", columns, tuple(rows), (note,), stacks=True)


def _at(step: float, row: Row) -> Cell:
    parts = [part for part in (f"step\u00a0{step:,.0f}", _data(row)) if part]
    return Cell(_whole(wording.with_error(row)), row["value"], "number", note="; ".join(parts))


def _note(rows: Sequence[Row], *more: str) -> str:
    """Return what stands in the cells, the data error only where a row knows its own."""
    told = any((row.get("errors") or {}).get("data") is not None for row in rows)
    below = " and ".join([*([_DATA] if told else []), *more])
    amber = "; amber where it is not resolved or may vanish on other data" if _DIFFERENCES in more else ""
    return f"{_VALUES}; below it {below}{amber}." if below else f"{_VALUES}."


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
    told = difference is not None and difference["value"] is not None
    said, tone = _judged(source, difference) if told and difference is not None else ("", "")
    return Cell(_whole(wording.with_error(row)), row["value"], "number", note=_data(row), tone=tone, said=said)


def _data(row: Row) -> str:
    text = wording.data_text(row)
    return f"data\u00a0{_whole(text)}" if text else ""


def _judged(source: Source, difference: Row) -> tuple[str, str]:
    """Return the difference with its verdict, and the tone: weak where it is not resolved or may not hold."""
    verdict = str(difference["verdict"])
    said = f"{_ARROWS.get(verdict, '')}{_percent(source, difference)}, {verdict}".replace(" ", "\u00a0")
    weak = verdict in (WITHIN, UNDECIDED) or difference.get("beyond_data") is False or not difference["stands"]
    return said, "weak" if weak else {FLATTER: "good", SHARPER: "bad"}.get(verdict, "")
