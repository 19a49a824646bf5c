"""``hessprobe compare``: the measures of several checkpoints, and the error of every difference between them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe import files
from hessprobe.cli import completion, options, process, skeleton
from hessprobe.cli.options import check_source, settings_of
from hessprobe.cli.skeleton import Outcome, Report, arguments_of, carry_out, declared, deliver, watched
from hessprobe.comparison.names import DEFAULT_MEASURES, FEWEST, MEASURES
from hessprobe.measures import NAMES, UNIVERSAL
from hessprobe.models.spec import AS_FOUND, Opening

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.measures import MeasureSettings, Result
    from hessprobe.records import compare as kept
    from hessprobe.records.compare import CompareRecord

    Inputs = tuple[list["Member"], MeasureSettings]

DEFAULT_PROBES = 64
_INPUT, _NUMBERS, _OUTPUT = "What is measured", "How well", "Output"

Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        "-m",
        metavar="NAME",
        autocompletion=completion.measures_of(MEASURES),
        rich_help_panel=_INPUT,
        help="What to measure; repeat it for more, or put commas between. One of "
        f"{', '.join(NAMES)}, or a "
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


@dataclass(frozen=True)
class CompareRequest:
    """The options of ``hessprobe compare``; None where the user left the choice to the program."""

    ckpts: Annotated[
        list[str],
        typer.Argument(metavar="CKPT", help="Two checkpoints or more, or a folder of them."),
    ]
    measure: Measures = None
    baseline: Baseline = None
    correlate: Correlate = False
    operator: options.Operator = "hessian"
    split: options.Split = None
    examples: options.Examples = None
    params: options.Params = None
    batchnorm: options.BatchNorm = None
    objective: options.ObjectiveSpec = None
    model: options.ForeignModel = None
    data: options.ForeignData = None
    probes: Probes = DEFAULT_PROBES
    confidence: options.Confidence = 0.95
    data_error: options.DataError = True
    shift: options.Shift = None
    seed: options.Seed = 0
    batch_size: options.BatchSize = None
    device: options.Device = None
    dtype: options.Dtype = None
    engine: options.Engine = "auto"
    memory: options.Memory = None
    out: options.Figure = None
    width: options.Width = None
    style: options.FigureStyle = "paper"
    report: options.PageFile = None
    json: options.Json = None
    csv: options.Csv = None
    debug: options.Debug = False
    opening: Opening = AS_FOUND

    @property
    def names(self) -> tuple[str, ...]:
        """The measures asked for, each once, in order."""
        return tuple(dict.fromkeys(options.separated(self.measure) or DEFAULT_MEASURES))


@dataclass
class Member:
    """One checkpoint, and what is known of it.

    Attributes:
        path: of the file.
        label: short and unlike all others.
        title: one line for a reader, empty until it is loaded.
        checkpoint, data: entries of the record.
        dim: number of parameters.
        device: where it was measured.
        results: finished measures.
        rescalings: kinds of rescaling that act in it; None where that is not known.
        gaps: ``loss`` and ``accuracy`` gaps between test and training, where asked for and known.
        failures: what went wrong, one sentence each.
    """

    path: str
    label: str
    title: str = ""
    checkpoint: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    dim: int = 0
    device: str = ""
    results: list[Result] = field(default_factory=list)
    rescalings: tuple[str, ...] | None = None
    gaps: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def entry(self) -> kept.Member:
        """Return what the record keeps of it."""
        from hessprobe.records import compare as kept

        return kept.Member(
            label=self.label,
            path=self.path,
            dim=self.dim or None,
            checkpoint=self.checkpoint,
            rescalings=self.rescalings,
            gaps=dict(self.gaps) or None,
            errors=tuple(self.failures),
        )


@declared(CompareRequest, opening=options.OPENING)
def compare(request: CompareRequest) -> None:
    """Compare checkpoints on the same data and probes; every difference comes with its own, smaller, error.

    Example: hessprobe compare sgd.pt sam.pt --measure frob --measure adaptive-trace
    """
    run(request)


def run(request: CompareRequest) -> None:
    """Compare as asked; print and write what was found, also when something ended the work early."""
    outcome = carry_out(request, check=check, opened=opened, collect=collect, publish=publish, facts=facts)
    broken = broken_in(outcome)
    for sentence in broken:
        process.say(f"error: {sentence}")
    if broken:
        raise typer.Exit(process.FAILED)


def check(request: CompareRequest) -> None:
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
    skeleton.check_drawing(request, request.out)
    options.check_outputs(out=request.out, json=request.json, csv=request.csv, report=request.report)


def members_of(request: CompareRequest) -> list[Member]:
    """Return the files to compare, the baseline first, folders replaced by the checkpoints in them.

    Raises:
        UsageError: fewer than two (five to correlate), a file twice, a folder without any, an unknown baseline.
    """
    paths = [path for given in request.ckpts for path in _expanded(given)]
    places: dict[Path, str] = {}
    for path in paths:
        place = files.real(path)
        if place in places:
            raise process.UsageError(
                f"CKPT must be different files; got {path!r} twice. A checkpoint does not differ from itself."
            )
        places[place] = path
    fewest = FEWEST if request.correlate else 2
    if len(paths) < fewest:
        why = "--correlate needs that many for an interval" if request.correlate else "one has nothing to differ from"
        raise process.UsageError(
            f"CKPT must be at least {fewest} checkpoints, or a folder of them; got {len(paths)}. Name more: {why}."
        )
    first = paths[0]
    if request.baseline is not None:
        first = places.get(files.real(request.baseline), "")
        if not first:
            raise process.UsageError(
                f"--baseline must be one of the checkpoints compared; got {request.baseline!r}. Name it as CKPT too."
            )
    ordered = [first, *(path for path in paths if path != first)]
    return [Member(path, label) for path, label in zip(ordered, labels(ordered), strict=True)]


def labels(paths: list[str]) -> list[str]:
    """Return the shortest tails of paths, without their endings, that tell all of them apart."""
    parts = [files.real(path).with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(each[-depth:]) for each in parts]
        if len(set(found)) == len(found):
            return found
    return list(paths)


def _expanded(given: str) -> list[str]:
    from hessprobe.models.progress import checkpoints_in, is_checkpoint_folder

    folder = Path(given)
    if not folder.is_dir() or is_checkpoint_folder(folder):
        return [given]
    inside = list(map(str, checkpoints_in(folder)))
    if not inside:
        raise process.UsageError(f"CKPT must be a checkpoint or a folder of them; got {given!r} without any.")
    return inside


def opened(request: CompareRequest) -> tuple[Inputs, list[Member]]:
    """Return the checkpoints, of which nothing is known yet, and how to measure them."""
    members = members_of(request)
    options.require_there(member.path for member in members)
    return (members, settings_of(request, n_probes=request.probes, shift=request.shift)), members


def facts(request: CompareRequest, inputs: Inputs) -> dict[str, Any]:
    """Return what decides the numbers beside the options."""
    members, _ = inputs
    named = [*(member.path for member in members), str(request.objective or "").rpartition(":")[0]]
    return skeleton.facts_of_files(named)


def collect(request: CompareRequest, inputs: Inputs, outcome: Outcome[list[Member]]) -> None:
    """Measure one checkpoint after the other; what fails in one is written down, and the others go on."""
    from hessprobe.measures import Progress

    members, settings = inputs
    with watched(outcome) as report:
        for index, member in enumerate(members):
            report(Progress(index, len(members), stage="checkpoints"), member.label)
            try:
                _measure(request, members, member, settings, report)
            except Exception as error:
                if process.asked():
                    raise
                member.failures.append(f"{member.path}: {process.one_line(error).removeprefix(member.path + ' ')}")


def _measure(
    request: CompareRequest, members: list[Member], member: Member, settings: MeasureSettings, report: Report
) -> None:
    from hessprobe.cli.load import load_subject
    from hessprobe.comparison.comparing import measure_each
    from hessprobe.comparison.rescaling import rescalings
    from hessprobe.measures import Result

    subject = load_subject(request, member.path, quiet=member is not members[0])
    _require_another_file(members, subject.checkpoint)
    _require_same_data(members, subject.data)
    member.device = str(subject.risk.device)
    member.title, member.checkpoint, member.data = subject.title, subject.checkpoint, subject.data
    member.dim = subject.risk.dim
    twin = next((one for one in members if one is not member and _alike(one, member)), None)
    member.rescalings = rescalings(subject.risk) if twin is None else twin.rescalings
    for found in measure_each(subject.risk, request.names, settings, report):
        if isinstance(found, Result):
            member.results.append(found)
        else:
            member.failures.append(f"{member.path}: {found[0]}: {process.one_line(found[1])}")
    if request.correlate:
        member.gaps = gaps_of(member.checkpoint)


def gaps_of(checkpoint: dict[str, Any] | None) -> dict[str, float]:
    """Return the generalisation gaps that a checkpoint of ``hessprobe train`` has recorded.

    ``loss`` is test - training loss, ``accuracy`` training - test accuracy, so that either is large where a network
    does worse on new data.

    Raises:
        HessprobeError: none are recorded.
    """
    from hessprobe.errors import HessprobeError

    metrics = (checkpoint or {}).get("metrics", {})
    if not all(isinstance(metrics.get(f"{split}_loss"), float) for split in ("train", "test")):
        raise HessprobeError(
            "holds no training and test loss, which --correlate needs. Make checkpoints with hessprobe train."
        )
    gaps = {"loss": metrics["test_loss"] - metrics["train_loss"]}
    if all(isinstance(metrics.get(f"{split}_accuracy"), float) for split in ("train", "test")):
        gaps["accuracy"] = metrics["train_accuracy"] - metrics["test_accuracy"]
    return gaps


def _alike(one: Member, other: Member) -> bool:
    """Return whether two networks have one architecture, so that the same rescalings act in both."""
    known = [(member.checkpoint or {}).get("model") for member in (one, other)]
    return one.dim == other.dim > 0 and known[0] is not None and known[0] == known[1]


def _require_another_file(members: list[Member], checkpoint: dict[str, Any] | None) -> None:
    from hessprobe.errors import CheckpointError

    content = (checkpoint or {}).get("sha256")
    for other in members:
        if content is not None and content == (other.checkpoint or {}).get("sha256"):
            raise CheckpointError(f"holds the same bytes as {other.path}, from which it cannot differ. Leave it out.")


def _require_same_data(members: list[Member], data: dict[str, Any]) -> None:
    from hessprobe.errors import DataError

    for other in members:
        if other.data is not None and _content(other.data) != _content(data):
            here, there = (f"{one.get('name', 'objective')}, {_content(one)[:12]}" for one in (data, other.data))
            raise DataError(
                f"measures on other data ({here}) than {other.path} ({there}), so that differences would mix data and "
                "weights. Compare those of one data set, or fix the data with --objective."
            )


def _content(data: dict[str, Any]) -> str:
    """Return a hash of the data: of the data set, as models take it in several layouts, else of the batches."""
    return str(data.get("sha256") or data["fingerprint"])


def broken_in(outcome: Outcome[list[Member]]) -> list[str]:
    """Return what went wrong, one sentence each."""
    own = [sentence for member in outcome.found for sentence in member.failures]
    return own + ([process.one_line(outcome.failure)] if isinstance(outcome.failure, Exception) else [])


def publish(request: CompareRequest, inputs: Inputs, outcome: Outcome[list[Member]]) -> None:  # noqa: ARG001  # alike
    """Print the tables and write record and CSV of everything that is known."""
    from hessprobe.records import typed

    found = record_of(request, outcome)
    record = typed.build(
        "compare",
        found,
        arguments={**arguments_of(request), "measure": list(request.names)},
        seed=request.seed,
        device=next((one.device for one in reversed(outcome.found) if one.device), "cpu"),
    )

    def files() -> list[str]:
        from hessprobe.report.comparison import write_comparison_csv

        if request.csv is not None:
            write_comparison_csv(request.csv, found)
        return skeleton.write_drawing(request, record, request.out)

    def show(console: Console) -> None:
        from hessprobe.cli import render
        from hessprobe.cli.commands import compare_tables as tables

        known = [member for member in outcome.found if member.results]
        if known:
            count = f"{request.probes} probes, the same for all"
            render.print_line(console, f"{known[0].title}, {request.operator}, seed {request.seed}, {count}")
            tables.show(found, request.names, request.confidence, console)
        if outcome.ending:
            render.print_line(console, outcome.ending)

    deliver(record, request.json, show, files)


def record_of(request: CompareRequest, outcome: Outcome[list[Member]]) -> CompareRecord:
    """Return what is kept: values, differences, correlations, and what they mean."""
    from hessprobe import comparison
    from hessprobe.comparison.differences import correlate
    from hessprobe.comparison.rescaling import rescaling_of
    from hessprobe.records import compare as kept
    from hessprobe.records.typed import Measured
    from hessprobe.report.comparison import correlation_of, difference_of

    level, broken = request.confidence, broken_in(outcome)
    known = [member for member in outcome.found if member.results]
    values = {member.label: {one.measure: one.estimate for one in member.results} for member in known}
    lines = comparison.compare_values(values, known[0].label, confidence=level) if len(known) > 1 else []
    gaps = {member.label: member.gaps for member in known}
    found = correlate(values, gaps, confidence=level, seed=request.seed) if request.correlate else ()
    rescaling = rescaling_of({member.label: member.rescalings for member in known}, request.names) if known else None
    return kept.CompareRecord(
        results=tuple(
            kept.Value(checkpoint=member.label, measured=Measured.of(result, level))
            for member in known
            for result in member.results
        ),
        data=known[0].data if known else None,
        checkpoints=tuple(member.entry() for member in outcome.found),
        baseline=known[0].label if known else None,
        differences=tuple(difference_of(line, level) for line in lines),
        correlations=tuple(map(correlation_of, found)) if request.correlate else None,
        rescaling=None if rescaling is None else kept.Rescaling(**asdict(rescaling), sentence=rescaling.sentence),
        flags=("interrupted",) if outcome.interrupted else ("failed",) if broken else (),
        errors=tuple(broken) or None,
    )
