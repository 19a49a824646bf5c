"""``hessprobe bench``: what a curvature product costs, in gradients, for every engine on this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from hessprobe.cli import options

_NAMES = ("mlp", "resnet20", "gpt")


def bench(
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="mlp, resnet20 or gpt; all by default.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Interleaved rounds.")] = 9,
    device: options.Device = None,
    json: options.Json = None,
    markdown: Annotated[
        str | None, typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown.")
    ] = None,
    debug: options.Debug = False,  # noqa: ARG001  # read by guarded
) -> None:
    """Time Hessian-vector products against gradients, side by side in one run.

    Example: hessprobe bench --case mlp --rounds 5
    """
    names = tuple(dict.fromkeys(case or _NAMES))
    for name in names:
        options.choice("--case", name, _NAMES)
    options.at_least("--rounds", rounds, 1)
    options.check_outputs(json=json, markdown=markdown)

    from hessprobe import report
    from hessprobe.benchmarks import CASES, time_products
    from hessprobe.cli.load import resolve_device

    place = resolve_device(device)
    rows: list[dict[str, Any]] = []
    for name in names:
        timings = time_products(CASES[name], rounds=rounds, device=place, report=_say)
        rows += [timing.row() for timing in timings]
    arguments = {"case": list(names), "rounds": rounds, "device": device}
    record = report.build_record("bench", [], arguments=arguments, seed=0, device=place, timings=rows)
    table = markdown_table(rows, {name: CASES[name].title for name in names}, record["environment"])
    if markdown is not None:
        from hessprobe import files

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


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)
