"""Numbers of a record on the terminal, in tables that never cut one.

What stands under a table: what a number is, what is weak about it, and what else was found with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hessprobe.cli.process import at_words, shown
from hessprobe.cli.wording import flag_sentence, in_options
from hessprobe.measures import TABLE
from hessprobe.measures.table import entry_of
from hessprobe.records.typed import (
    SIGNIFICANT,
    Measured,
    Number,
    error_texts,
    errors_legend,
    number_texts,
    plain,
    products_text,
    tells_data,
    with_error,
)

__all__ = [
    "Row",
    "both_errors",
    "error_cells",
    "errors_header",
    "errors_legend",
    "layers_table",
    "number_texts",
    "plus_minus_for",
    "print_line",
    "print_table",
    "result_cells",
    "results_table",
    "stdout_console",
    "tells_data",
    "with_error",
]

_GAP = "  "

Row = Sequence[str]


def both_errors(number: Number, plus_minus: str = "±", *, data: bool = True) -> str:
    """Return the value with its measurement and, unless ``data`` is False, its data error as one text."""
    value, measured, sampled = error_texts(number, plus_minus)
    known = measured if measured not in ("exact", "bound", "") else f"{plus_minus} 0"
    return " ".join((value, known, *([sampled or "-"] if data else [])))


def result_cells(number: Number, plus_minus: str = "±", digits: int = SIGNIFICANT) -> list[str]:
    """Return value ± error, interval, products and seconds of a number as text."""
    value, measured, _ = error_texts(number, plus_minus, digits)
    shown = f"{value} {measured}" if measured and measured not in ("exact", "bound") else value
    return [shown, _interval(number, digits), products_text(number.matvecs), plain(number.seconds, 3)]


def _interval(number: Number, digits: int) -> str:
    uncertainty, low, high = number_texts(number.value, number.error, *number.interval, digits=digits)[1:]
    return f"{low} to {high}" if uncertainty else "exact" if number.is_exact else number.kind


def errors_header(numbers: Iterable[Number], plus_minus: str) -> list[str]:
    """Return the headers of the columns that ``error_cells`` fills for these numbers."""
    return ["value", f"{plus_minus} measurement", *([f"{plus_minus} data"] if tells_data(numbers) else [])]


def error_cells(number: Number, plus_minus: str = "±", digits: int = SIGNIFICANT, *, data: bool = True) -> list[str]:
    """Return value, measurement error and, unless ``data`` is False, data error; a dash for an unknown one."""
    value, measured, sampled = error_texts(number, plus_minus, digits)
    return [value, measured, *([sampled or "-"] if data else [])]


def results_table(rows: Sequence[Measured], confidence: float, console: Console) -> None:
    """Print one line a result: value, both errors, interval, products, seconds, method; below what the errors mean.

    On a terminal too narrow for that the method goes first, then digits beyond the fifth, the seconds, the interval
    and at last the products; where the interval goes, a line says where it is.
    """
    sign, interval = plus_minus_for(console), _interval_name(confidence)
    numbers = [row.number for row in rows]
    errors, data = errors_header(numbers, sign), tells_data(numbers)
    count = len(errors)

    def cells(row: Measured, digits: int) -> list[str]:
        return [row.measure, *error_cells(row.number, sign, digits, data=data)]

    full = [[*cells(row, SIGNIFICANT), *result_cells(row.number, sign)[1:], row.number.method] for row in rows]
    short = [[*cells(row, SIGNIFICANT - 1), *_short_cells(row.number, sign)[1:]] for row in rows]
    header = ["measure", *errors, interval, "products", "seconds", "method"]
    small = ["measure", *(name.replace("measurement", "meas.") for name in errors), interval, "prod.", "sec."]
    kept = tuple(range(count + 1))
    layouts = [(header, full), _columns(header, full, (*kept, *range(count + 1, count + 4))), (small, short)]
    lasts = ((count + 1, count + 2), (count + 1,), (count + 2,), ())
    layouts += [_columns(small, short, (*kept, *last)) for last in lasts]
    printed = print_table(layouts, console)
    if printed is not None and interval not in printed:
        print_line(console, "intervals need a wider terminal, or --json", style="dim")
    for text in errors_legend(numbers, sign):
        print_line(console, text, style="dim")


def layers_table(row: Measured, console: Console) -> None:
    """Print one line a parameter tensor for a result that was measured layer by layer."""
    sign = plus_minus_for(console)
    layers = row.layers or {}
    errors, data = errors_header(layers.values(), sign), tells_data(layers.values())
    parts = TABLE[row.measure].layers if row.measure in TABLE else None
    what = f"share of {row.measure}" if parts is not None and parts.adding == "shares" else row.measure
    header = [f"{what} of", *errors, _interval_name(row.number.confidence or 0.0)]
    cells = [
        [name, *error_cells(layer, sign, data=data), _interval(layer, SIGNIFICANT)] for name, layer in layers.items()
    ]
    # The interval goes first, then the data error.
    shorter = [_columns(header, cells, range(count)) for count in range(len(errors) + 1, 2, -1)]
    print_table([(header, cells), *shorter], console)


def print_table(layouts: Sequence[tuple[Row, Sequence[Row]]], console: Console) -> Row | None:
    """Print a table in which no cell is ever wrapped or cut, and return the header of the layout it has.

    Args:
        layouts: header and rows, widest first; the first that fits is printed. Where none fits every row of the first
            becomes a block of lines, and None is returned. Off a terminal it is always the first, its columns aligned
            by spaces.
        console: where to.
    """
    layouts = [(header, [[shown(cell) for cell in row] for row in rows]) for header, rows in layouts]
    if not console.is_terminal:
        _print_plain(*layouts[0], console)
        return layouts[0][0]
    for header, rows in layouts:
        if _width(header, rows) <= console.width:
            console.print(_table(header, rows))
            return header
    header, rows = layouts[0]
    for row in rows:
        print_line(console, row[0], style="bold")
        for name, cell in zip(header[1:], row[1:], strict=True):
            # A number is not broken where it has a space.
            console.print(f"  {name}: {cell}", markup=False, highlight=False, soft_wrap=True)
    return None


def stdout_console() -> Console:
    """Return a console on stdout."""
    return Console(file=sys.stdout, highlight=False)


def plus_minus_for(console: Console) -> str:
    """Return ``"±"`` where the output's encoding has it, else ``"+/-"``."""
    try:
        "±".encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return "+/-"
    return "±"


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line; on a terminal that is too narrow for it several, broken between words."""
    for line in at_words(shown(text), console.width) if console.is_terminal else [shown(text)]:
        console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)


def _columns(header: Row, rows: Sequence[Row], kept: Sequence[int]) -> tuple[Row, Sequence[Row]]:
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _short_cells(number: Number, sign: str) -> list[str]:
    shown, interval, products, seconds = result_cells(number, sign, SIGNIFICANT - 1)
    count, time = number.matvecs, number.seconds
    return [shown, interval, products if count is None else f"{count:.0f}", seconds if time is None else f"{time:.1f}"]


def _interval_name(confidence: float) -> str:
    return f"{100 * confidence:.4g}% interval"


def _table(header: Row, rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False, header_style="bold")
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _width(header: Row, rows: Sequence[Row]) -> int:
    # Two columns lie between two cells: the padding and the divider.
    return sum(max(map(len, column)) for column in zip(header, *rows, strict=True)) + 2 * (len(header) - 1)


def _print_plain(header: Row, rows: Sequence[Row], console: Console) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    # At once: asking the console what it is takes 100 us a line.
    console.print("\n".join(map(shown, lines)), markup=False, highlight=False, soft_wrap=True)


_NO_ENGINE = "auto"


def remarks(row: Mapping[str, Any]) -> list[str]:
    """Return the sentences that belong to a result, without its name.

    Args:
        row: of a record.
    """
    said = []
    entry = entry_of(row["measure"])
    if entry.number:
        said.append(f"the number is {entry.number}; --json has the rest")
    said += [_missed(row) if flag == "tolerance-missed" else flag_sentence(flag) for flag in row["flags"]]
    said += [in_options(note) for note in row["notes"]]
    layers = row.get("layers") or {}
    exact = [name for name, layer in layers.items() if Number.of(layer).is_exact]
    if exact:
        which = "the values of all layers" if len(exact) == len(layers) else f"the values of {', '.join(exact)}"
        said.append(f"{which} are exact up to rounding")
    return list(dict.fromkeys(said))


def eigenvalue_lines(rows: Sequence[Mapping[str, Any]], plus_minus: str) -> list[str]:
    """Return one line an eigenvalue, each with its error, where more than one at an end was found; else none.

    Args:
        rows: of a record; the first that holds eigenvalues counts, as all share them.
        plus_minus: the sign between value and error.
    """
    for row in rows:
        arrays = row.get("arrays") or {}
        values = _entries(arrays.get("eigenvalues"))
        errors = _entries(arrays.get("eigenvalue_errors")) or _entries(arrays.get("residuals"))
        if len(values) > 1:
            errors = errors or [None] * len(values)
            texts = [with_error(value, error, plus_minus) for value, error in zip(values, errors, strict=True)]
            title = f"{len(values)} eigenvalues, largest first, each with its error:"
            return [title, *(f"  {text}" for text in texts)]
    return []


def costs(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line with the time of every number in gradients of the loss over the same data, where that is known."""
    counts = [(row["measure"], (row.get("cost") or {}).get("gradients")) for row in rows]
    known = [(name, count) for name, count in counts if count is not None]
    if known:
        said = ", ".join(f"{name} {count:.0f}" if count >= 10 else f"{name} {count:.2g}" for name, count in known)
        yield f"cost in gradients of the loss: {said}"


def engines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the engines that made products, in the words of ``--engine``."""
    for engine in dict.fromkeys(row["engine"].split(" (")[0] for row in rows):
        # A choice that was never made: what was asked for was known without a product.
        if engine and engine != _NO_ENGINE:
            yield engine.replace("_", "-")


def _missed(row: Mapping[str, Any]) -> str:
    """Return what ``tolerance-missed`` means for a result, with what helps against the larger part of its error."""
    errors = row.get("errors") or {}
    if (errors.get("solver") or 0.0) <= (errors.get("probe") or 0.0):
        return flag_sentence("tolerance-missed")
    wider = "--dtype float64 in place of float32"
    helps = f"a larger --shift or {wider}" if "shift" in entry_of(row["measure"]).options else wider
    return f"the interval is wider than --rtol asks for; more --probes do not help, {helps} may, or a larger --rtol"


def _entries(array: Any) -> list[float | None]:
    values = array.get("values") if isinstance(array, Mapping) else array
    return list(values) if isinstance(values, Sequence) else []
