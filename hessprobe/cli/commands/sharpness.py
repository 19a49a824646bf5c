"""``hessprobe sharpness``: how much the loss rises around a checkpoint, beside what the second-order model says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import options, process, skeleton
from hessprobe.cli.options import check_source, engine_of
from hessprobe.cli.skeleton import Outcome, arguments_of, carry_out, declared, deliver, print_unfinished, watched
from hessprobe.models.spec import AS_FOUND, Opening
from hessprobe.sharpness.names import ADAPTIVE, KINDS, NORMS, POINTWISE, RADIAL

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.cli.load import Subject
    from hessprobe.estimators.budget import Progress
    from hessprobe.sharpness import Diagnostics
    from hessprobe.sharpness.survey import Plan, Reading

    Inputs = tuple[Subject, str]

_DEFAULT_RHO = (0.05,)
_DEFAULT_RTOL = 0.01
_WHAT, _HOW, _OUTPUT = "What is measured", "How well", "Output"

# Which kinds an option is for.
_DRAWN = frozenset({"average", "relative-flatness"})
_TOLERANT = _DRAWN | {"worst", "lambda-max", "trace", "frob"}
_SUBSETS = frozenset({"worst", "ascent"})


@dataclass(frozen=True)
class SharpnessRequest:
    """The options of ``hessprobe sharpness``; None where the user left the choice to the program."""

    ckpt: options.Checkpoint = None
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="NAME",
            rich_help_panel=_WHAT,
            help=f"What to measure; repeat it for more, or put commas between. One of {', '.join(KINDS)}. "
            f"Default: {', '.join(RADIAL)}.",
        ),
    ] = None
    rho: Annotated[
        list[float] | None,
        typer.Option("--rho", metavar="R", rich_help_panel=_WHAT, help="Radius; repeat it for more. 0.05 by default."),
    ] = None
    norm: Annotated[
        str, typer.Option("--norm", metavar="NAME", rich_help_panel=_WHAT, help="Shape of the ball: l2 or linf.")
    ] = "l2"
    adaptive: Annotated[
        str,
        typer.Option(
            "--adaptive",
            metavar="NAME",
            rich_help_panel=_WHAT,
            help="Measure perturbations in units of the weights: elementwise, filter or layer.",
        ),
    ] = "none"
    eta: Annotated[
        float, typer.Option("--eta", metavar="E", rich_help_panel=_WHAT, help="Added to the units of --adaptive.")
    ] = 0.0
    m: Annotated[
        int | None,
        typer.Option("--m", metavar="M", rich_help_panel=_WHAT, help="Every M examples have their own perturbation."),
    ] = None
    diagnostics: Annotated[
        bool,
        typer.Option("--diagnostics", rich_help_panel=_WHAT, help="Also what SAM sees here, at the first --rho."),
    ] = False
    split: options.Split = None
    examples: options.Examples = None
    params: options.Params = None
    batchnorm: options.BatchNorm = None
    objective: options.ObjectiveSpec = None
    model: options.ForeignModel = None
    data: options.ForeignData = None
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", rich_help_panel=_HOW, help="Steps of each ascent (worst).")
    ] = 20
    restarts: Annotated[
        int, typer.Option("--restarts", metavar="N", rich_help_panel=_HOW, help="Random starts of ascents (worst).")
    ] = 2
    probes: Annotated[
        int | None,
        typer.Option("--probes", metavar="N", rich_help_panel=_HOW, help="Random directions of an average."),
    ] = None
    rtol: Annotated[
        float | None,
        typer.Option(
            "--rtol",
            metavar="R",
            rich_help_panel=_HOW,
            help="Relative half-width of intervals, in place of --probes; of traces and norms 0.01 by default.",
        ),
    ] = None
    confidence: options.Confidence = 0.95
    k: Annotated[
        int | None,
        typer.Option("--k", metavar="K", rich_help_panel=_HOW, help="Eigenvectors of --diagnostics; 5 by default."),
    ] = None
    rho_max: Annotated[
        float | None,
        typer.Option(
            "--rho-max",
            metavar="R",
            rich_help_panel=_HOW,
            help="Radius of the arc of --diagnostics; 2 --rho by default.",
        ),
    ] = None
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
    def kinds(self) -> tuple[str, ...]:
        """The kinds asked for, each once, in order."""
        return tuple(dict.fromkeys(options.separated(self.kind, "--kind") or RADIAL))

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii, each once, in order."""
        return tuple(dict.fromkeys(self.rho or _DEFAULT_RHO))


@dataclass
class Found:
    """What has come out so far: finished numbers in order, and the diagnostics of SAM, or None."""

    readings: list[Reading] = field(default_factory=list)
    diagnostics: Diagnostics | None = None


@declared(SharpnessRequest, opening=options.OPENING)
def sharpness(request: SharpnessRequest) -> None:
    """Measure how much the loss rises around a checkpoint, beside what the second-order model says.

    Example: hessprobe sharpness digits.pt --rho 0.05 --rho 0.5 --adaptive elementwise
    """
    run(request)


def run(request: SharpnessRequest) -> None:
    """Measure as asked; print and write what was found, also when something ended the work early."""
    carry_out(request, check=check, opened=opened, collect=collect, publish=publish, facts=facts)


def check(request: SharpnessRequest) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    for name in request.kinds:
        options.choice("--kind", name, KINDS)
    for option, value, known in (
        ("--norm", request.norm, NORMS),
        ("--adaptive", request.adaptive, ADAPTIVE),
    ):
        if value is not None:
            options.choice(option, value, known)
    for radius in request.radii:
        options.positive("--rho", radius)
    options.positive("--rho-max", request.rho_max)
    options.positive("--rtol", request.rtol, below=1)
    options.positive("--confidence", request.confidence, below=1)
    if not 0 <= request.eta < math.inf:
        raise process.UsageError(f"--eta must be a finite number >= 0; got {request.eta:g}.")
    for option, number, minimum in (
        ("--m", request.m, 1),
        ("--steps", request.steps, 0),
        ("--restarts", request.restarts, 0),
        ("--probes", request.probes, 2),
        ("--k", request.k, 1),
    ):
        options.at_least(option, number, minimum)
    _refuse_contradictions(request)
    check_source(request)
    skeleton.check_drawing(request, request.out)
    options.check_outputs(json=request.json, out=request.out, report=request.report)
    for note in idle_options(request):
        process.note(note)


def _refuse_contradictions(request: SharpnessRequest) -> None:
    if request.probes is not None and request.rtol is not None:
        raise process.UsageError("--probes cannot go with --rtol. Fix the size or the tolerance.")
    if request.diagnostics and (request.norm != "l2" or request.adaptive != "none"):
        raise process.UsageError(
            "--diagnostics cannot go with --norm linf or --adaptive: SAM and its eigenvectors know neither. "
            "Measure them in two runs."
        )


def idle_options(request: SharpnessRequest) -> list[str]:
    """Return one sentence for every option that was given and changes nothing for the kinds asked for."""
    wanted = frozenset(request.kinds)
    scaled = wanted - {"relative-flatness", "fisher-rao"}
    idle = [
        (request.rho is not None and not wanted & set(RADIAL) and not request.diagnostics, "--rho", ", ".join(RADIAL)),
        (request.m is not None and not wanted & _SUBSETS, "--m", "worst, ascent"),
        (request.probes is not None and not wanted & _DRAWN, "--probes", "average, relative-flatness"),
        (request.rtol is not None and not wanted & _TOLERANT and not request.diagnostics, "--rtol", "what is sampled"),
        (request.adaptive != "none" and not scaled, "--adaptive", ", ".join((*RADIAL, *POINTWISE[2:]))),
        (request.eta > 0 and request.adaptive == "none", "--eta", "--adaptive"),
        (request.k is not None and not request.diagnostics, "--k", "--diagnostics"),
        (request.rho_max is not None and not request.diagnostics, "--rho-max", "--diagnostics"),
    ]
    return [f"{option} has no effect here; it is for {names}" for given, option, names in idle if given]


def opened(request: SharpnessRequest) -> tuple[Inputs, Found]:
    """Return the network and how products are made, and what is measured, still empty."""
    from hessprobe.cli.load import load_subject

    engine = engine_of(request.engine)
    return (load_subject(request, request.ckpt), engine), Found()


def facts(request: SharpnessRequest, inputs: Inputs) -> dict[str, Any]:  # noqa: ARG001  # as other commands have it
    """Return what decides the numbers beside the options."""
    return skeleton.facts([inputs[0]])


def collect(request: SharpnessRequest, inputs: Inputs, outcome: Outcome[Found]) -> None:
    """Measure one after the other, keeping each number as it comes."""
    from hessprobe.sharpness import Neighborhood, diagnose
    from hessprobe.sharpness.neighborhood import UnresolvedRadius
    from hessprobe.sharpness.survey import survey

    subject, engine = inputs
    with watched(outcome) as report:

        def callback(stage: str, state: Progress) -> None:
            report(replace(state, stage=stage))

        near = Neighborhood(subject.risk, callback=callback, **_place(request, engine))
        try:
            for reading in survey(near, _plan(request)):
                outcome.found.readings.append(reading)
        except UnresolvedRadius as error:
            # What is left can be measured all the same.
            outcome.failure = error
        if request.diagnostics:
            given = {"rtol": request.rtol, "k": request.k, "rho_max": request.rho_max}
            chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
            outcome.found.diagnostics = diagnose(near, request.radii[0], **chosen)


def publish(request: SharpnessRequest, inputs: Inputs, outcome: Outcome[Found]) -> None:
    """Print the tables and write the record of everything that is known."""
    from hessprobe.records import typed
    from hessprobe.records.sharpness import SharpnessRecord
    from hessprobe.report import sharpness as kept

    (subject, _), found = inputs, outcome.found
    level = request.confidence
    known = SharpnessRecord(
        results=tuple(kept.reading_of(reading, level) for reading in found.readings),
        checkpoint=subject.checkpoint,
        data=subject.data,
        **process.entries(outcome.failure),
        partial=outcome.partial(),
        diagnostics=None if found.diagnostics is None else kept.diagnostics_of(found.diagnostics, level),
    )
    record = typed.build(
        "sharpness",
        known,
        arguments={**arguments_of(request), "kind": list(request.kinds), "rho": list(request.radii)},
        seed=request.seed,
        device=subject.risk.device,
    )

    def show(console: Console) -> None:
        from hessprobe.cli import render
        from hessprobe.cli.commands import sharpness_tables as tables

        scale = "" if request.adaptive == "none" else f", adaptive {request.adaptive}"
        render.print_line(console, f"{subject.title}, {request.norm}{scale}, seed {request.seed}")
        tables.show(known, console)
        print_unfinished(outcome, console)

    deliver(record, request.json, show, lambda: skeleton.write_drawing(request, record, request.out))


def _place(request: SharpnessRequest, engine: str) -> dict[str, Any]:
    return {
        "adaptive": request.adaptive,
        "eta": request.eta if request.adaptive != "none" else 0.0,
        "norm": request.norm,
        "seed": request.seed,
        "engine": engine,
        "memory": options.parse_memory(request.memory),
        "trace_rtol": _DEFAULT_RTOL if request.rtol is None else request.rtol,
    }


def _plan(request: SharpnessRequest) -> Plan:
    from hessprobe.sharpness.survey import Plan

    return Plan(
        request.kinds,
        request.radii,
        request.m,
        request.steps,
        request.restarts,
        request.probes,
        request.rtol,
        request.confidence,
    )
