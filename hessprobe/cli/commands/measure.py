"""``hessprobe measure``: curvature numbers of a checkpoint, each with error and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hessprobe.cli import options, process, skeleton
from hessprobe.cli.options import check_source, settings_of
from hessprobe.cli.skeleton import Outcome, arguments_of, carry_out, declared, deliver, print_unfinished, watched
from hessprobe.measures import NAMES, TABLE, taking
from hessprobe.measures.table import GROUPINGS
from hessprobe.models.spec import AS_FOUND, Opening

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.cli.load import Subject
    from hessprobe.measures import MeasureSettings, Result
    from hessprobe.objective import EmpiricalRisk
    from hessprobe.objective.base import Objective
    from hessprobe.objective.sharded import ShardedRisk
    from hessprobe.records.typed import MeasureRecord

    Inputs = tuple[Subject, Objective, MeasureSettings]

# Settings of the size of a sample, and their options.
_SIZES = {"n_probes": "--probes", "rtol": "--rtol"}


@dataclass(frozen=True)
class MeasureRequest:
    """The options of ``hessprobe measure``; None where the user left the choice to the program."""

    ckpt: options.Checkpoint = None
    measure: options.Measures = None
    operator: options.AnyOperator = "hessian"
    split: options.Split = None
    examples: options.Examples = None
    params: options.Params = None
    batchnorm: options.BatchNorm = None
    per_layer: options.PerLayer = False
    group: options.Group = None
    per_batch: options.PerBatch = False
    objective: options.ObjectiveSpec = None
    model: options.ForeignModel = None
    data: options.ForeignData = None
    rtol: options.Rtol = None
    probes: options.Probes = None
    confidence: options.Confidence = 0.95
    data_error: options.DataError = True
    k: options.K = None
    shift: options.Shift = None
    radius: options.Radius = None
    seed: options.Seed = 0
    batch_size: options.BatchSize = None
    device: options.Device = None
    dtype: options.Dtype = None
    engine: options.Engine = "auto"
    memory: options.Memory = None
    shard: options.Shard = None
    dry_run: options.DryRun = False
    json: options.Json = None
    csv: options.Csv = None
    out: options.Figure = None
    width: options.Width = None
    style: options.FigureStyle = "paper"
    report: options.PageFile = None
    debug: options.Debug = False
    opening: Opening = AS_FOUND

    @property
    def names(self) -> tuple[str, ...]:
        """The measures asked for, each once, in order."""
        return tuple(dict.fromkeys(options.separated(self.measure) or options.DEFAULT_MEASURES))

    @property
    def tolerance(self) -> float:
        """The relative half-width to reach."""
        return options.DEFAULT_RTOL if self.rtol is None else self.rtol


@declared(MeasureRequest, opening=options.OPENING)
def measure(request: MeasureRequest) -> None:
    """Measure the curvature of a checkpoint; every number comes with its error and its cost.

    Example: hessprobe measure digits.pt --measure frob --measure trace
    """
    run(request)


def run(request: MeasureRequest) -> None:
    """Measure as asked; print and write what was found, also when something ended the work early."""
    if request.dry_run:
        carry_out(request, check=check, opened=opened, collect=foresee, publish=tell)
        return
    carry_out(request, check=check, opened=opened, collect=collect, publish=publish, facts=facts)


def foresee(request: MeasureRequest, inputs: Inputs, outcome: Outcome[list[Any]]) -> None:
    """Make the measurement on the first batch, for what all of it will take."""
    from hessprobe.benchmarks.rehearsal import rehearse

    _, risk, settings = inputs
    outcome.found.append(rehearse(request.names, risk, settings))


def tell(request: MeasureRequest, inputs: Inputs, outcome: Outcome[list[Any]]) -> None:
    """Print what the measurement will take, or its JSON."""
    if outcome.found:
        from hessprobe.cli import foreseen

        foreseen.deliver(outcome.found[0], inputs[0].title, request.json)


def check(request: MeasureRequest) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    if request.dry_run and request.shard is not None:
        raise process.UsageError("--dry-run is of one process; got --shard as well. Leave one of them out.")
    for name in request.names:
        options.choice("--measure", name, TABLE)
    options.choice("--operator", request.operator, options.ANY_OPERATOR)
    if request.group is not None:
        options.choice("--group", request.group, GROUPINGS)
    options.positive("--rtol", request.rtol, below=1)
    options.positive("--confidence", request.confidence, below=1)
    options.positive("--shift", request.shift)
    options.positive("--radius", request.radius)
    for option, number, minimum in (
        ("--probes", request.probes, 2),
        ("--k", request.k, 1),
    ):
        options.at_least(option, number, minimum)
    if request.shard is not None:
        options.choice("--shard", request.shard, ("fsdp",))
        if process.rank_count() == 1:
            raise process.UsageError(
                "--shard needs several processes to spread the weights over; got one. Start it with torchrun "
                "--nproc-per-node N -m hessprobe measure, or leave it out."
            )
    check_source(request)
    skeleton.check_drawing(request, request.out)
    if request.out is not None and not draws(request):
        raise process.UsageError(
            f"--out must have something to draw; got {', '.join(request.names)}, single numbers. Add --per-layer, "
            "--k 8 or --measure density, or write the page with --report."
        )
    if request.dry_run and (request.out or request.csv or request.report):
        raise process.UsageError(
            "--dry-run measures nothing that could be drawn or listed; got --out, --csv or --report. Leave it out."
        )
    options.check_outputs(json=request.json, csv=request.csv, out=request.out, report=request.report)
    for note in idle_options(request):
        process.note(note)


def draws(request: MeasureRequest) -> bool:
    """Return whether any measure asked for gives more than a number: layers, several eigenvalues, a density."""
    entries = [TABLE[name] for name in request.names]
    return (
        any("density" in entry.drawn for entry in entries)
        or (request.per_layer and any(entry.layers for entry in entries))
        or ((request.k or 1) > 1 and any("eigenvalues" in entry.drawn for entry in entries))
    )


def idle_options(request: MeasureRequest) -> list[str]:
    """Return one sentence for every option that was given and changes nothing for the measures asked for."""
    wanted = frozenset(request.names)
    given = {
        "shift": request.shift is not None,
        "k": request.k is not None,
        "n_probes": request.probes is not None,
        "rtol": request.rtol is not None,
        "radius": request.radius is not None,
    }
    idle = {}
    for option in (each for each, there in given.items() if there and not wanted & frozenset(taking(each))):
        # Of what nearly all measures read the (phi, psi, mu) ones go without saying.
        readers = taking(option, NAMES if option in _SIZES else TABLE)
        idle[_SIZES.get(option, f"--{option}")] = readers
    if (request.per_layer or request.group) and not any(TABLE[name].layers for name in wanted):
        idle["--group" if request.group else "--per-layer"] = tuple(
            name for name, entry in NAMES.items() if entry.layers
        )
    if request.per_batch and not any(name.endswith("lambda-max") for name in wanted):
        idle["--per-batch"] = tuple(name for name in NAMES if name.endswith("lambda-max"))
    notes = [f"{option} has no effect here; it is for {', '.join(names)}" for option, names in idle.items()]
    if given["n_probes"] and given["rtol"] and wanted & frozenset(taking("n_probes")):
        notes.append("--rtol has no effect here; --probes fixes the size of the sample")
    return notes


def opened(request: MeasureRequest) -> tuple[Inputs, list[Result]]:
    """Return the network and how to measure it, and what is measured, still empty."""
    from hessprobe.cli.load import load_subject

    settings = settings_of(
        request,
        rtol=request.tolerance,
        n_probes=request.probes,
        per_layer=request.per_layer,
        group=request.group,
        per_batch=request.per_batch,
        shift=request.shift,
        radius=request.radius,
        **({} if request.k is None else {"k": request.k}),
    )
    subject = load_subject(request, request.ckpt)
    if request.k is not None and request.k > subject.risk.dim:
        raise process.UsageError(
            f"--k must be at most the number of parameters, {subject.risk.dim}; got {request.k}. Ask for fewer."
        )
    return (subject, subject.risk if request.shard is None else _spread(subject.risk), settings), []


def _spread(risk: EmpiricalRisk) -> ShardedRisk:
    """Return the risk with its weights spread over the ranks that measure it together."""
    from hessprobe.hvp import pool
    from hessprobe.objective.sharded import spread

    with process.as_usage():
        found = spread(risk)
    ranks = pool.current()
    if ranks is not None:
        for index, examples in enumerate(found.shares):
            ranks.note(index, examples)
    return found


def facts(request: MeasureRequest, inputs: Inputs) -> dict[str, Any]:  # noqa: ARG001  # as other commands have it
    """Return what decides the numbers beside the options."""
    return skeleton.facts([inputs[0]])


def collect(request: MeasureRequest, inputs: Inputs, outcome: Outcome[list[Result]]) -> None:
    """Measure one after the other, keeping each result as it comes."""
    from hessprobe.measures.registry import measure_all
    from hessprobe.records.record import begin_memory

    _, risk, settings = inputs
    begin_memory()
    with watched(outcome) as report:
        for result in measure_all(request.names, risk, settings, report):
            outcome.found.append(result)


def publish(request: MeasureRequest, inputs: Inputs, outcome: Outcome[list[Result]]) -> None:
    """Print the tables and write record and CSV of everything that is known."""
    from hessprobe.records import typed
    from hessprobe.records.typed import Measured, MeasureRecord
    from hessprobe.report import write_csv

    subject = inputs[0]
    found = MeasureRecord(
        results=tuple(Measured.of(result, request.confidence) for result in outcome.found),
        checkpoint=subject.checkpoint,
        data=subject.data,
        **process.entries(outcome.failure),
        partial=outcome.partial(),
    )
    record = typed.build(
        "measure",
        found,
        arguments={**arguments_of(request), "measure": list(request.names), "rtol": request.tolerance},
        seed=request.seed,
        device=subject.risk.device,
    )

    def files() -> list[str]:
        if request.csv is not None:
            write_csv(request.csv, record)
        return skeleton.write_drawing(request, record, request.out)

    def show(console: Console) -> None:
        from hessprobe.cli import render

        render.print_line(console, f"{subject.title}, {request.operator}, seed {request.seed}")
        _print(found, record["results"], request.confidence, console)
        print_unfinished(outcome, console)

    deliver(record, request.json, show, files)


def _print(found: MeasureRecord, rows: list[dict[str, Any]], confidence: float, console: Console) -> None:
    from hessprobe.cli import render

    if rows:
        render.results_table(found.results, confidence, console)
    for one in found.results:
        if one.layers:
            render.print_line(console, "")
            render.layers_table(one, console)
    for line in render.eigenvalue_lines(rows, render.plus_minus_for(console)):
        render.print_line(console, line)
    for row in rows:
        for remark in render.remarks(row):
            render.print_line(console, f"{row['measure']}: {remark}", style="dim")
    for engine in render.engines(rows):
        render.print_line(console, f"products by the {engine} engine", style="dim")
    for line in render.costs(rows):
        render.print_line(console, line, style="dim")
