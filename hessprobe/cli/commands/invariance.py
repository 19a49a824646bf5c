"""``hessprobe invariance``: what function-preserving transforms of a checkpoint do to every measure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import completion, options, process, skeleton
from hessprobe.cli.options import check_source, settings_of
from hessprobe.cli.skeleton import Outcome, arguments_of, carry_out, declared, deliver, watched
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
    from rich.console import Console

    from hessprobe.cli.load import Subject
    from hessprobe.invariance import Found, Line
    from hessprobe.measures import MeasureSettings

    Inputs = tuple[Subject, MeasureSettings]

_INPUT, _NUMBERS = "What is measured", "How well"
# A tolerance relative to a value near zero, which a trace may have, would cost without bound at every transform.
DEFAULT_PROBES = 32

Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        "-m",
        metavar="NAME",
        autocompletion=completion.measures_of(MEASURES),
        rich_help_panel=_INPUT,
        help=f"What to measure; repeat it for more, or put commas between. One of {', '.join(MEASURES)}. Default: "
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
        help=f"Transform; repeat it for more, or put commas between. One of {', '.join(TRANSFORMS)}. Default: "
        "all that the network has.",
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
class InvarianceRequest:
    """The options of ``hessprobe invariance``; None where the user left the choice to the program."""

    ckpt: options.Checkpoint = None
    measure: Measures = None
    transform: Transforms = None
    strength: Strengths = None
    operator: options.Operator = "hessian"
    split: options.Split = None
    examples: options.Examples = None
    params: options.Params = None
    batchnorm: options.BatchNorm = None
    objective: options.ObjectiveSpec = None
    model: options.ForeignModel = None
    data: options.ForeignData = None
    rtol: Rtol = None
    probes: options.Probes = None
    confidence: options.Confidence = 0.95
    data_error: options.DataError = True
    shift: options.Shift = None
    resolution: Resolution = 0.05
    seed: options.Seed = 0
    batch_size: options.BatchSize = None
    device: options.Device = None
    dtype: options.Dtype = None
    engine: options.Engine = "auto"
    memory: options.Memory = None
    json: options.Json = None
    out: options.Figure = None
    width: options.Width = None
    style: options.FigureStyle = "paper"
    report: options.PageFile = None
    debug: options.Debug = False
    opening: Opening = AS_FOUND

    @property
    def named(self) -> tuple[str, ...]:
        """The measures asked for by name, each once, in order."""
        return tuple(dict.fromkeys(options.separated(self.measure) or ()))

    @property
    def transforms(self) -> list[str] | None:
        """The transforms asked for; None where all that act are to be taken."""
        return options.separated(self.transform, "--transform")

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
class Checked:
    """What has come out so far; ``names`` are the measures that were to come."""

    names: tuple[str, ...]
    found: Found | None = None
    lines: list[Line] = field(default_factory=list)


@declared(InvarianceRequest, opening=options.OPENING)
def invariance(request: InvarianceRequest) -> None:
    """Rescale and reorder a network without changing its function, and see which measures change.

    Example: hessprobe invariance digits.pt --strength 10 --measure trace --measure adaptive-trace
    """
    run(request)


def run(request: InvarianceRequest) -> None:
    """Check as asked; print and write what was found, also when something ended the work early."""
    carry_out(request, check=check, opened=opened, collect=collect, publish=publish, facts=facts)


def check(request: InvarianceRequest) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    for name in request.named:
        options.choice("--measure", name, MEASURES)
    for name in request.transforms or ():
        options.choice("--transform", name, tuple(TRANSFORMS))
    options.choice("--operator", request.operator, options.OPERATORS)
    for each in request.strengths:
        options.positive("--strength", each)
        if each == 1:
            raise process.UsageError("--strength must be another number than 1, which changes nothing; got 1.")
    _check_numbers(request)
    skeleton.check_drawing(request, request.out)
    options.check_outputs(json=request.json, out=request.out, report=request.report)


def _check_numbers(request: InvarianceRequest) -> None:
    for option, value in (
        ("--rtol", request.rtol),
        ("--confidence", request.confidence),
        ("--resolution", request.resolution),
    ):
        options.positive(option, value, below=1)
    options.positive("--shift", request.shift)
    options.at_least("--probes", request.probes, 2)
    check_source(request)


def opened(request: InvarianceRequest) -> tuple[Inputs, Checked]:
    """Return the network and how to measure it, and what is found, still empty."""
    from hessprobe.cli.load import load_subject

    settings = settings_of(request, shift=request.shift, **request.size)
    subject = load_subject(request, request.ckpt)
    return (subject, settings), Checked(request.named or default_measures(subject.risk.dim))


def facts(request: InvarianceRequest, inputs: Inputs) -> dict[str, Any]:  # noqa: ARG001  # as other commands have it
    """Return what decides the numbers beside the options."""
    return skeleton.facts([inputs[0]])


def collect(request: InvarianceRequest, inputs: Inputs, outcome: Outcome[Checked]) -> None:
    """Check one transform after the other, keeping each line as it comes."""
    from hessprobe import invariance

    (subject, settings), checked = inputs, outcome.found
    with watched(outcome) as report:
        checked.found = invariance.find_sites(subject.risk)
        for line in invariance.check_invariance(
            subject.risk,
            checked.names,
            request.transforms,
            request.strengths,
            settings,
            resolution=request.resolution,
            found=checked.found,
            report=report,
        ):
            checked.lines.append(line)


def publish(request: InvarianceRequest, inputs: Inputs, outcome: Outcome[Checked]) -> None:
    """Print the table and write the record of everything that is known."""
    from hessprobe import report
    from hessprobe.cli.commands import invariance_tables as tables

    (subject, _), checked = inputs, outcome.found
    arguments = {**arguments_of(request), "measure": list(checked.names), "strength": list(request.strengths)}
    record = report.build_record(
        "invariance",
        [tables.row_of(line, request.confidence) for line in checked.lines],
        arguments={**arguments, "rtol": request.size["rtol"], "probes": request.size["n_probes"]},
        seed=request.seed,
        device=subject.risk.device,
        checkpoint=subject.checkpoint,
        data=subject.data,
        sites=None if checked.found is None else [tables.site_entry(site) for site in checked.found.sites],
        skipped=None if checked.found is None else [asdict(skip) for skip in checked.found.skips],
        **process.entries(outcome.failure),
    )

    def show(console: Console) -> None:
        from hessprobe.cli import render

        render.print_line(console, f"{subject.title}, {request.operator}, seed {request.seed}")
        if checked.lines:
            tables.show(checked.lines, _left_out(request, checked), console)
        for text in tables.skipped(checked.found, request.transforms):
            render.print_line(console, text, style="dim")
        if outcome.failure is not None:
            render.print_line(console, outcome.ending)

    deliver(record, request.json, show, lambda: skeleton.write_drawing(request, record, request.out))


def _left_out(request: InvarianceRequest, checked: Checked) -> list[str]:
    missing = [name for name in DEFAULT_MEASURES if name not in checked.names]
    if request.named or not missing:
        return []
    return [
        f"{', '.join(missing)}: left out, as it needs the whole matrix, of at most {DENSE_LIMIT:,} parameters; "
        "choose fewer with --params"
    ]
