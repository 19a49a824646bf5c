"""``hessprobe bench``: what a curvature product costs, in gradients, for every engine on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import failures, options, signals

if TYPE_CHECKING:
    from hessprobe.benchmarks.cases import Case

_NAMES = ("mlp", "resnet20", "gpt")
_SUITES = ("products", "steps", "optimizers", "landscapes")


def bench(
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="products: Hessian-vector products; steps: SAM steps against other packages; "
            "optimizers: train and measure every optimizer; landscapes: points of a plane.",
        ),
    ] = "products",
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="mlp, resnet20 or gpt; all by default.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Interleaved rounds.")] = 9,
    optimizer: Annotated[
        list[str] | None, typer.Option("--optimizer", metavar="NAME", help="For optimizers: which; all by default.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="For optimizers: runs of each.")] = 3,
    jobs: Annotated[int, typer.Option("--jobs", help="For optimizers: runs side by side.")] = 1,
    device: options.Device = None,
    json: options.Json = None,
    markdown: Annotated[
        str | None, typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="For optimizers: keep the runs that are in the file of --json already.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Time Hessian-vector products, optimizer steps or points of landscapes, side by side in one run.

    Example: hessprobe bench --case mlp --rounds 5
    """
    options.choice("--suite", suite, _SUITES)
    if suite != "products":
        from hessprobe.cli.commands import bench_suites

        request = bench_suites.Request(suite, rounds, tuple(optimizer or ()), seeds, jobs, json, markdown, resume)
        bench_suites.run(request, debug)
        return
    names = tuple(dict.fromkeys(case or _NAMES))
    for name in names:
        options.choice("--case", name, _NAMES)
    options.at_least("--rounds", rounds, 1)
    options.check_outputs(json=json, markdown=markdown)

    from hessprobe.benchmarks import CASES
    from hessprobe.cli.load import resolve_device

    place = resolve_device(device)
    rows, failure = _timed(names, CASES, rounds, place)
    finished = {name: CASES[name].title for name in names if any(row["case"] == name for row in rows)}
    with signals.shielded():
        if finished:
            arguments = {"case": list(names), "rounds": rounds, "device": device}
            _publish(rows, finished, arguments, place, failure, json, markdown)
    if failure is None:
        return
    left = ", ".join(name for name in names if name not in finished)
    if isinstance(failure, KeyboardInterrupt):
        failures.say(f"interrupted; not timed: {left}")
    failures.leave(failure, debug)


def _timed(
    names: Sequence[str], cases: Mapping[str, Case], rounds: int, device: Any
) -> tuple[list[dict[str, Any]], BaseException | None]:
    """Return the figures of the cases that were timed to their end, and what ended the work early."""
    from hessprobe.benchmarks import time_products
    from hessprobe.cli.progress import status_line

    rows: list[dict[str, Any]] = []
    try:
        with status_line() as report:
            for name in names:
                rows += [each.row() for each in time_products(cases[name], rounds=rounds, device=device, report=report)]
    except (KeyboardInterrupt, Exception) as error:
        return rows, failures.ended_by(error)
    return rows, None


def _publish(
    rows: list[dict[str, Any]],
    titles: dict[str, str],
    arguments: dict[str, Any],
    device: Any,
    failure: BaseException | None,
    json: str | None,
    markdown: str | None,
) -> None:
    from hessprobe import files, report

    ended = ["interrupted" if isinstance(failure, KeyboardInterrupt) else "failed"] if failure is not None else None
    record = report.build_record("bench", [], arguments=arguments, seed=0, device=device, timings=rows, flags=ended)
    table = markdown_table(rows, titles, record["environment"])
    if markdown is not None:
        files.write_atomically(markdown, lambda stream: stream.write(table.encode()))
    if json is not None and json != "-":
        report.write_record(json, record)
    sys.stdout.write(report.to_json(record) if json == "-" else table)


def markdown_table(rows: list[dict[str, Any]], titles: dict[str, str], environment: dict[str, Any]) -> str:
    """Return the figures as Markdown: a row a contestant, a column a network and block size."""
    sizes = sorted({row["vectors"] for row in rows})
    columns = [(name, size) for name in titles for size in sizes]
    cells = {(row["contestant"], row["case"], row["vectors"]): f"{row['ratio']:.2f}" for row in rows}
    lines = ["# Time of a Hessian-vector product, in gradients", ""]
    lines += ["| engine | " + " | ".join(f"{titles[name]}, {_words(size)}" for name, size in columns) + " |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        figures = [cells[contestant, name, size] for name, size in columns]
        lines.append(f"| {contestant} | " + " | ".join(figures) + " |")
    gradients = {row["case"]: row["gradient_milliseconds"] for row in rows}
    lines += ["", "Gradient over 8 batches: " + ", ".join(f"{k} {v:.1f} ms" for k, v in gradients.items()) + "."]
    chosen = {row["case"]: row["note"].split(" (")[0] for row in rows if row["contestant"] == "auto"}
    lines.append("auto chose: " + ", ".join(f"{case} {engine}" for case, engine in chosen.items()) + ".")
    lines.append(
        "Medians of one interleaved run over a loader of 8 batches; per vector; what an engine keeps is kept. "
        f"torch {environment['torch']}, {environment['threads']} threads, {environment['device']}."
    )
    return "\n".join(lines) + "\n"


def _words(size: int) -> str:
    return "one vector" if size == 1 else f"{size} vectors"
