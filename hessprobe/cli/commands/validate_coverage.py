"""``hessprobe validate --coverage``: how often the intervals of every estimator hold the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hessprobe.cli import failures, process
from hessprobe.cli.skeleton import deliver

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.validation.coverage import Settings, Study

_SEEDS, _CONFIRM = 400, 4


def run(
    pattern: str | None, given: Mapping[str, Any], *, only_list: bool, full: bool, out: str | None, json: str | None
) -> None:
    """Make the study, show its summary, write record and table; exit with 1 where a cell fails.

    Args:
        pattern: of estimators.
        given: the options of the study, None where left out.
        only_list: name the estimators and leave.
        full: refused, it belongs to the claims.
        out: folder, or None.
        json: file of the record, ``"-"`` or None.
    """
    from hessprobe import checks
    from hessprobe.validation import coverage

    if full:
        raise failures.UsageError("--full must be left out with --coverage; it is for the claims. Raise --seeds.")
    with failures.as_usage():
        settings = _settings(pattern, given)
        jobs = checks.positive_int("jobs", 1 if given["jobs"] is None else given["jobs"])
        if only_list:
            for trial in coverage.select(pattern):
                typer.echo(f"{trial.name}  {'; '.join(trial.questions)}")
            return
        study = coverage.Study(settings, None if out is None else _folder(out) / "coverage.cells.jsonl")
    interrupted = _make(study, jobs)
    with process.shielded():
        _publish(study, settings, interrupted, out, json)
    if interrupted:
        kept = "" if out is None else "; the same command goes on from there"
        failures.say(f"interrupted after {len(study.units) - len(study.left)} of {len(study.units)} parts{kept}")
        raise typer.Exit(failures.INTERRUPTED)
    if coverage.failing(study.rows):
        raise typer.Exit(failures.FAILED)


def _settings(pattern: str | None, given: Mapping[str, Any]) -> Settings:
    from hessprobe import checks
    from hessprobe.validation.coverage import Settings, units

    sizes = None
    if given["probes"] is not None:
        words = str(given["probes"]).split(",")
        if not all(word.strip().isdigit() for word in words):
            raise ValueError(f"probes must be integers >= 2 with commas between; got {given['probes']!r}. Try 8,16,64.")
        sizes = tuple(checks.positive_int("probes", int(word), minimum=2) for word in words)
    settings = Settings(
        pattern=pattern,
        families=tuple(given["family"]) if given["family"] else None,
        sizes=sizes,
        seeds=checks.positive_int("seeds", _SEEDS if given["seeds"] is None else given["seeds"]),
        confirm=checks.positive_int("confirm", _CONFIRM if given["confirm"] is None else given["confirm"], minimum=0),
        seed=checks.positive_int("seed", 0 if given["seed"] is None else given["seed"], minimum=0),
    )
    units(settings)  # refuses a pattern that matches nothing
    return settings


def _folder(out: str) -> Path:
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failures.UsageError(f"--out must be a folder; got {out!r} ({error.strerror}). Choose another.") from error
    return Path(out)


def _make(study: Study, jobs: int) -> bool:
    """Make what is left; return whether the user ended it."""
    from hessprobe.cli.progress import progress_bars

    total = len(study.units)
    try:
        with progress_bars() as update:
            for unit in study.run(jobs):
                done = total - len(study.left)
                update("coverage", done, total, f"{unit.trial}, {unit.family}, {unit.size}")
                if process.asked():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        return True
    return False


def _publish(study: Study, settings: Settings, interrupted: bool, out: str | None, json: str | None) -> None:
    from hessprobe import files, report
    from hessprobe.cli import render
    from hessprobe.validation import coverage

    arguments = {**asdict(settings), "code": study.code}
    flags = ["interrupted"] if interrupted else None
    rows = study.sorted_rows()
    record = report.build_record("validate-coverage", rows, arguments=arguments, seed=settings.seed, flags=flags)

    def files_of() -> list[str]:
        if out is not None and not interrupted:
            text = coverage.markdown(record["results"], arguments, record["environment"])
            files.write_atomically(Path(out) / "coverage.md", lambda stream: stream.write(text.encode()))
            report.write_record(Path(out) / "coverage.json", record)
            study.finished()
        return []

    def show(console: Console) -> None:
        lines = coverage.summary_rows(record["results"])
        short = [[line[0], *line[3:5], line[8]] for line in lines]
        header = coverage.HEADER
        render.print_table([(header, lines), ((header[0], *header[3:5], header[8]), short)], console)
        bad = coverage.failing(record["results"])
        render.print_line(console, f"{len(record['results'])} cells, {len(bad)} of them fail")

    deliver(record, json, show, files_of)
