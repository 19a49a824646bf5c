"""``hessprobe bench``: what products, optimizer steps, trained optimizers and landscapes cost on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import failures, options, threads
from hessprobe.cli.commands import bench_tables
from hessprobe.cli.skeleton import Outcome, carry_out, declared

if TYPE_CHECKING:
    import torch

_NAMES = ("mlp", "resnet20", "gpt")
_SUITES = ("products", "steps", "optimizers", "landscapes")

Rows = list[dict[str, Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchRequest:
    """The options of ``hessprobe bench``."""

    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="products: Hessian-vector products; steps: SAM steps against other packages; "
            "optimizers: train and measure every optimizer; landscapes: points of a plane.",
        ),
    ] = "products"
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="mlp, resnet20 or gpt; all by default.")
    ] = None
    rounds: Annotated[int, typer.Option("--rounds", help="Interleaved rounds.")] = 9
    optimizer: Annotated[
        list[str] | None, typer.Option("--optimizer", metavar="NAME", help="For optimizers: which; all by default.")
    ] = None
    seeds: Annotated[int, typer.Option("--seeds", help="For optimizers: runs of each.")] = 3
    jobs: Annotated[int, typer.Option("--jobs", help="For optimizers: runs side by side.")] = 1
    device: options.Device = None
    json: options.Json = None
    markdown: Annotated[str | None, typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown.")] = (
        None
    )
    resume: Annotated[
        bool, typer.Option("--resume", help="For optimizers: keep the runs that are in the file of --json already.")
    ] = False
    debug: options.Debug = False

    @property
    def cases(self) -> tuple[str, ...]:
        """The networks on which products are timed, each once, in order."""
        return tuple(dict.fromkeys(self.case or _NAMES))

    @property
    def arguments(self) -> dict[str, Any]:
        """The options that the suite reads, for its record."""
        if self.suite == "products":
            return {"case": list(self.cases), "rounds": self.rounds, "device": self.device}
        names = ("suite", "rounds", "optimizers", "seeds", "jobs", "json", "markdown", "resume")
        return {name: getattr(self, name, self.optimizer or ()) for name in names}


@declared(BenchRequest)
def bench(request: BenchRequest) -> None:
    """Time Hessian-vector products, optimizer steps or points of landscapes, side by side in one run.

    Example: hessprobe bench --case mlp --rounds 5
    """
    carry_out(request, check=check, opened=opened, collect=collect, publish=publish)


def check(request: BenchRequest) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    options.choice("--suite", request.suite, _SUITES)
    if request.suite == "products":
        for name in request.cases:
            options.choice("--case", name, _NAMES)
        options.at_least("--rounds", request.rounds, 1)
    else:
        options.at_least("--rounds", request.rounds, 2)
        options.at_least("--seeds", request.seeds, 1)
        options.at_least("--jobs", request.jobs, 1)
    options.check_outputs(json=request.json, markdown=request.markdown)
    if request.suite == "optimizers":
        from hessprobe.benchmarks import family

        known = tuple(family.optimizer_names())
        for name in request.optimizer or ():
            options.choice("--optimizer", name, known)


def opened(request: BenchRequest) -> tuple[torch.device, Rows]:
    """Return where it is timed, and the rows of the record, still none."""
    from hessprobe.cli.load import resolve_device

    threads.settle()
    return resolve_device(request.device if request.suite == "products" else "cpu"), []


def collect(request: BenchRequest, device: torch.device, outcome: Outcome[Rows]) -> None:
    """Time or train as asked, adding rows as they come."""
    from hessprobe.cli.progress import status_line

    suites = {"steps": _steps, "optimizers": _optimizers, "landscapes": _landscapes}
    with status_line() as report:
        if request.suite == "products":
            _products(request, device, outcome.found, report)
        else:
            suites[request.suite](request, outcome.found, report)


def publish(request: BenchRequest, device: torch.device, outcome: Outcome[Rows]) -> None:
    """Print the table, and write it and the record of everything that was finished."""
    from hessprobe import files, report

    rows, products = outcome.found, request.suite == "products"
    if rows or not products:
        ended: dict[str, Any] = failures.entries(outcome.failure)
        if products:
            ended = {"flags": [outcome.ending] if outcome.ending else None}
        record = _record(request, device, rows, ended)
        text = _table(request, outcome, record["environment"]) if rows else ""
        if request.markdown is not None and text:
            files.write_atomically(request.markdown, lambda stream: stream.write(text.encode()))
        _write(request, record)
        sys.stdout.write(report.to_json(record) if request.json == "-" else text)
    if outcome.interrupted and products:
        timed = {row["case"] for row in rows}
        failures.say(f"interrupted; not timed: {', '.join(name for name in request.cases if name not in timed)}")
    elif outcome.interrupted:
        where = f"; what is known is in {request.json}" if request.json not in (None, "-") else ""
        failures.say(f"interrupted after {bench_tables.count(rows)} results{where}")


def _record(request: BenchRequest, device: Any, rows: Rows, ended: Mapping[str, Any]) -> dict[str, Any]:
    from hessprobe import report

    return report.build_record("bench", [], arguments=request.arguments, seed=0, device=device, timings=rows, **ended)


def _write(request: BenchRequest, record: dict[str, Any]) -> None:
    from hessprobe import report

    if request.json not in (None, "-"):
        report.write_record(str(request.json), record)


def _table(request: BenchRequest, outcome: Outcome[Rows], machine: dict[str, Any]) -> str:
    rows = outcome.found
    if request.suite == "products":
        from hessprobe.benchmarks import CASES

        timed = {row["case"] for row in rows}
        return bench_tables.products(
            rows, {name: CASES[name].title for name in request.cases if name in timed}, machine
        )
    text = bench_tables.page(
        request.suite, rows, rounds=request.rounds, seeds=request.seeds, incomplete=outcome.failure is not None
    )
    return f"{text}\ntorch {machine['torch']}, {machine['threads']} threads, {machine['device']}.\n"


def _products(request: BenchRequest, device: torch.device, rows: Rows, report: Say) -> None:
    from hessprobe import benchmarks

    for name in request.cases:
        case = benchmarks.CASES[name]
        timings = benchmarks.time_products(case, rounds=request.rounds, device=device, report=report)
        rows += [timing.row() for timing in timings]


def _steps(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import optimizers

    for name in optimizers.SHAPES:
        report(f"parameters {name}")
        rows += [timing.row() for timing in optimizers.time_shapes(name, rounds=request.rounds)]
    report(optimizers.NETWORK)
    rows += [timing.row() for timing in optimizers.time_network(rounds=request.rounds)]


def _optimizers(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import family

    names = list(dict.fromkeys(request.optimizer or ())) or family.optimizer_names()
    report("timing steps")
    times = family.time_optimizers(names, rounds=request.rounds)
    timed = {name: {"time_of_a_step": times[name][0], "time_quartiles": times[name][1:]} for name in names}

    def finished(run: family.TrainedOptimizer, done: int, total: int) -> None:
        rows.append({**run.row(), **timed[run.optimizer]})
        report(f"{done} of {total}: {run.optimizer}, seed {run.seed}")
        # What ends this program without a word leaves something to --resume from.
        _write(request, _record(request, "cpu", rows, {"flags": ["interrupted"]}))

    options_of_a_resumed_run: dict[str, Any] = {}
    if request.resume:
        known = _known(request.json)
        for run in known:
            if run.optimizer in timed and run.seed < request.seeds and run.epochs == family.EPOCHS:
                rows.append({**run.row(), **timed[run.optimizer]})
        options_of_a_resumed_run["known"] = known
    try:
        family.compare_optimizers(
            names, seeds=range(request.seeds), jobs=request.jobs, report=finished, **options_of_a_resumed_run
        )
    finally:
        order = {name: index for index, name in enumerate(names)}
        rows.sort(key=lambda row: (order[row["optimizer"]], row["seed"]))
        trained = {row["optimizer"] for row in rows}
        rows += [{"optimizer": name, "seed": None, **timed[name]} for name in names if name not in trained]


def _known(path: str | None) -> list[Any]:
    """Return the runs that a record of this suite holds, none where there is no such file."""
    from hessprobe import report
    from hessprobe.benchmarks import family

    if path in (None, "-") or not os.path.exists(str(path)):
        return []
    names = {each.name for each in fields(family.TrainedOptimizer)}
    rows = [row for row in report.read_record(str(path))["timings"] if row["seed"] is not None and "epochs" in row]
    return [family.TrainedOptimizer(**{key: row[key] for key in row if key in names}) for row in rows]


def _landscapes(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import landscapes

    for case in landscapes.CASES.values():
        rows += [timing.row() for timing in landscapes.time_planes(case, rounds=request.rounds, report=report)]
