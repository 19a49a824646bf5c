"""``hessprobe measure``: curvature numbers of a checkpoint, each with error and cost."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import failures, journaling, options, signals
from hessprobe.cli.opening import arguments_of, opens_foreign
from hessprobe.cli.source import check_source, settings_of, source_of
from hessprobe.measures import NAMES, UNIVERSAL
from hessprobe.models.spec import AS_FOUND, Opening

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.cli.load import Subject
    from hessprobe.measures import Event, MeasureSettings, Result


# Which measures an option is for.
_EIGENVALUES = frozenset({"lambda-max", "lambda-min", "spectral-norm"})
_DAMPED = frozenset({"logdet", "effective-dimension", "universal:logdet", "universal:det", "universal:log-exp"})
_POINTS = frozenset({"universal:worst", "universal:ascent"})
_LAYERED = frozenset({"lambda-max", "trace", "frob"})


@dataclass(frozen=True)
class Request:
    """The options of ``hessprobe measure``; None where the user left the choice to the program."""

    ckpt: str | None
    measure: list[str] | None
    operator: str
    split: str | None
    examples: int | None
    params: list[str] | None
    batchnorm: str | None
    per_layer: bool
    objective: str | None
    model: str | None
    data: str | None
    rtol: float | None
    probes: int | None
    confidence: float
    data_error: bool
    k: int | None
    shift: float | None
    radius: float | None
    seed: int
    batch_size: int | None
    device: str | None
    dtype: str | None
    engine: str
    memory: str | None
    json: str | None
    csv: str | None
    debug: bool
    opening: Opening = AS_FOUND

    @property
    def names(self) -> tuple[str, ...]:
        """The measures asked for, each once, in order."""
        return tuple(dict.fromkeys(options.separated(self.measure) or options.DEFAULT_MEASURES))

    @property
    def tolerance(self) -> float:
        """The relative half-width to reach."""
        return options.DEFAULT_RTOL if self.rtol is None else self.rtol


@dataclass
class Outcome:
    """What has come out so far, kept whatever happens next.

    Attributes:
        results: finished measures, in order.
        latest: the last event of each stage.
        failure: what ended the work early, or None.
    """

    results: list[Result] = field(default_factory=list)
    latest: dict[str, Event] = field(default_factory=dict)
    failure: BaseException | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user ended the work."""
        return isinstance(self.failure, KeyboardInterrupt)


@opens_foreign
def measure(
    ckpt: Annotated[
        str | None, typer.Argument(metavar="[CKPT]", help="A checkpoint of hessprobe train, or plain weights.")
    ] = None,
    measure: options.Measures = None,
    operator: options.AnyOperator = "hessian",
    split: options.Split = None,
    examples: options.Examples = None,
    params: options.Params = None,
    batchnorm: options.BatchNorm = None,
    per_layer: options.PerLayer = False,
    objective: options.ObjectiveSpec = None,
    model: options.ForeignModel = None,
    data: options.ForeignData = None,
    rtol: options.Rtol = None,
    probes: options.Probes = None,
    confidence: options.Confidence = 0.95,
    data_error: options.DataError = True,
    k: options.K = None,
    shift: options.Shift = None,
    radius: options.Radius = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    engine: options.Engine = "auto",
    memory: options.Memory = None,
    json: options.Json = None,
    csv: options.Csv = None,
    debug: options.Debug = False,
    opening: Opening = AS_FOUND,
) -> None:
    """Measure the curvature of a checkpoint; every number comes with its error and its cost.

    Example: hessprobe measure digits.pt --measure frob --measure trace
    """
    run(Request(**locals()))


def run(request: Request) -> None:
    """Measure as asked; print and write what was found, also when something ended the work early."""
    check(request)

    from hessprobe.cli.load import load_subject

    settings = _settings(request)
    subject = load_subject(source_of(request, request.ckpt))
    if request.k is not None and request.k > subject.risk.dim:
        raise failures.UsageError(
            f"--k must be at most the number of parameters, {subject.risk.dim}; got {request.k}. Ask for fewer."
        )
    with journaling.kept(request.json, request, journaling.facts([subject])):
        outcome = collect(request, subject, settings)
    with signals.shielded():
        publish(request, subject, outcome)
    failures.leave(outcome.failure, request.debug)
    journaling.finished(request.json)


def check(request: Request) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    for name in request.names:
        options.choice("--measure", name, (*NAMES, *UNIVERSAL))
    options.choice("--operator", request.operator, options.ANY_OPERATOR)
    options.positive("--rtol", request.rtol, below=1)
    options.positive("--confidence", request.confidence, below=1)
    options.positive("--shift", request.shift)
    options.positive("--radius", request.radius)
    for option, number, minimum in (
        ("--probes", request.probes, 2),
        ("--k", request.k, 1),
    ):
        options.at_least(option, number, minimum)
    check_source(request)
    options.check_outputs(json=request.json, csv=request.csv)
    for note in idle_options(request):
        failures.say(f"note: {note}")


def idle_options(request: Request) -> list[str]:
    """Return one sentence for every option that was given and changes nothing for the measures asked for."""
    wanted = frozenset(request.names)
    sized = wanted - _EIGENVALUES - _POINTS
    unsized = _EIGENVALUES | _POINTS
    idle = [
        (request.shift is not None and not wanted & _DAMPED, "--shift", _DAMPED),
        (request.k is not None and not wanted & _EIGENVALUES, "--k", _EIGENVALUES),
        (request.per_layer and not wanted & _LAYERED, "--per-layer", _LAYERED),
        (request.probes is not None and not sized, "--probes", frozenset(NAMES) - unsized),
        (request.rtol is not None and not sized, "--rtol", frozenset(NAMES) - unsized),
        (request.radius is not None and not wanted & frozenset(UNIVERSAL), "--radius", frozenset(UNIVERSAL)),
    ]
    notes = [f"{option} has no effect here; it is for {_listed(names)}" for given, option, names in idle if given]
    if sized and request.probes is not None and request.rtol is not None:
        notes.append("--rtol has no effect here; --probes fixes the size of the sample")
    return notes


def _listed(names: frozenset[str]) -> str:
    return ", ".join(name for name in (*NAMES, *UNIVERSAL) if name in names)


def collect(request: Request, subject: Subject, settings: MeasureSettings) -> Outcome:
    """Measure one after the other, keeping each result as it comes and the last event of each stage."""
    from hessprobe.cli.progress import progress_bars
    from hessprobe.cli.render import with_error
    from hessprobe.measures import measure_all

    outcome = Outcome()
    try:
        with progress_bars() as update:

            def report(event: Event) -> None:
                if signals.asked():
                    raise KeyboardInterrupt
                outcome.latest[event.stage] = event
                remark = "" if event.value is None else with_error(event.value, event.std_error)
                update(event.stage, event.done, event.total, remark)

            for result in measure_all(request.names, subject.risk, settings, report):
                outcome.results.append(result)
    except (KeyboardInterrupt, Exception) as error:
        outcome.failure = failures.ended_by(error)
    return outcome


def publish(request: Request, subject: Subject, outcome: Outcome) -> None:
    """Print the tables and write record and CSV of everything that is known."""
    from hessprobe import report

    rows = [report.result_row(result, request.confidence) for result in outcome.results]
    record = _record(request, subject, outcome, rows)
    try:
        if request.json not in (None, "-"):
            report.write_record(str(request.json), record)
        if request.csv is not None:
            report.write_csv(request.csv, record)
    finally:
        # Last, because what reads the output may go away early (head, less); first a full disk must not hide it.
        if request.json == "-":
            sys.stdout.write(report.to_json(record))
        else:
            _print(request, subject, outcome, rows)


def _record(request: Request, subject: Subject, outcome: Outcome, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from hessprobe import report

    unfinished = outcome.failure is not None
    return report.build_record(
        "measure",
        rows,
        arguments={**arguments_of(request), "measure": list(request.names), "rtol": request.tolerance},
        seed=request.seed,
        device=subject.risk.device,
        checkpoint=subject.checkpoint,
        data=subject.data,
        **failures.entries(outcome.failure),
        partial=[_event_row(event) for event in outcome.latest.values()] if unfinished else None,
    )


def _event_row(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in ("stage", "done", "total", "value", "std_error")}


def _print(request: Request, subject: Subject, outcome: Outcome, rows: list[dict[str, Any]]) -> None:
    from hessprobe.cli import remarks, render

    console = render.stdout_console()
    render.print_line(console, f"{subject.title}, {request.operator}, seed {request.seed}")
    if rows:
        render.results_table(rows, request.confidence, console)
    for row in rows:
        if row.get("layers"):
            render.print_line(console, "")
            render.layers_table(row, console)
    for line in remarks.eigenvalue_lines(rows, render.plus_minus_for(console)):
        render.print_line(console, line)
    for row in rows:
        for remark in remarks.remarks(row):
            render.print_line(console, f"{row['measure']}: {remark}", style="dim")
    for engine in remarks.engines(rows):
        render.print_line(console, f"products by the {engine} engine", style="dim")
    if outcome.failure is None:
        return
    _print_unfinished(outcome, console)


def _print_unfinished(outcome: Outcome, console: Console) -> None:
    from hessprobe.cli import render

    ended, sign = "interrupted" if outcome.interrupted else "failed", render.plus_minus_for(console)
    open_stages = [each for each in outcome.latest.values() if each.total is None or each.done < each.total]
    render.print_line(console, f"{ended}; what was under way:" if open_stages else ended)
    for event in open_stages:
        of = "" if event.total is None else f" of {event.total:g}"
        value = "" if event.value is None else f": {render.with_error(event.value, event.std_error, sign)}"
        render.print_line(console, f"  {event.stage}{value} (after {event.done:g}{of})")


def _settings(request: Request) -> MeasureSettings:
    return settings_of(
        request,
        rtol=request.tolerance,
        n_probes=request.probes,
        per_layer=request.per_layer,
        shift=request.shift,
        radius=request.radius,
        **({} if request.k is None else {"k": request.k}),
    )
