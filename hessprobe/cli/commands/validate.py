"""``hessprobe validate``: claims of the theory against measurement, and the coverage of every interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import options, process
from hessprobe.cli.skeleton import Outcome, carry_out, declared, deliver

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe import validation
    from hessprobe.validation.coverage import Settings, Study

_SEEDS, _CONFIRM = 400, 4
# Options of --coverage alone.
_OF_COVERAGE = ("family", "probes", "seeds", "confirm", "jobs", "seed")


@dataclass(frozen=True)
class ValidateRequest:
    """The options of ``hessprobe validate``; None where the user left the choice to the program."""

    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            help="Which claims, e.g. wen-ma-li or '*/linear-rate*'; with --coverage which estimators.",
        ),
    ] = None
    full: Annotated[bool, typer.Option("--full", help="More runs and steps, and the claims that take minutes.")] = False
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Write record, Markdown table and figures there.")
    ] = None
    only_list: Annotated[bool, typer.Option("--list", help="Name the claims, or the estimators, and leave.")] = False
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Count how often intervals hold the truth, on matrices drawn by seed.")
    ] = False
    family: Annotated[
        list[str] | None, typer.Option("--family", help="--coverage: one family of matrices; repeatable. All.")
    ] = None
    probes: Annotated[
        str | None, typer.Option("--probes", help="--coverage: numbers of probes, e.g. 8,16. Those of each estimator.")
    ] = None
    seeds: Annotated[int | None, typer.Option("--seeds", help="--coverage: runs of each cell. 400.")] = None
    confirm: Annotated[
        int | None,
        typer.Option("--confirm", help="--coverage: a cell that is low is made anew with so many times the runs. 4."),
    ] = None
    jobs: Annotated[int | None, typer.Option("--jobs", help="--coverage: processes of one thread each. 1.")] = None
    seed: Annotated[int | None, typer.Option("--seed", help="--coverage: of matrices and probes. 0.")] = None
    json: options.Json = None
    debug: options.Debug = False

    @property
    def record(self) -> str | None:
        """Where the record of the claims goes, and their journal on the way."""
        return str(Path(self.out) / "validation.json") if self.json in (None, "-") and self.out else self.json


@declared(ValidateRequest)
def validate(request: ValidateRequest) -> None:
    """Hold the theory against measurement; exit with 1 where a claim fails.

    With --coverage, cells are kept in OUT/coverage.cells.journal as they come, so that a run that was interrupted goes
    on where it stood; at the end stand OUT/coverage.json and OUT/coverage.md. Exit with 1 where a cell covers too
    little and no flag says so.

    Examples: hessprobe validate wen-ma-li; hessprobe validate --coverage --jobs 2 --out reports/validation
    """
    if request.only_list:
        check(request)
        for line in listed(request):
            typer.echo(line)
    elif request.coverage:
        study = carry_out(request, check=check, opened=opened_study, collect=count, publish=publish_study)
        _leave_failed(bool(coverage_failing(study.found)))
    else:
        claims = carry_out(request, check=check, opened=opened, collect=collect, publish=publish, facts=facts)
        _leave_failed(any(outcome.failed for outcome in claims.found))


def _leave_failed(failed: bool) -> None:
    if failed:
        raise typer.Exit(process.FAILED)


def check(request: ValidateRequest) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: an option of the claims with --coverage, or the other way round; an output that cannot be written.
    """
    options.check_outputs(json=request.json)
    if request.coverage and request.full:
        raise process.UsageError("--full must be left out with --coverage; it is for the claims. Raise --seeds.")
    for name in () if request.coverage else _OF_COVERAGE:
        value = getattr(request, name)
        if value is not None:
            raise process.UsageError(f"--{name} must be left out without --coverage; got {value!r}. Add --coverage.")


def listed(request: ValidateRequest) -> list[str]:
    """Return one line a claim, or an estimator with --coverage.

    Raises:
        UsageError: the pattern matches none.
    """
    from hessprobe import validation
    from hessprobe.validation import coverage

    with process.as_usage():
        if request.coverage:
            _settings(request)
            _jobs(request)
            return [f"{trial.name}  {'; '.join(trial.questions)}" for trial in coverage.select(request.pattern)]
        return [f"{claim.name}  {claim.statement}" for claim in validation.select(request.pattern, full=True)]


def opened(request: ValidateRequest) -> tuple[tuple[validation.Claim, ...], list[validation.Outcome]]:
    """Return the claims that are held against measurement, and what comes out, still nothing."""
    from hessprobe import validation

    with process.as_usage():
        chosen = tuple(validation.select(request.pattern, full=request.full))
    if request.out is not None:
        _folder(str(Path(request.out) / "figures"), request.out)
    return chosen, []


def collect(
    request: ValidateRequest, chosen: tuple[validation.Claim, ...], outcome: Outcome[list[validation.Outcome]]
) -> None:
    """Hold one claim after the other against measurement."""
    from hessprobe import validation
    from hessprobe.cli.outputs import status_line

    with status_line() as report:
        for each in validation.run(chosen, full=request.full, report=report):
            outcome.found.append(each)
            if process.asked():
                raise KeyboardInterrupt


def facts(request: ValidateRequest, chosen: tuple[validation.Claim, ...]) -> dict[str, Any]:  # noqa: ARG001  # as elsewhere
    """Return what decides what comes out beside the options: the code."""
    from hessprobe.validation.coverage.study import fingerprint

    return {"code": fingerprint()}


def publish(
    request: ValidateRequest, chosen: tuple[validation.Claim, ...], outcome: Outcome[list[validation.Outcome]]
) -> None:
    """Print the table, and write it with the record and the figures."""
    from hessprobe import files, report
    from hessprobe.cli import render
    from hessprobe.validation import table

    rows = [each.row() for each in outcome.found]
    arguments = {"pattern": request.pattern, "full": request.full}
    record = report.build_record("validate", rows, arguments=arguments, seed=None, **_ended(outcome))

    def files_of() -> list[str]:
        if request.out is not None:
            place = Path(request.out)
            text = table.markdown(record["results"], _figures(record, place), record["environment"])
            files.write_atomically(place / "README.md", lambda stream: stream.write(text.encode()))
            report.write_record(place / "validation.json", record)
        return []

    def show(console: Console) -> None:
        cells = [table.cells(row) for row in record["results"]]
        short = [[line[0], *line[4:]] for line in cells]
        render.print_table([(table.HEADER, cells), ((table.HEADER[0], *table.HEADER[4:]), short)], console)
        render.print_line(console, table.summary(record["results"]))
        for row in record["results"]:
            if row["verdict"] == "error":
                render.print_line(console, f"{row['claim']}: {row['error']}")

    deliver(record, request.json, show, files_of)
    if outcome.interrupted:
        process.say(f"interrupted after {len(outcome.found)} of {len(chosen)} claims")


def _figures(record: dict[str, Any], out: Path) -> dict[str, str]:
    from hessprobe.report.figures.validate import curves

    drawn = {}
    for claim, figure in curves(record).items():
        drawn[claim] = f"figures/{figure.name}.svg"
        figure.save(out / drawn[claim])
    return drawn


def opened_study(request: ValidateRequest) -> tuple[Settings, Study]:
    """Return what is counted and how often, and the study, which knows what an earlier run has counted."""
    from hessprobe.validation import coverage

    with process.as_usage():
        settings = _settings(request)
        _jobs(request)
        kept = None if request.out is None else _folder(request.out, request.out) / "coverage.cells.journal"
        return settings, coverage.Study(settings, kept)


def count(request: ValidateRequest, settings: Settings, outcome: Outcome[Study]) -> None:  # noqa: ARG001  # as elsewhere
    """Count how often intervals hold the truth, one part after the other."""
    from hessprobe.cli.outputs import progress_bars

    study = outcome.found
    total = len(study.units)
    with progress_bars() as update:
        for unit in study.run(_jobs(request)):
            update("coverage", total - len(study.left), total, f"{unit.trial}, {unit.family}, {unit.size}")
            if process.asked():
                raise KeyboardInterrupt


def publish_study(request: ValidateRequest, settings: Settings, outcome: Outcome[Study]) -> None:
    """Print the summary of the study, and write record and table once it is whole."""
    from hessprobe import files, report
    from hessprobe.cli import render
    from hessprobe.validation import coverage

    study = outcome.found
    arguments = {**asdict(settings), "code": study.code}
    rows = study.sorted_rows()
    record = report.build_record("validate-coverage", rows, arguments=arguments, seed=settings.seed, **_ended(outcome))

    def files_of() -> list[str]:
        if request.out is not None and not outcome.ending:
            place = Path(request.out)
            text = coverage.markdown(record["results"], arguments, record["environment"])
            files.write_atomically(place / "coverage.md", lambda stream: stream.write(text.encode()))
            report.write_record(place / "coverage.json", record)
            study.finished()
        return []

    def show(console: Console) -> None:
        lines = coverage.summary_rows(record["results"])
        short = [[line[0], *line[3:5], line[8]] for line in lines]
        header = coverage.HEADER
        render.print_table([(header, lines), ((header[0], *header[3:5], header[8]), short)], console)
        bad = coverage.failing(record["results"])
        render.print_line(console, f"{len(record['results'])} cells, {len(bad)} of them fail")

    deliver(record, request.json, show, files_of)
    if outcome.interrupted:
        kept = "" if request.out is None else "; the same command goes on from there"
        done = len(study.units) - len(study.left)
        process.say(f"interrupted after {done} of {len(study.units)} parts{kept}")


def coverage_failing(study: Study) -> list[Any]:
    """Return the cells that cover too little and carry no flag that says so."""
    from hessprobe.validation import coverage

    return list(coverage.failing(study.rows))


def _ended(outcome: Outcome[Any]) -> dict[str, Any]:
    return process.entries(outcome.failure) if outcome.ending else {}


def _settings(request: ValidateRequest) -> Settings:
    from hessprobe import checks
    from hessprobe.validation.coverage import Settings, units

    sizes = None
    if request.probes is not None:
        words = str(request.probes).split(",")
        if not all(word.strip().isdigit() for word in words):
            raise process.UsageError(
                f"--probes must be integers >= 2 with commas between; got {request.probes!r}. Try 8,16,64."
            )
        sizes = tuple(checks.positive_int("probes", int(word), minimum=2) for word in words)
    settings = Settings(
        pattern=request.pattern,
        families=tuple(request.family) if request.family else None,
        sizes=sizes,
        seeds=checks.positive_int("seeds", _SEEDS if request.seeds is None else request.seeds),
        confirm=checks.positive_int("confirm", _CONFIRM if request.confirm is None else request.confirm, minimum=0),
        seed=checks.positive_int("seed", 0 if request.seed is None else request.seed, minimum=0),
    )
    units(settings)  # refuses a pattern that matches nothing
    return settings


def _jobs(request: ValidateRequest) -> int:
    from hessprobe import checks

    return checks.positive_int("jobs", 1 if request.jobs is None else request.jobs)


def _folder(path: str, given: str) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise process.UsageError(
            f"--out must be a folder; got {given!r} ({error.strerror}). Choose another."
        ) from error
    return Path(path)
