"""The figures and the page of the record that a command has just made, as ``--out`` and ``--report`` ask for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessprobe.cli import options, process

if TYPE_CHECKING:
    from hessprobe.report.figures import Drawn
    from hessprobe.report.sections.page import Page
    from hessprobe.report.sources import Gathered

FORMATS = (".png", ".svg", ".pdf")
_PAGES = (".html", ".htm")


def check(request: Any, out: str | None) -> None:
    """Refuse a figure or a page that cannot be written, before any work is done.

    Args:
        request: with ``width`` and ``style`` and, where the command makes pages, ``report``.
        out: where the figure goes; None for none.

    Raises:
        UsageError: another ending, a width or style that no figure has; a look without a figure.
    """
    options.figure_look(request.width, request.style)
    if out is not None and Path(out).suffix.lower() not in FORMATS:
        raise process.UsageError(f"--out must end in {', '.join(FORMATS)}; got {out!r}.")
    page = getattr(request, "report", None)
    if page is not None and Path(page).suffix.lower() not in _PAGES:
        raise process.UsageError(f"--report must end in {', '.join(_PAGES)}; got {page!r}.")
    if out is None and (request.width is not None or request.style != "paper"):
        process.say("note: --width and --style have no effect here; they are for the figure of --out")


def write(request: Any, record: Mapping[str, Any], out: str | None) -> list[str]:
    """Write the figures of a record and the page that tells about it alone, and return where they are.

    Args:
        request: as in ``check``, with ``json`` where the command keeps its record.
        record: of what was done.
        out: where the first figure goes; the others go beside it.
    """
    from hessprobe.report.figures import figures_of

    written = []
    if out is not None:
        taken = getattr(request, "csv", None)
        written += save(figures_of(record), Path(out), request.width, request.style, taken)
        if not written:
            process.say("note: nothing was drawn, as there is nothing in the record that a figure shows")
    page = getattr(request, "report", None)
    if page is not None:
        _page(Path(page), record, request.json)
        written.append(page)
    return written


def save(
    figures: Sequence[Drawn], target: Path, width: float | None, style: str, taken: str | None = None
) -> list[str]:
    """Write figures, the first to ``target``, others beside it, each with its numbers as CSV; return where they are.

    Args:
        figures: of one record.
        target: of the first; its ending is that of all.
        width: in inches, or None for their own.
        style: of ``looks.STYLES``.
        taken: a table that the command writes itself, which no numbers of a figure may replace.
    """
    written = []
    for index, figure in enumerate(figures):
        place = target if index == 0 else target.with_name(f"{target.stem}-{figure.name}{target.suffix}")
        if index and not _free(place):
            continue
        written.append(str(figure.save(place, width, style)))
        numbers = place.with_suffix(".csv")
        if taken is not None and numbers.resolve() == Path(taken).resolve():
            numbers = numbers.with_name(f"{numbers.stem}-figure.csv")
        if figure.data and _free(numbers, re.compile(rb"\A" + re.escape(",".join(figure.columns).encode()) + rb"\n")):
            figure.save_data(numbers)
    return written


def _free(place: Path, sign: re.Pattern[bytes] | None = None) -> bool:
    """Return whether a file beside the one that was asked for may be written; say so where it may not."""
    try:
        process.check_target("out", str(place), sign)
    except ValueError as error:
        process.say(f"note: {place} was left as it is: {error}")
        return False
    return True


def _page(place: Path, record: Mapping[str, Any], kept: str | None) -> None:
    import typer

    from hessprobe.report import html, sources, to_json

    # All commands lie above each of them.
    program = typer.main.get_command(import_module("hessprobe.cli.app").app)
    # As it is read again: what is not finite is null.
    found = sources.of_record(json.loads(to_json(record)), Path(kept) if kept not in (None, "-") else Path("not kept"))
    page = page_of(found, program)
    for sentence in left_out(page):
        process.say(f"note: {sentence}")
    subject = found.sources[0].subject
    html.write(place, page, f"Curvature of {subject}" if subject else "Curvature report")


def page_of(gathered: Gathered, program: Any) -> Page:
    """Return records with their figures, their remarks in the words of the command line, and their commands.

    Args:
        gathered: the records.
        program: all commands, as a click group.
    """
    from hessprobe.cli import render, repeat
    from hessprobe.report.pictures import pictures_of
    from hessprobe.report.sections.page import Page

    drawn, undrawn = pictures_of(gathered.sources)
    return Page(gathered, drawn, undrawn, render.remarks, lambda record: repeat.command_line(record, program))


def left_out(page: Page) -> list[str]:
    """Return one sentence for everything in the folders that the page does not show as it is."""
    said = [sentence for _, sentence in page.gathered.broken]
    said += [f"a figure of {label} could not be drawn: {sentence}" for label, sentence in page.undrawn.items()]
    foreign = [path.name for path in page.gathered.foreign]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        said.append(f"{len(foreign)} JSON files are no records of hessprobe and were left out: {shown}")
    return said
