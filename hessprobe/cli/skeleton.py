"""The skeleton of a command: its options declared once, then check, open, collect, publish.

- its journal: beside its record while it runs, gone once the record is written whole;
- the figures and the page of the record that it has just made, as ``--out`` and ``--report`` ask for them.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from hessprobe.cli import options, outputs, process

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.cli.load import Subject
    from hessprobe.journal import Journal
    from hessprobe.measures import Progress
    from hessprobe.records.typed import Partial
    from hessprobe.report.figures import Drawn
    from hessprobe.report.sections.page import Page
    from hessprobe.report.sources import Gathered


# Where the outcome goes, and how it is shown, decides no number.
_NOT_IDENTITY = frozenset({"json", "csv", "out", "width", "style", "report", "debug", "markdown", "resume", "dry_run"})


def path_of(record: str) -> Path:
    """Return where the journal of the run that writes ``record`` lies."""
    return Path(f"{record}.journal")


@contextmanager
def kept(record: str | None, request: Any, facts: Mapping[str, Any]) -> Iterator[Journal | None]:
    """Write the products made inside down, and read those of a stopped run first where ``--resume`` is given.

    Where the record goes to no file there is no journal.

    Args:
        record: ``--json``.
        request: the options, a dataclass.
        facts: what else decides the numbers, as plain values by name: hashes of weights and data.

    Raises:
        UsageError: ``--resume`` without ``--json FILE``.
        JournalError: damaged, or of another run.
    """
    run = outputs.current_invocation()
    resume = run.resume or getattr(request, "resume", False)
    if record in (None, "-"):
        if resume:
            raise process.UsageError("--resume needs --json FILE, beside which the journal lies; got none. Name it.")
        yield None
        return
    from hessprobe.hvp import engines
    from hessprobe.journal import Journal

    path, identity = path_of(str(record)), _identity(run.command, request, facts)
    if path.exists() and not (resume or run.goes_on):
        process.note(f"{path}, of a stopped run, is replaced; --resume would have gone on from it")
    if resume and not path.exists():
        process.note(f"there is no {path} to go on from; beginning anew")
    journal = Journal.going_on(path, identity) if run.goes_on else Journal(path, identity, resume=resume)
    if len(journal):
        process.say(f"going on from {path}: {len(journal)} products are known")
    with _closing(journal), engines.replayed(journal):
        yield journal


@contextmanager
def kept_by_itself(store: str, about: Mapping[str, Any]) -> Iterator[None]:
    """Write the products made inside down beside ``store``, and read those of a stopped run first, without being told.

    Once the block has come to its end, what it made is in the store, and the journal goes.

    Args:
        store: where what is finished is kept.
        about: what decides the numbers, as plain values by name.

    Raises:
        JournalError: it is damaged.
    """
    from hessprobe.hvp import engines
    from hessprobe.journal import Journal

    journal = Journal.going_on(path_of(store), {**about, **_machine()})
    if len(journal):
        process.detail(f"going on from {journal.path}: {len(journal)} products are known")
    with _closing(journal), engines.replayed(journal):
        yield
        journal.close(done=True)


@contextmanager
def _closing(journal: Journal) -> Iterator[None]:
    try:
        yield
    finally:
        if journal.failure is not None:
            process.say(
                f"warning: {journal.path} could not be written on ({journal.failure.strerror}); what came after is "
                "lost if this run stops"
            )
        journal.close()


def facts(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return what decides the numbers of networks beside the options: hashes of their weights and of the data."""
    found: dict[str, Any] = {}
    for index, subject in enumerate(subjects):
        found[f"weights {index}"] = (subject.checkpoint or {}).get("sha256")
        found[f"data {index}"] = subject.data.get("fingerprint")
    return found


def facts_of_files(paths: Iterable[str]) -> dict[str, Any]:
    """Return hashes of the files among ``paths``, which decide the numbers of what is loaded from them later on."""
    from hessprobe.training.checkpoint import file_sha256

    return {f"content of {path}": file_sha256(path) for path in paths if Path(path).is_file()}


def finished(record: str | None) -> None:
    """Remove the journal of a run whose record is written and whole."""
    if record not in (None, "-"):
        path_of(str(record)).unlink(missing_ok=True)


def _identity(command: str, request: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    given = {f"--{name.replace('_', '-')}": value for name, value in asdict(request).items()}
    options = {name: value for name, value in given.items() if name.lstrip("-") not in _NOT_IDENTITY}
    return {"command": command, **options, **facts, **_machine()}


def _machine() -> dict[str, Any]:
    from hessprobe.records.record import environment

    here = environment("cpu")
    machine = {name: here[name] for name in ("hessprobe", "torch", "numpy", "scipy", "device_name")}
    # Left open, the number is that of the moment; another one changes the rounding of sums and nothing else.
    machine["threads"] = process.threads_identity()
    return machine


_Found = TypeVar("_Found")
_Inputs = TypeVar("_Inputs")


class Asked(Protocol):
    """The options of a command that writes a record; a dataclass whose fields are declared with ``Annotated``."""

    @property
    def json(self) -> str | None: ...  # noqa: D102  # a field
    @property
    def debug(self) -> bool: ...  # noqa: D102  # a field


_Request = TypeVar("_Request", bound=Asked)


@dataclass
class Outcome(Generic[_Found]):
    """What has come out so far, kept whatever happens next.

    Attributes:
        found: what the command collects, filled in place.
        latest: the last event of each stage.
        failure: what ended the work early, or None.
    """

    found: _Found
    latest: dict[str, Progress] = field(default_factory=dict)
    failure: BaseException | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user ended the work."""
        return isinstance(self.failure, KeyboardInterrupt)

    @property
    def ending(self) -> str:
        """``"interrupted"``, ``"failed"``, or nothing where the work was done."""
        return "interrupted" if self.interrupted else "failed" if self.failure is not None else ""

    def partial(self) -> tuple[Partial, ...] | None:
        """Return how far each stage had come where the work ended early, for its record; else None."""
        from hessprobe.records.record import cleaned
        from hessprobe.records.typed import Partial

        if self.failure is None:
            return None
        return tuple(Partial(**cleaned(asdict(event))) for event in self.latest.values())


def declared(kind: type[Any], **parts: Mapping[str, Any]) -> Callable[[Callable[[Any], None]], Callable[..., None]]:
    """Return a decorator that turns ``command(request)`` into a command with the options of a dataclass.

    Args:
        kind: a dataclass; its fields are the parameters, in order, each annotated with its ``typer.Option``.
        parts: for a field that is a dataclass itself, the annotations of its fields, which become the last parameters.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    own = [_parameter(each, hints[each.name]) for each in fields(kind) if each.name not in parts]
    kinds: dict[str, Any] = {each.name: type(each.default) for each in fields(kind) if each.name in parts}
    given = {
        name: [_parameter(each, annotations[each.name]) for each in fields(kinds[name])]
        for name, annotations in parts.items()
    }
    parameters = [*own, *(each for listed in given.values() for each in listed)]

    def decorate(command: Callable[[Any], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            nested = {
                name: kinds[name](**{each.name: values.pop(each.name) for each in listed if each.name in values})
                for name, listed in given.items()
            }
            command(kind(**values, **nested))

        as_any: Any = run
        as_any.__signature__ = inspect.Signature(parameters)
        as_any.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(each: Any, annotation: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if each.default is MISSING else each.default
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def arguments_of(request: Any) -> dict[str, Any]:
    """Return the options of a request for its record, those about files of other libraries beside the others."""
    given: dict[str, Any] = asdict(request)
    opening = given.pop("opening", {})
    return {**given, **opening}


def carry_out(
    request: _Request,
    *,
    check: Callable[[_Request], None],
    opened: Callable[[_Request], tuple[_Inputs, _Found]],
    collect: Callable[[_Request, _Inputs, Outcome[_Found]], None],
    publish: Callable[[_Request, _Inputs, Outcome[_Found]], None],
    facts: Callable[[_Request, _Inputs], Mapping[str, Any]] | None = None,
) -> Outcome[_Found]:
    """Do what a command does, and leave with the exit code that fits where something ended the work early.

    Args:
        request: the options.
        check: refuses what can be refused before anything heavy is loaded.
        opened: loads what is measured; returns it, and what is collected, still empty.
        collect: does the work, adding to ``outcome.found`` as numbers come; what it raises ends the work, not the run.
        publish: prints and writes everything that is known, whether or not the work was done.
        facts: what decides the numbers beside the options, for the journal; None where no journal is kept.

    Returns:
        the outcome of work that came to its end.

    Raises:
        typer.Exit: something ended the work early, and was told.
    """
    check(request)
    began = time.perf_counter()
    with outputs.starting():
        inputs, found = opened(request)
    _tell_place(time.perf_counter() - began)
    outcome = Outcome(found)
    if facts is None:
        _collect(request, inputs, outcome, collect)
    else:
        with kept(_record_of(request), request, facts(request, inputs)):
            _collect(request, inputs, outcome, collect)
    with process.shielded():
        publish(request, inputs, outcome)
    process.leave(outcome.failure, request.debug)
    if facts is not None:
        finished(_record_of(request))
    return outcome


def _record_of(request: Asked) -> str | None:
    """Return where the record goes: ``--json``, or where the command writes one by itself."""
    record: str | None = getattr(request, "record", request.json)
    return record


def _tell_place(seconds: float) -> None:
    if not outputs.current_invocation().verbose:
        return
    from hessprobe.records.record import environment

    here = environment()
    versions = ", ".join(f"{name} {here[name]}" for name in ("hessprobe", "torch", "numpy", "scipy"))
    process.detail(f"{versions}; threads {here['threads']}; opened in {seconds:.1f} s")


def _collect(request: Any, inputs: Any, outcome: Outcome[Any], collect: Callable[..., None]) -> None:
    try:
        collect(request, inputs, outcome)
    except (KeyboardInterrupt, Exception) as error:
        outcome.failure = process.ended_by(error)


class Report(Protocol):
    """Takes an event, and what stands behind its bar; by default the value so far."""

    def __call__(self, event: Progress, remark: str | None = None) -> None: ...  # noqa: D102


@contextmanager
def watched(outcome: Outcome[Any]) -> Iterator[Report]:
    """Yield ``report(event)``, which keeps the last event of each stage and draws one bar a stage.

    Raises:
        KeyboardInterrupt: in ``report``, where the user has asked for an end that other code has swallowed.
    """
    from hessprobe.cli import render

    began = time.perf_counter()
    with outputs.progress_bars() as update:

        def report(event: Progress, remark: str | None = None) -> None:
            if process.asked():
                raise KeyboardInterrupt
            if event.total is not None and event.done >= event.total > 0:
                value = "" if event.value is None else f", {render.with_error(event.value, event.std_error)}"
                process.detail(f"{event.stage}: {event.done:g} done{value}, after {time.perf_counter() - began:.1f} s")
            outcome.latest[event.stage] = event
            if remark is None:
                remark = "" if event.value is None else render.with_error(event.value, event.std_error)
            update(event.stage, event.done, event.total, remark)

        yield report


def deliver(
    record: Mapping[str, Any],
    json: str | None,
    show: Callable[[Console], None],
    files: Callable[[], list[str]] | None = None,
) -> None:
    """Write the record and the other files, and print what was found, or the record alone where it goes to stdout.

    Args:
        record: of everything that is known.
        json: ``--json``.
        show: prints for a reader.
        files: writes what else was asked for; returns the paths that are to be told.
    """
    from hessprobe.cli import render
    from hessprobe.report import to_json, write_record

    written: list[str] = []
    try:
        if json not in (None, "-"):
            write_record(str(json), record)
        if files is not None:
            written = files()
    finally:
        # Last, because what reads the output may go away early (head, less); first a full disk must not hide it.
        if json == "-":
            sys.stdout.write(to_json(record))
        else:
            console = render.stdout_console()
            show(console)
            for path in written:
                render.print_line(console, f"wrote {path}")


def print_unfinished(outcome: Outcome[Any], console: Console) -> None:
    """Print how the work ended early, and how far each stage that was under way had come; nothing where it is done."""
    from hessprobe.cli import render

    if outcome.failure is None:
        return
    sign = render.plus_minus_for(console)
    going = [each for each in outcome.latest.values() if each.total is None or each.done < each.total]
    render.print_line(console, f"{outcome.ending}; what was under way:" if going else outcome.ending)
    for event in going:
        of = "" if event.total is None else f" of {event.total:g}"
        value = "" if event.value is None else f": {render.with_error(event.value, event.std_error, sign)}"
        render.print_line(console, f"  {event.stage}{value} (after {event.done:g}{of})")


FIGURE_FORMATS = (".png", ".svg", ".pdf")
PAGES = (".html", ".htm")


def check_drawing(request: Any, out: str | None) -> None:
    """Refuse a figure or a page that cannot be written, before any work is done.

    Args:
        request: with ``width`` and ``style`` and, where the command makes pages, ``report``.
        out: where the figure goes; None for none.

    Raises:
        UsageError: another ending, a width or style that no figure has; a look without a figure.
    """
    options.figure_look(request.width, request.style)
    if out is not None and Path(out).suffix.lower() not in FIGURE_FORMATS:
        raise process.UsageError(f"--out must end in {', '.join(FIGURE_FORMATS)}; got {out!r}.")
    page = getattr(request, "report", None)
    if page is not None and Path(page).suffix.lower() not in PAGES:
        raise process.UsageError(f"--report must end in {', '.join(PAGES)}; got {page!r}.")
    if out is None and (request.width is not None or request.style != "paper"):
        process.say("note: --width and --style have no effect here; they are for the figure of --out")


def write_drawing(request: Any, record: Mapping[str, Any], out: str | None) -> list[str]:
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
        outputs.check_target("out", str(place), sign)
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
