"""``hessprobe compare``: the measures of several checkpoints, and the error of every difference between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hessprobe.cli import failures, journaling, options, signals
from hessprobe.cli.commands.compare_work import Outcome, collect, members_of
from hessprobe.cli.opening import opens_foreign
from hessprobe.cli.source import check_source, settings_of
from hessprobe.comparison.names import DEFAULT_MEASURES, FEWEST, MEASURES
from hessprobe.measures import UNIVERSAL
from hessprobe.models.spec import AS_FOUND, Opening

if TYPE_CHECKING:
    from hessprobe.measures import MeasureSettings

DEFAULT_PROBES = 64
_FORMATS = (".png", ".svg", ".pdf")
_INPUT, _NUMBERS, _OUTPUT = "What is measured", "How well", "Output"

Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        "-m",
        metavar="NAME",
        rich_help_panel=_INPUT,
        help="What to measure; repeat it for more, or put commas between. One of "
        f"{', '.join(MEASURES[: -len(UNIVERSAL)])}, or a "
        f"(phi, psi, mu) measure {', '.join(UNIVERSAL)}. Default: {', '.join(DEFAULT_MEASURES)}.",
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        metavar="FILE",
        rich_help_panel=_INPUT,
        help="The checkpoint that the others are compared with; the first by default.",
    ),
]
Correlate = Annotated[
    bool,
    typer.Option(
        "--correlate",
        rich_help_panel=_INPUT,
        help=f"Rank correlation of each measure with the generalisation gap; {FEWEST} checkpoints or more.",
    ),
]
Probes = Annotated[
    int,
    typer.Option("--probes", metavar="N", rich_help_panel=_NUMBERS, help="Random probes, the same for every file."),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FIGURE",
        rich_help_panel=_OUTPUT,
        help="Draw the differences: .png, .svg or .pdf; the scatter plots of --correlate go beside it.",
    ),
]


@dataclass(frozen=True)
class Request:
    """The options of ``hessprobe compare``; None where the user left the choice to the program."""

    ckpts: list[str]
    measure: list[str] | None
    baseline: str | None
    correlate: bool
    operator: str
    split: str | None
    examples: int | None
    params: list[str] | None
    batchnorm: str | None
    objective: str | None
    model: str | None
    data: str | None
    probes: int
    confidence: float
    data_error: bool
    shift: float | None
    seed: int
    batch_size: int | None
    device: str | None
    dtype: str | None
    engine: str
    memory: str | None
    out: str | None
    json: str | None
    csv: str | None
    debug: bool
    opening: Opening = AS_FOUND

    @property
    def names(self) -> tuple[str, ...]:
        """The measures asked for, each once, in order."""
        return tuple(dict.fromkeys(options.separated(self.measure) or DEFAULT_MEASURES))


@opens_foreign
def compare(
    ckpts: Annotated[
        list[str],
        typer.Argument(metavar="CKPT", help="Two checkpoints or more, or a folder of them."),
    ],
    measure: Measures = None,
    baseline: Baseline = None,
    correlate: Correlate = False,
    operator: options.Operator = "hessian",
    split: options.Split = None,
    examples: options.Examples = None,
    params: options.Params = None,
    batchnorm: options.BatchNorm = None,
    objective: options.ObjectiveSpec = None,
    model: options.ForeignModel = None,
    data: options.ForeignData = None,
    probes: Probes = DEFAULT_PROBES,
    confidence: options.Confidence = 0.95,
    data_error: options.DataError = True,
    shift: options.Shift = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    engine: options.Engine = "auto",
    memory: options.Memory = None,
    out: Out = None,
    json: options.Json = None,
    csv: options.Csv = None,
    debug: options.Debug = False,
    opening: Opening = AS_FOUND,
) -> None:
    """Compare checkpoints on the same data and probes; every difference comes with its own, smaller, error.

    Example: hessprobe compare sgd.pt sam.pt --measure frob --measure adaptive-trace
    """
    run(Request(**locals()))


def run(request: Request) -> None:
    """Compare as asked; print and write what was found, also when something ended the work early."""
    check(request)
    members = members_of(request)
    outcome = Outcome(members)
    named = [*(member.path for member in members), str(request.objective or "").rpartition(":")[0]]
    with journaling.kept(request.json, request, journaling.facts_of_files(named)):
        collect(request, outcome, _settings(request))

    from hessprobe.cli.commands.compare_output import publish

    with signals.shielded():
        publish(request, outcome)
    failures.leave(outcome.failure, request.debug)
    journaling.finished(request.json)
    for sentence in outcome.broken:
        failures.say(f"error: {sentence}")
    if outcome.broken:
        raise typer.Exit(failures.FAILED)


def check(request: Request) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    for name in request.names:
        options.choice("--measure", name, MEASURES)
    options.choice("--operator", request.operator, options.OPERATORS)
    options.positive("--confidence", request.confidence, below=1)
    options.positive("--shift", request.shift)
    options.at_least("--probes", request.probes, 2)
    check_source(request)
    if request.out is not None and Path(request.out).suffix.lower() not in _FORMATS:
        raise failures.UsageError(f"--out must end in {', '.join(_FORMATS)}; got {request.out!r}.")
    options.check_outputs(out=request.out, json=request.json, csv=request.csv)


def _settings(request: Request) -> MeasureSettings:
    return settings_of(request, n_probes=request.probes, shift=request.shift)
