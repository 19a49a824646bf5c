"""``hessprobe bench --suite steps|optimizers|landscapes``: optimizer steps, what optimizers find, landscapes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer

from hessprobe.cli import failures, options, signals


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


def run(request: Request) -> None:
    """Time or train as asked; what was finished before an interruption is written all the same."""
    options.at_least("--rounds", request.rounds, 2)
    options.at_least("--seeds", request.seeds, 1)
    options.at_least("--jobs", request.jobs, 1)
    options.check_outputs(json=request.json, markdown=request.markdown)

    from hessprobe.cli.progress import status_line

    work = {"steps": _steps, "optimizers": _optimizers, "landscapes": _landscapes}[request.suite]
    rows: list[dict[str, Any]] = []
    interrupted = False
    with status_line() as report:
        try:
            title, table = work(request, rows, report)
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        failures.say(
            f"interrupted after {len(rows)} results" + (f"; they are in {request.json}" if request.json else "")
        )
    with signals.shielded():
        _publish(request, rows, "" if interrupted else f"# {title}\n\n{table}", interrupted)
    if interrupted:
        raise typer.Exit(failures.INTERRUPTED)


def _steps(request: Request, rows: list[dict[str, Any]], report: Callable[[str], None]) -> tuple[str, str]:
    from hessprobe.benchmarks import optimizers

    for name in optimizers.SHAPES:
        report(f"parameters {name}")
        rows += [timing.row() for timing in optimizers.time_shapes(name, rounds=request.rounds)]
    report(optimizers.NETWORK)
    rows += [timing.row() for timing in optimizers.time_network(rounds=request.rounds)]
    return "Time of a SAM step", _steps_table(rows, optimizers.NETWORK)


def _steps_table(rows: Sequence[dict[str, Any]], network: str) -> str:
    contestants = list(dict.fromkeys(row["contestant"] for row in rows if row["case"] != network))
    cases = list(dict.fromkeys(row["case"] for row in rows if row["case"] != network))
    cell = {(row["case"], row["contestant"]): f"{row['milliseconds']:.1f} ({row['ratio']:.2f})" for row in rows}
    lines = ["Milliseconds (ratio to the fastest other package, same round), gradients given:", ""]
    lines += ["| tensors | " + " | ".join(contestants) + " |", "|---" + "|---:" * len(contestants) + "|"]
    lines += [f"| {case} | " + " | ".join(cell[case, one] for one in contestants) + " |" for case in cases]
    whole = [row for row in rows if row["case"] == network]
    lines += ["", f"{network}, milliseconds a step (ratio to two gradients and one SGD step, same round):", ""]
    lines += ["| " + " | ".join(row["contestant"] for row in whole) + " |", "|---:" * len(whole) + "|"]
    lines += ["| " + " | ".join(f"{row['milliseconds']:.0f} ({row['ratio']:.3f})" for row in whole) + " |"]
    return "\n".join(lines) + "\n"


def _optimizers(request: Request, rows: list[dict[str, Any]], report: Callable[[str], None]) -> tuple[str, str]:
    from hessprobe.benchmarks import family

    known = tuple(family.optimizer_names())
    names = list(request.optimizers or known)
    for name in names:
        options.choice("--optimizer", name, known)
    report("timing steps")
    times = family.time_optimizers(names, rounds=request.rounds)

    def finished(run: family.TrainedOptimizer, done: int, total: int) -> None:
        rows.append(
            {**run.row(), "time_of_a_step": times[run.optimizer][0], "time_quartiles": times[run.optimizer][1:]}
        )
        report(f"{done} of {total}: {run.optimizer}, seed {run.seed}")

    special = ", ".join(f"{name} {value}" for name, value in family.SETTINGS.items())
    runs = family.compare_optimizers(names, seeds=range(request.seeds), jobs=request.jobs, report=finished)
    head = (
        f"Digits MLP with LayerNorm, 30 epochs, batch 32, {family.LABEL_NOISE:.0%} of the training labels "
        f"wrong, every optimizer at its defaults (base SGD, lr 0.1, momentum 0.9), {request.seeds} seeds: mean ± "
        "standard error of the mean. Test accuracy on true labels; curvature of the training loss, each estimate to "
        f"1 %. Time of a step: median ratio to SGD, interleaved, one process. Not at their defaults: {special}.\n\n"
        "Made by `hessprobe bench --suite optimizers --markdown FILE`.\n\n"
    )
    return "Every optimizer on noisy digits", head + family.family_table(runs, times)


def _landscapes(request: Request, rows: list[dict[str, Any]], report: Callable[[str], None]) -> tuple[str, str]:
    from hessprobe.benchmarks import landscapes

    for case in landscapes.CASES.values():
        rows += [timing.row() for timing in landscapes.time_planes(case, rounds=request.rounds, report=report)]
    lines = [
        "| network | contestant | seconds a plane | ms a point | ratio | quartiles |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {landscapes.CASES[row['case']].title} | {row['contestant']} | {row['seconds']:.2f} | "
        f"{row['milliseconds']:.2f} | {row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} |"
        for row in rows
    ]
    size = landscapes.SIZE
    sizes = "; ".join(f"{case.title}: {case.size} x {case.size} points" for case in landscapes.CASES.values())
    lines += [
        "",
        f"A plane of {size} x {size} points, the loss at each; ratio to as many plain forward passes under no_grad, "
        f"medians over {request.rounds} interleaved rounds. hessprobe includes making the directions and choosing how "
        f"many points a pass holds. Timed were ({sizes}); the rest of the plane is the time of a point once more.",
    ]
    return "Time of a loss landscape", "\n".join(lines) + "\n"


def _publish(request: Request, rows: list[dict[str, Any]], text: str, interrupted: bool) -> None:
    import torch

    from hessprobe import files, report

    flags = ["interrupted"] if interrupted else None
    record = report.build_record(
        "bench", [], arguments=asdict(request), seed=0, device=torch.device("cpu"), timings=rows, flags=flags
    )
    machine = record["environment"]
    footer = f"\ntorch {machine['torch']}, {machine['threads']} threads, {machine['device']}.\n" if text else ""
    if request.markdown is not None and text:
        files.write_atomically(request.markdown, lambda stream: stream.write((text + footer).encode()))
    if request.json is not None and request.json != "-":
        report.write_record(request.json, record)
    sys.stdout.write(report.to_json(record) if request.json == "-" else text + footer)
