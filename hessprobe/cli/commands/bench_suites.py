"""``hessprobe bench --suite steps|optimizers|landscapes``: optimizer steps, what optimizers find, landscapes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from hessprobe.cli import failures, options, signals
from hessprobe.cli.commands import bench_tables

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """The options of these suites."""

    suite: str
    rounds: int
    optimizers: tuple[str, ...]
    seeds: int
    jobs: int
    json: str | None
    markdown: str | None
    resume: bool = False


def run(request: Request, debug: bool) -> None:
    """Time or train as asked; what was finished before something ended the work is shown and written all the same."""
    _check(request)

    from hessprobe.cli.progress import status_line

    work = {"steps": _steps, "optimizers": _optimizers, "landscapes": _landscapes}[request.suite]
    rows: Rows = []
    failure: BaseException | None = None
    try:
        with status_line() as report:
            work(request, rows, report)
    except (KeyboardInterrupt, Exception) as error:
        failure = failures.ended_by(error)
    with signals.shielded():
        _publish(request, rows, failure)
    if isinstance(failure, KeyboardInterrupt):
        where = f"; what is known is in {request.json}" if request.json not in (None, "-") else ""
        failures.say(f"interrupted after {bench_tables.count(rows)} results{where}")
    failures.leave(failure, debug)


def _check(request: Request) -> None:
    options.at_least("--rounds", request.rounds, 2)
    options.at_least("--seeds", request.seeds, 1)
    options.at_least("--jobs", request.jobs, 1)
    options.check_outputs(json=request.json, markdown=request.markdown)
    if request.suite == "optimizers":
        from hessprobe.benchmarks import family

        known = tuple(family.optimizer_names())
        for name in request.optimizers:
            options.choice("--optimizer", name, known)


def _steps(request: Request, rows: Rows, report: Callable[[str], None]) -> None:
    from hessprobe.benchmarks import optimizers

    for name in optimizers.SHAPES:
        report(f"parameters {name}")
        rows += [timing.row() for timing in optimizers.time_shapes(name, rounds=request.rounds)]
    report(optimizers.NETWORK)
    rows += [timing.row() for timing in optimizers.time_network(rounds=request.rounds)]


def _optimizers(request: Request, rows: Rows, report: Callable[[str], None]) -> None:
    from hessprobe.benchmarks import family

    names = list(dict.fromkeys(request.optimizers)) or family.optimizer_names()
    report("timing steps")
    times = family.time_optimizers(names, rounds=request.rounds)
    timed = {name: {"time_of_a_step": times[name][0], "time_quartiles": times[name][1:]} for name in names}

    def finished(run: family.TrainedOptimizer, done: int, total: int) -> None:
        rows.append({**run.row(), **timed[run.optimizer]})
        report(f"{done} of {total}: {run.optimizer}, seed {run.seed}")

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
    import os

    from hessprobe import report
    from hessprobe.benchmarks import family

    if path in (None, "-") or not os.path.exists(str(path)):
        return []
    names = {each.name for each in fields(family.TrainedOptimizer)}
    rows = [row for row in report.read_record(str(path))["timings"] if row["seed"] is not None and "epochs" in row]
    return [family.TrainedOptimizer(**{key: row[key] for key in row if key in names}) for row in rows]


def _landscapes(request: Request, rows: Rows, report: Callable[[str], None]) -> None:
    from hessprobe.benchmarks import landscapes

    for case in landscapes.CASES.values():
        rows += [timing.row() for timing in landscapes.time_planes(case, rounds=request.rounds, report=report)]


def _publish(request: Request, rows: Rows, failure: BaseException | None) -> None:
    import torch

    from hessprobe import files, report

    record = report.build_record(
        "bench",
        [],
        arguments=asdict(request),
        seed=0,
        device=torch.device("cpu"),
        timings=rows,
        **failures.entries(failure),
    )
    machine = record["environment"]
    text = ""
    if rows:
        text = bench_tables.page(request, rows, incomplete=failure is not None)
        text += f"\ntorch {machine['torch']}, {machine['threads']} threads, {machine['device']}.\n"
    if request.markdown is not None and text:
        files.write_atomically(request.markdown, lambda stream: stream.write(text.encode()))
    if request.json is not None and request.json != "-":
        report.write_record(request.json, record)
    sys.stdout.write(report.to_json(record) if request.json == "-" else text)
