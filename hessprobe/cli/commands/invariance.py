"""``hessprobe invariance``: what function-preserving transforms of a checkpoint do to every measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from hessprobe.cli import failures, journaling, options, signals
from hessprobe.cli.opening import opens_foreign
from hessprobe.cli.source import check_source, settings_of, source_of
from hessprobe.invariance import (
    DEFAULT_MEASURES,
    DEFAULT_STRENGTHS,
    DENSE_LIMIT,
    MEASURES,
    TRANSFORMS,
    default_measures,
)
from hessprobe.models.spec import AS_FOUND, Opening

if TYPE_CHECKING:
    from hessprobe.cli.load import Subject
    from hessprobe.invariance import Found, Line
    from hessprobe.measures import Event, MeasureSettings

_INPUT, _NUMBERS = "What is measured", "How well"
# A tolerance relative to a value near zero, which a trace may have, would cost without bound at every transform.
DEFAULT_PROBES = 32

Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        "-m",
        metavar="NAME",
        rich_help_panel=_INPUT,
        help=f"What to measure; repeat it for more. One of {', '.join(MEASURES)}. Default: "
        f"{', '.join(DEFAULT_MEASURES)}; the last up to {DENSE_LIMIT:,} parameters.",
    ),
]
Transforms = Annotated[
    list[str] | None,
    typer.Option(
        "--transform",
        "-t",
        metavar="NAME",
        rich_help_panel=_INPUT,
        help=f"Transform; repeat it for more. One of {', '.join(TRANSFORMS)}. Default: all that the network has.",
    ),
]
Strengths = Annotated[
    list[float] | None,
    typer.Option(
        "--strength",
        metavar="S",
        rich_help_panel=_INPUT,
        help="Largest factor of a rescaling, above 0 and not 1; repeat it for more. Default: "
        f"{', '.join(f'{one:g}' for one in DEFAULT_STRENGTHS)}.",
    ),
]
Rtol = Annotated[
    float | None,
    typer.Option(
        "--rtol",
        metavar="R",
        rich_help_panel=_NUMBERS,
        help=f"Half-width of the intervals to reach, relative to the value; by default it is {DEFAULT_PROBES} --probes "
        "that are fixed.",
    ),
]
Resolution = Annotated[
    float,
    typer.Option(
        "--resolution",
        metavar="R",
        rich_help_panel=_NUMBERS,
        help="A measure counts as invariant where its relative change is known to be below R.",
    ),
]


@dataclass(frozen=True)
class Request:
    """The options of ``hessprobe invariance``; None where the user left the choice to the program."""

    ckpt: str | None
    measure: list[str] | None
    transform: list[str] | None
    strength: list[float] | None
    operator: str
    split: str | None
    examples: int | None
    params: list[str] | None
    batchnorm: str | None
    objective: str | None
    model: str | None
    data: str | None
    rtol: float | None
    probes: int | None
    confidence: float
    data_error: bool
    shift: float | None
    resolution: float
    seed: int
    batch_size: int | None
    device: str | None
    dtype: str | None
    engine: str
    memory: str | None
    json: str | None
    debug: bool
    opening: Opening = AS_FOUND

    @property
    def named(self) -> tuple[str, ...]:
        """The measures asked for by name, each once, in order."""
        return tuple(dict.fromkeys(self.measure or ()))

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strengths asked for, each once, in order."""
        return tuple(dict.fromkeys(self.strength or DEFAULT_STRENGTHS))

    @property
    def size(self) -> dict[str, float | int | None]:
        """Tolerance and number of probes: as asked for, else a fixed number of probes."""
        rtol = options.DEFAULT_RTOL if self.rtol is None else self.rtol
        probes = DEFAULT_PROBES if self.rtol is None and self.probes is None else self.probes
        return {"rtol": rtol, "n_probes": probes}


@dataclass
class Outcome:
    """What has come out so far, kept whatever happens next; ``names`` are the measures that were to come."""

    names: tuple[str, ...]
    found: Found | None = None
    lines: list[Line] = field(default_factory=list)
    failure: BaseException | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user ended the work."""
        return isinstance(self.failure, KeyboardInterrupt)


@opens_foreign
def invariance(
    ckpt: Annotated[
        str | None, typer.Argument(metavar="[CKPT]", help="A checkpoint of hessprobe train, or plain weights.")
    ] = None,
    measure: Measures = None,
    transform: Transforms = None,
    strength: Strengths = None,
    operator: options.Operator = "hessian",
    split: options.Split = None,
    examples: options.Examples = None,
    params: options.Params = None,
    batchnorm: options.BatchNorm = None,
    objective: options.ObjectiveSpec = None,
    model: options.ForeignModel = None,
    data: options.ForeignData = None,
    rtol: Rtol = None,
    probes: options.Probes = None,
    confidence: options.Confidence = 0.95,
    data_error: options.DataError = True,
    shift: options.Shift = None,
    resolution: Resolution = 0.05,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    engine: options.Engine = "auto",
    memory: options.Memory = None,
    json: options.Json = None,
    debug: options.Debug = False,
    opening: Opening = AS_FOUND,
) -> None:
    """Rescale and reorder a network without changing its function, and see which measures change.

    Example: hessprobe invariance digits.pt --strength 10 --measure trace --measure adaptive-trace
    """
    run(Request(**locals()))


def run(request: Request) -> None:
    """Check as asked; print and write what was found, also when something ended the work early."""
    check(request)

    from hessprobe.cli.load import load_subject

    settings = _settings(request)
    subject = load_subject(source_of(request, request.ckpt))
    with journaling.kept(request.json, request, journaling.facts([subject])):
        outcome = collect(request, subject, settings)

    from hessprobe.cli.commands.invariance_output import publish

    with signals.shielded():
        publish(request, subject, outcome)
    failures.leave(outcome.failure, request.debug)
    journaling.finished(request.json)


def check(request: Request) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    for name in request.named:
        options.choice("--measure", name, MEASURES)
    for name in request.transform or ():
        options.choice("--transform", name, tuple(TRANSFORMS))
    options.choice("--operator", request.operator, options.OPERATORS)
    for each in request.strengths:
        options.positive("--strength", each)
        if each == 1:
            raise failures.UsageError("--strength must be another number than 1, which changes nothing; got 1.")
    _check_numbers(request)
    options.check_outputs(json=request.json)


def _check_numbers(request: Request) -> None:
    for option, value in (
        ("--rtol", request.rtol),
        ("--confidence", request.confidence),
        ("--resolution", request.resolution),
    ):
        options.positive(option, value, below=1)
    options.positive("--shift", request.shift)
    options.at_least("--probes", request.probes, 2)
    check_source(request)


def collect(request: Request, subject: Subject, settings: MeasureSettings) -> Outcome:
    """Check one transform after the other, keeping each line as it comes."""
    from hessprobe import invariance
    from hessprobe.cli.progress import progress_bars
    from hessprobe.cli.render import with_error

    outcome = Outcome(request.named or default_measures(subject.risk.dim))
    try:
        with progress_bars() as update:

            def report(event: Event) -> None:
                if signals.asked():
                    raise KeyboardInterrupt
                remark = "" if event.value is None else with_error(event.value, event.std_error)
                update(event.stage, event.done, event.total, remark)

            outcome.found = invariance.find_sites(subject.risk)
            for line in invariance.check_invariance(
                subject.risk,
                outcome.names,
                request.transform,
                request.strengths,
                settings,
                resolution=request.resolution,
                found=outcome.found,
                report=report,
            ):
                outcome.lines.append(line)
    except (KeyboardInterrupt, Exception) as error:
        outcome.failure = failures.ended_by(error)
    return outcome


def _settings(request: Request) -> MeasureSettings:
    return settings_of(request, shift=request.shift, **request.size)
