"""``hessprobe landscape``: the loss on a line or plane through a checkpoint, as a figure and a record."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hessprobe.cli import options, outputs, process, skeleton
from hessprobe.cli.options import check_source
from hessprobe.cli.skeleton import Outcome, arguments_of, carry_out, declared, deliver, watched
from hessprobe.landscape.names import BIASES, DIRECTIONS, MAPS, NORMALIZATIONS, RHO, SIZE, SPAN
from hessprobe.models.spec import AS_FOUND, Opening

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.cli.load import Subject
    from hessprobe.landscape import Landscape
    from hessprobe.landscape.compute import LandscapePlan

_WHERE, _WHAT, _OUTPUT = "Where", "What is measured", "Output"
_MARGIN_KINDS = ("pca", "line")
# Radii of SAM's ball that the plane of the gradients shows on either side of it.
_BALLS = 4.0


@dataclass(frozen=True)
class LandscapeRequest:
    """The options of ``hessprobe landscape``; None where the user left the choice to the program."""

    ckpt: options.Checkpoint = None
    directions: Annotated[
        str, options.option("--directions", metavar="NAME", panel=_WHERE, help=f"One of {', '.join(DIRECTIONS)}.")
    ] = "random"
    with_: Annotated[
        list[str] | None,
        options.option(
            "--with",
            metavar="CKPT",
            panel=_WHERE,
            help="A further checkpoint, for line and pca; repeat it in the trajectory's order. CKPT is the center.",
        ),
    ] = None
    size: Annotated[
        int, options.option("--size", metavar="N", panel=_WHERE, help="Points an axis; an odd number is symmetric.")
    ] = SIZE
    span: Annotated[
        float | None,
        options.option(
            "--span",
            metavar="S",
            panel=_WHERE,
            help=f"How far to go on either side, in units of the directions; {SPAN:g} by default, for gradient "
            f"{_BALLS:g} times --rho.",
        ),
    ] = None
    line: Annotated[bool, options.option("--line", panel=_WHERE, help="One direction only.")] = False
    normalization: Annotated[
        str | None,
        options.option(
            "--normalization",
            metavar="NAME",
            panel=_WHERE,
            help=f"Units of random directions: {', '.join(NORMALIZATIONS)}. Default: filter.",
        ),
    ] = None
    biases: Annotated[
        str | None,
        options.option(
            "--biases",
            metavar="NAME",
            panel=_WHERE,
            help=f"Biases and norm parameters in random directions: {', '.join(BIASES)}. Default: zero.",
        ),
    ] = None
    which: Annotated[
        str | None,
        options.option(
            "--which",
            metavar="NAME",
            panel=_WHERE,
            help="Eigenvectors: largest (the default), smallest, magnitude, or both ends.",
        ),
    ] = None
    rho: Annotated[
        float | None,
        options.option(
            "--rho", metavar="R", panel=_WHERE, help=f"Draw SAM's ball of this radius; {RHO:g} for gradient."
        ),
    ] = None
    match: Annotated[
        bool, options.option("--match", panel=_WHERE, help="Reorder the neurons of --with to match CKPT first (line).")
    ] = False
    map: Annotated[
        list[str] | None,
        options.option(
            "--map",
            metavar="NAME",
            panel=_WHAT,
            help=f"Also draw this quantity; repeat it for more. One of {', '.join(MAPS)}.",
        ),
    ] = None
    overlays: Annotated[
        bool, options.option("--overlays/--no-overlays", panel=_OUTPUT, help="Draw the second-order model.")
    ] = True
    split: options.Split = None
    examples: options.Examples = None
    params: options.Params = None
    batchnorm: options.BatchNorm = None
    objective: options.ObjectiveSpec = None
    model: options.ForeignModel = None
    data: options.ForeignData = None
    seed: options.Seed = 0
    batch_size: options.BatchSize = None
    device: options.Device = None
    dtype: options.Dtype = None
    memory: options.Memory = None
    out: Annotated[
        str | None,
        options.option(
            "--out",
            metavar="FILE",
            panel=_OUTPUT,
            help="Figure: png, svg or pdf; CKPT-DIRECTIONS.png by default. Points are kept beside it, in .npz.",
        ),
    ] = None
    width: options.Width = None
    style: options.FigureStyle = "paper"
    report: options.PageFile = None
    surface: Annotated[
        bool, options.option("--surface", panel=_OUTPUT, help="Draw a plane as a surface in place of contours.")
    ] = False
    camera: Annotated[
        str | None,
        options.option(
            "--camera",
            metavar="ELEV,TURN",
            panel=_OUTPUT,
            help="View of --surface in degrees, e.g. 35,-60; by default one that shows the checkpoint.",
        ),
    ] = None
    interactive: Annotated[
        str | None,
        options.option("--interactive", metavar="FILE", panel=_OUTPUT, help="HTML file with a surface to turn around."),
    ] = None
    json: options.Json = None
    debug: options.Debug = False
    opening: Opening = AS_FOUND

    @property
    def maps(self) -> tuple[str, ...]:
        """The quantities, the loss first, each once."""
        return tuple(dict.fromkeys(("loss", *(self.map or ()))))

    @property
    def figure(self) -> str | None:
        """Where the figure goes: by default beside nothing else that was asked for."""
        return outputs.default_figure("landscape", vars(self)) if self.out is None else self.out

    @property
    def points(self) -> str:
        """Where finished points are kept."""
        base = Path(self.figure or self.interactive or "landscape")
        return str(base.with_name(f"{base.name}.npz"))

    @property
    def others(self) -> tuple[str, ...]:
        """The further checkpoints, in order."""
        return tuple(self.with_ or ())


@dataclass
class Drawn:
    """What has come out so far: the landscape, None before its last point, and remarks for a reader."""

    landscape: Landscape | None = None
    notes: list[str] = field(default_factory=list)


@declared(LandscapeRequest, opening=options.OPENING)
def landscape(request: LandscapeRequest) -> None:
    """Draw the loss on a line or plane through a checkpoint; the checkpoint itself is on the grid.

    An interrupted run goes on where it stopped when the same command is given again.

    Example: hessprobe landscape digits.pt --directions eigen --out digits.pdf
    """
    run(request)


def run(request: LandscapeRequest) -> None:
    """Evaluate and draw as asked; what is finished is kept, also when something ends the work early."""
    # Finished points are kept beside the figure, and a journal beside them while the work goes on.
    carry_out(request, check=check, opened=opened, collect=collect, publish=publish)


def check(request: LandscapeRequest) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    for option, value, known in (
        ("--directions", request.directions, DIRECTIONS),
        ("--normalization", request.normalization, NORMALIZATIONS),
        ("--biases", request.biases, BIASES),
        ("--which", request.which, ("largest", "smallest", "magnitude", "both")),
    ):
        if value is not None:
            options.choice(option, value, known)
    for name in request.maps:
        options.choice("--map", name, MAPS)
    options.positive("--span", request.span)
    options.positive("--rho", request.rho)
    options.at_least("--size", request.size, 3)
    _refuse_contradictions(request)
    check_source(request)
    options.check_outputs(out=request.figure, interactive=request.interactive, json=request.json, report=request.report)
    for note in idle_options(request):
        process.note(note)


def _refuse_contradictions(request: LandscapeRequest) -> None:
    skeleton.check_drawing(request, request.figure)
    count = len(request.others)
    if request.directions == "line" and count not in (1, 2):
        raise process.UsageError(
            f"--with must name 1 further checkpoint for a line, or 2 for the plane through all three; got {count}."
        )
    if request.directions == "pca" and count < 2:
        raise process.UsageError(
            f"--with must name at least 2 further checkpoints for pca, which needs 3 points; got {count}. "
            "Use --directions line for two."
        )
    if request.camera is not None and re.fullmatch(r"-?\d+(\.\d+)?,-?\d+(\.\d+)?", request.camera) is None:
        raise process.UsageError(
            f"--camera must be elevation and turn in degrees, e.g. 35,-60; got {request.camera!r}."
        )
    flat = request.line or (request.directions == "line" and count == 1)
    if flat and (request.interactive is not None or request.surface):
        raise process.UsageError("--interactive and --surface are for planes; got a line. Leave them out.")
    if request.line and request.which == "both":
        raise process.UsageError("--which both gives two directions, but --line asks for one. Leave one of them out.")


def idle_options(request: LandscapeRequest) -> list[str]:
    """Return one sentence for every option that was given and changes nothing for these directions."""
    kind = request.directions
    idle = [
        (request.others and kind not in _MARGIN_KINDS, "--with", "line, pca"),
        (request.span is not None and kind in _MARGIN_KINDS, "--span", "random, eigen, gradient"),
        (request.line and kind not in ("random", "eigen"), "--line", "random, eigen"),
        (request.normalization is not None and kind != "random", "--normalization", "random"),
        (request.biases is not None and kind != "random", "--biases", "random"),
        (request.which is not None and kind != "eigen", "--which", "eigen"),
        (request.match and kind != "line", "--match", "line"),
    ]
    bare = ["--camera has no effect here; it is for --surface"] if request.camera and not request.surface else []
    return bare + [
        f"{option} has no effect here; it is for --directions {names}" for given, option, names in idle if given
    ]


def opened(request: LandscapeRequest) -> tuple[list[Subject], Drawn]:
    """Return the network at the center and the others, and what is drawn, still empty."""
    from hessprobe.cli.load import load_subject

    if request.interactive is not None:
        from hessprobe.landscape.interactive import require_plotly

        require_plotly()
    return [load_subject(request, path) for path in (request.ckpt, *request.others)], Drawn()


def collect(request: LandscapeRequest, subjects: list[Subject], outcome: Outcome[Drawn]) -> None:
    """Make the plane and evaluate its points; finished ones are on disk whatever ends the work."""
    from hessprobe.landscape.compute import survey
    from hessprobe.measures import Progress

    subject, *others = subjects
    with watched(outcome) as report:

        def points(done: int, total: int) -> None:
            report(Progress(done, total, stage="points"))

        outcome.found.landscape, notes = survey(_plan(request, subject, others), points)
    outcome.found.notes += notes
    if request.directions == "pca":
        outcome.found.notes += _order(request.others, others)


def _plan(request: LandscapeRequest, subject: Subject, others: list[Subject]) -> LandscapePlan:
    from hessprobe.landscape.compute import LandscapePlan

    return LandscapePlan(
        risk=subject.risk,
        others=tuple(other.risk for other in others),
        names=tuple(_names([str(request.ckpt or request.objective), *request.others])),
        directions=request.directions,
        one=request.line,
        size=request.size,
        span=_span(request),
        normalization=request.normalization or "filter",
        biases=request.biases or "zero",
        which=request.which or "largest",
        rho=request.rho or RHO,
        match=request.match,
        quantities=request.maps,
        quadratic=request.overlays,
        seed=request.seed,
        memory=options.parse_memory(request.memory),
        store=request.points,
    )


def _span(request: LandscapeRequest) -> float:
    """Return how far to go: in the plane of the gradients so far that SAM's ball is seen."""
    if request.span is not None:
        return request.span
    return _BALLS * (request.rho or RHO) if request.directions == "gradient" else SPAN


def _order(paths: Sequence[str], others: Sequence[Subject]) -> list[str]:
    """Return a note where a trajectory goes back to an earlier step of its run."""
    from hessprobe.report.figures.planes import run_of

    found = [((each.checkpoint or {}).get("metrics") or {}).get("steps") for each in others]
    steps = [int(each) for each in found if each is not None]
    if len(steps) < len(others) or steps[-1] < steps[0]:
        return []
    for i, (step, following) in enumerate(pairwise(steps)):
        # Each run has a line of its own.
        if following < step and run_of(Path(paths[i]).stem) == run_of(Path(paths[i + 1]).stem):
            return [
                f"the trajectory goes from {Path(paths[i]).name} (step {step}) back to {Path(paths[i + 1]).name} "
                f"(step {following}): its line is that of training only where --with is in the order of the steps"
            ]
    return []


def _names(paths: list[str]) -> list[str]:
    """Return the shortest names that tell the checkpoints apart: the stem, or the path where stems agree."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else paths


def publish(request: LandscapeRequest, subjects: list[Subject], outcome: Outcome[Drawn]) -> None:
    """Draw the figures, write the record, and say what was found."""
    from hessprobe import report

    subject, found = subjects[0], outcome.found.landscape
    places: dict[str, str] = {"points": request.points}
    if found is not None:
        wanted = {"figure": request.figure, "interactive": request.interactive}
        places |= {name: path for name, path in wanted.items() if path is not None}
    record = report.build_record(
        "landscape",
        [] if found is None else [_row(found)],
        arguments={**arguments_of(request), "map": list(request.maps)},
        seed=request.seed,
        device=subject.risk.device,
        checkpoint=subject.checkpoint,
        data=subject.data,
        files=places,
        notes=outcome.found.notes,
        **process.entries(outcome.failure),
    )

    def files() -> list[str]:
        # From the record, as hessprobe plot does later.
        written = [] if found is None else _draw(request, found, record)
        return [path for path in written if path not in places.values()]

    def show(console: Console) -> None:
        from hessprobe.cli import render

        render.print_line(console, f"{subject.title}, {request.directions}, seed {request.seed}")
        for text in _lines(request, outcome, places):
            render.print_line(console, text)

    deliver(record, request.json, show, files)


def _draw(request: LandscapeRequest, found: Landscape, record: dict[str, Any]) -> list[str]:
    if request.interactive is not None:
        from hessprobe.landscape.interactive import write_html
        from hessprobe.report.figures.landscape import title_of

        write_html(found, request.interactive, title=title_of(record))
    return skeleton.write_drawing(request, record, request.figure)


def _lines(request: LandscapeRequest, outcome: Outcome[Drawn], places: dict[str, str]) -> list[str]:
    found = outcome.found.landscape
    if found is None:
        from hessprobe.landscape.grid import interrupted_note, read_progress

        kept = read_progress(request.points)
        return [outcome.ending if kept is None else f"{outcome.ending}; {interrupted_note(request.points, *kept)}"]
    shape = " x ".join(str(len(values)) for values in found.axes)
    reused = found.done.size - found.evaluated
    text = f"{shape} points" + (f", {reused} of them found in {request.points}" if reused else "")
    lines = [text, f"loss at the checkpoint {found.values['loss'][found.center]:.6g}"]
    for name in found.values:
        finite = [value for value in found.values[name].flatten().tolist() if math.isfinite(value)]
        if finite:
            lines.append(f"{name} from {min(finite):.6g} to {max(finite):.6g}")
        if found.holes(name):
            lines.append(f"{name}: {found.holes(name)} of {found.done.size} points are not finite; drawn as holes")
    lines += outcome.found.notes
    return [*lines, *(f"wrote {path}" for path in places.values())]


def _row(found: Landscape) -> dict[str, Any]:
    """Return everything a figure needs; holes are null, and counted."""
    share = found.departure()
    trusted = None if share is None else float((share <= 0.1).mean())
    return {
        "directions": found.kind,
        "labels": list(found.labels),
        "lengths": list(found.lengths),
        "gram": found.gram.tolist(),
        "axes": [values.tolist() for values in found.axes],
        "center": list(found.center),
        "values": {name: values.tolist() for name, values in found.values.items()},
        "holes": {name: found.holes(name) for name in found.values},
        "marks": [
            {"name": name, "coordinates": list(place), "loss": loss if loss is None or math.isfinite(loss) else None}
            for name, place, loss in found.marks
        ],
        "quadratic": None if found.slope is None or found.bend is None else {
            "slope": found.slope.tolist(), "bend": found.bend.tolist(), "within_10_percent": trusted,
        },
        "facts": found.facts,
        "points_computed": found.evaluated,
    }  # fmt: skip
