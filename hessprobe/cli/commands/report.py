"""``hessprobe report``: one HTML page from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import options, process
from hessprobe.cli.skeleton import PAGES, deliver, left_out, page_of

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.report.sections.page import Page
    from hessprobe.report.sources import Gathered

# What reading an entry of another type, or one that is not there, raises.
_STRANGE = (TypeError, LookupError, ValueError, AttributeError, ArithmeticError)


def report(
    context: typer.Context,
    records: Annotated[
        list[str],
        typer.Argument(metavar="RECORD|DIR", help="Records (--json of other commands), or folders that hold them."),
    ],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The page to write.")] = "report.html",
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="What stands above it.")] = "Curvature report",
    json: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Make one HTML page from records: numbers, figures, a summary to quote, how to repeat each.

    The page asks for nothing outside itself: it can be mailed, printed, and read years later.

    Example: hessprobe report runs/ --out report.html
    """
    del debug  # the wrapper reads it
    paths = [Path(record) for record in records]
    _check(paths, out, json)

    from hessprobe.report import html, sources

    page, text = _composed(sources.gather(paths), context.find_root().command, title)
    for sentence in left_out(page):
        process.note(sentence)
    html.save(out, text)
    _publish({"records": records, "out": out, "title": title, "json": json}, page, json)


def _composed(gathered: Gathered, program: Any, title: str) -> tuple[Page, str]:
    """Return the page and its text; without the records that hold something else there than a record does.

    Raises:
        RecordError: nothing is left; names the file.
    """
    from hessprobe.errors import RecordError
    from hessprobe.report import html

    try:
        page = page_of(gathered, program)
        return page, html.render(page, title)
    except _STRANGE as error:
        if len(gathered.sources) == 1:
            raise RecordError(_strange(gathered.sources[0].path, error)) from error
        kept, broken = [], list(gathered.broken)
        for source in gathered.sources:
            try:
                _composed(replace(gathered, sources=(source,)), program, title)
            except RecordError as found:
                broken.append((source.path, str(found)))
            else:
                kept.append(source)
        if len(kept) == len(gathered.sources):
            # Each is whole; what they have in common is not.
            raise
        if not kept:
            raise RecordError(broken[-1][1]) from error
        return _composed(replace(gathered, sources=tuple(kept), broken=tuple(broken)), program, title)


def _strange(path: Path, error: Exception) -> str:
    return f"{path} holds something else than a record does ({type(error).__name__}: {error}). Write it again."


def _check(paths: Sequence[Path], out: str, json: str | None) -> None:
    options.require_records(paths)
    options.check_outputs(out=out, json=json)
    if Path(out).suffix.lower() not in PAGES:
        raise process.UsageError(f"--out must end in {', '.join(PAGES)}; got {out!r}. hessprobe plot writes figures.")


def _publish(arguments: dict[str, Any], page: Page, json: str | None) -> None:
    from hessprobe import report
    from hessprobe.cli import render

    out = Path(arguments["out"])
    rows = [
        {"record": str(source.path), "label": source.label, "command": source.command, "state": source.state}
        for source in page.gathered.sources
    ]
    record = report.build_record("report", rows, arguments=arguments, seed=None, files={"page": str(out)})

    def show(console: Console) -> None:
        figures = sum(map(len, page.pictures.values()))
        records = len(page.gathered.sources)
        render.print_line(
            console,
            f"wrote {out}: {records} record{'s' * (records != 1)}, {figures} figure{'s' * (figures != 1)}, "
            f"{out.stat().st_size / 1e6:.2g} MB",
        )

    deliver(record, json, show)
