"""``hessprobe validate``: claims of the theory against measurement, and the coverage of every interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import failures, options, process
from hessprobe.cli.commands import validate_coverage
from hessprobe.cli.skeleton import deliver

if TYPE_CHECKING:
    from rich.console import Console


def validate(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            help="Which claims, e.g. wen-ma-li or '*/linear-rate*'; with --coverage which estimators.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More runs and steps, and the claims that take minutes.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Write record, Markdown table and figures there.")
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Name the claims, or the estimators, and leave.")] = False,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Count how often intervals hold the truth, on matrices drawn by seed.")
    ] = False,
    family: Annotated[
        list[str] | None, typer.Option("--family", help="--coverage: one family of matrices; repeatable. All.")
    ] = None,
    probes: Annotated[
        str | None, typer.Option("--probes", help="--coverage: numbers of probes, e.g. 8,16. Those of each estimator.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="--coverage: runs of each cell. 400.")] = None,
    confirm: Annotated[
        int | None,
        typer.Option("--confirm", help="--coverage: a cell that is low is made anew with so many times the runs. 4."),
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="--coverage: processes of one thread each. 1.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="--coverage: of matrices and probes. 0.")] = None,
    json: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Hold the theory against measurement; exit with 1 where a claim fails.

    With --coverage, cells are kept in OUT/coverage.cells.jsonl as they come, so that a run that was interrupted goes on
    where it stood; at the end stand OUT/coverage.json and OUT/coverage.md. Exit with 1 where a cell covers too little
    and no flag says so.

    Examples: hessprobe validate wen-ma-li; hessprobe validate --coverage --jobs 2 --out reports/validation
    """
    del debug  # the wrapper reads it
    options.check_outputs(json=json)
    given = {"family": family, "probes": probes, "seeds": seeds, "confirm": confirm, "jobs": jobs, "seed": seed}
    if coverage:
        validate_coverage.run(pattern, given, only_list=only_list, full=full, out=out, json=json)
        return
    for name, value in given.items():
        if value is not None:
            raise failures.UsageError(f"--{name} must be left out without --coverage; got {value!r}. Add --coverage.")
    from hessprobe import validation
    from hessprobe.cli.progress import status_line

    with failures.as_usage():
        chosen = validation.select(pattern, full=full or only_list)
    if only_list:
        for claim in chosen:
            typer.echo(f"{claim.name}  {claim.statement}")
        return
    if out is not None:
        _make(out)
    outcomes: list[validation.Outcome] = []
    interrupted = False
    try:
        with status_line() as report:
            for outcome in validation.run(chosen, full=full, report=report):
                outcomes.append(outcome)
                if process.asked():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
    with process.shielded():
        _publish(outcomes, {"pattern": pattern, "full": full}, interrupted, out, json)
    if interrupted:
        failures.say(f"interrupted after {len(outcomes)} of {len(chosen)} claims")
        raise typer.Exit(failures.INTERRUPTED)
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(failures.FAILED)


def _make(out: str) -> None:
    try:
        (Path(out) / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failures.UsageError(f"--out must be a folder; got {out!r} ({error.strerror}). Choose another.") from error


def _publish(
    outcomes: Sequence[Any], arguments: dict[str, Any], interrupted: bool, out: str | None, json: str | None
) -> None:
    from hessprobe import files, report
    from hessprobe.cli import render
    from hessprobe.validation import table

    rows = [outcome.row() for outcome in outcomes]
    flags = ["interrupted"] if interrupted else None
    record = report.build_record("validate", rows, arguments=arguments, seed=None, flags=flags)

    def files_of() -> list[str]:
        if out is not None:
            figures = _figures(record, Path(out))
            text = table.markdown(record["results"], figures, record["environment"])
            files.write_atomically(Path(out) / "README.md", lambda stream: stream.write(text.encode()))
            report.write_record(Path(out) / "validation.json", record)
        return []

    def show(console: Console) -> None:
        cells = [table.cells(row) for row in record["results"]]
        short = [[line[0], *line[4:]] for line in cells]
        render.print_table([(table.HEADER, cells), ((table.HEADER[0], *table.HEADER[4:]), short)], console)
        render.print_line(console, table.summary(record["results"]))
        for row in record["results"]:
            if row["verdict"] == "error":
                render.print_line(console, f"{row['claim']}: {row['error']}")

    deliver(record, json, show, files_of)


def _figures(record: dict[str, Any], out: Path) -> dict[str, str]:
    from hessprobe.report.figures.validate import curves

    drawn = {}
    for claim, figure in curves(record).items():
        drawn[claim] = f"figures/{figure.name}.svg"
        figure.save(out / drawn[claim])
    return drawn
