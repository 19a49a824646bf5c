"""``hessprobe demo``: three optimizers, three checkpoints, everything measured, one page."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hessprobe import files
from hessprobe.cli import options, outputs, process

_OPTIMIZERS = ("sgd", "sam", "frob-sam")
_MEASURES = ("lambda-max", "trace", "frob", "density")
_KINDS, _RADII = ("worst", "ascent", "average"), (0.05, 0.2)
_COMPARED = ("lambda-max", "trace", "frob", "adaptive-trace")
_CHECKED = ("lambda-max", "trace", "frob", "adaptive-trace")
_MODEL = "mlp:hidden=64-32"
_EPOCHS = 15
# 35 x 35 points show the same valley as 51 x 51 in half the time.
_POINTS = 35


@dataclass(frozen=True)
class Step:
    """One command of the program.

    Attributes:
        words: the command line, without the program.
        record: where it writes its record.
        reads: checkpoints it measures; where one has changed, the step is done again.
        writes: other files it must leave.
    """

    words: tuple[str, ...]
    record: Path
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()


def demo(
    context: typer.Context,
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder for everything it makes.")
    ] = "hessprobe-demo",
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page, on a terminal with a display.")] = True,
    seed: options.Seed = 0,
    device: options.Device = None,
    debug: options.Debug = False,  # noqa: ARG001  # read by guarded
) -> None:
    """Train three small networks, measure how sharp their minima are, and show it all on one page.

    Checkpoints, records, figures and the page stay in the folder; what is finished there is not made again.

    Example: hessprobe demo --out demo
    """
    options.at_least("--seed", seed, 0)
    folder, program = Path(out), context.find_root().command
    _make(folder)
    process.settle_threads()
    steps = steps_of(folder, seed, device)
    started = time.perf_counter()
    for index, step in enumerate(steps, start=1):
        _do(step, f"[{index}/{len(steps)}]", program)
    _figures(folder, steps)
    page = folder / "report.html"
    records = map(str, (step.record for step in steps))
    _run(("report", *records, "--out", str(page), "--title", "Three minima of one network"), program)
    _print_table(steps)
    typer.echo(f"wrote {page} in {time.perf_counter() - started:.0f} s")
    if show and sys.stdout.isatty() and _has_display():
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def steps_of(folder: Path, seed: int, device: str | None) -> list[Step]:
    """Return the commands of the demonstration, in order.

    Args:
        folder: where all files go.
        seed: of training and probes.
        device: where the work is done; None leaves the choice to the program.
    """
    common = (*(("--seed", str(seed)) if seed else ()), *(() if device is None else ("--device", device)))
    paths = {name: folder / f"{name}.pt" for name in _OPTIMIZERS}
    first = paths[_OPTIMIZERS[0]]
    steps = [_training(folder, name, path, common) for name, path in paths.items()]

    def add(command: str, name: str, reads: Sequence[Path], *own: str, writes: tuple[Path, ...] = ()) -> None:
        record = folder / f"{command}-{name}.json"
        words = (command, *map(str, reads), *own, *common, "--json", str(record))
        steps.append(Step(words, record, tuple(reads), writes))

    for name, path in paths.items():
        add("measure", name, [path], *_each("--measure", _MEASURES), "--rtol", "0.01")
    for name, path in paths.items():
        add("sharpness", name, [path], *_each("--kind", _KINDS), *_each("--rho", _RADII))
    add("compare", "all", list(paths.values()), *_each("--measure", _COMPARED))
    add("invariance", first.stem, [first], *_each("--measure", _CHECKED), "--strength", "10.0", "--probes", "16")
    figure = folder / f"landscape-{first.stem}.png"
    add(
        "landscape",
        first.stem,
        [first],
        "--map",
        "loss",
        "--size",
        str(_POINTS),
        "--out",
        str(figure),
        writes=(figure,),
    )
    return steps


def _each(option: str, values: Sequence[object]) -> list[str]:
    return [word for value in values for word in (option, str(value))]


def _training(folder: Path, name: str, path: Path, common: Sequence[str]) -> Step:
    record = folder / f"train-{name}.json"
    own = ("--out", str(path), "--model", _MODEL, "--optimizer", name, "--epochs", str(_EPOCHS), "--json", str(record))
    return Step(("train", *own, *common), record, writes=(path,))


def _do(step: Step, place: str, program: Any) -> None:
    line = shlex.join(["hessprobe", *step.words])
    if is_done(step, program):
        typer.echo(f"{place} {line}  (done before)")
        _tidy(step)
        return
    typer.echo(f"{place} {line}")
    # A checkpoint that the demonstration itself left may go; another of that name may be anybody's.
    replaced = step.words[0] == "train" and (outputs.current_invocation().force or _is_own(step))
    try:
        _run((*step.words, *(["--force"] if replaced else [])), program)
    except typer.Exit:
        process.say("what is finished is kept; the same command goes on from there")
        raise


def _run(words: Sequence[str], program: Any) -> None:
    """Run a command of the program inside this one; its table is left out, as the page has it.

    Raises:
        typer.Exit: it did not end well; it has said why, and what is finished is kept.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        code = program(list(words), prog_name="hessprobe", standalone_mode=False)
    if isinstance(code, int) and code:
        raise typer.Exit(code)


def is_done(step: Step, program: Any) -> bool:
    """Return whether the files of a step are there, made by the same command from the same checkpoint.

    Args:
        step: of the demonstration.
        program: all commands, as a click group.
    """
    from importlib.metadata import version

    from hessprobe.cli import repeat
    from hessprobe.errors import RecordError
    from hessprobe.report import read_record

    if not (step.record.exists() and all(path.exists() for path in (*step.reads, *step.writes))):
        return False
    try:
        record = read_record(step.record)
    except RecordError:
        return False
    same = repeat.words(record, program)
    return (
        same is not None
        and sorted(same) == sorted(step.words)
        and not record.get("flags")
        and record["environment"].get("hessprobe") == version("hessprobe")
        and _same_content(record, (*step.writes, *step.reads))
    )


def _tidy(step: Step) -> None:
    """Remove what a step that was done has left where it was killed just before it could by itself."""
    from hessprobe.cli.skeleton import finished

    for path in (step.record, *step.writes):
        # Held by another demonstration, it is not ours.
        with contextlib.suppress(BlockingIOError):
            lock = files.take(path)
            if lock is not None:
                lock.release()
    finished(str(step.record))


def _is_own(step: Step) -> bool:
    from hessprobe.errors import RecordError
    from hessprobe.report import read_record

    try:
        return all(path.exists() for path in step.writes) and _same_content(read_record(step.record), step.writes)
    except RecordError:
        return False


def _same_content(record: Mapping[str, Any], paths: Sequence[Path]) -> bool:
    from hessprobe.training.checkpoint import file_sha256

    told = list(_hashes(record))
    return all(file_sha256(path) in told for path in paths if path.suffix == ".pt")


def _hashes(part: Any) -> Iterator[str]:
    """Yield every hash that a record holds, whatever it is of."""
    if isinstance(part, Mapping):
        if isinstance(part.get("sha256"), str):
            yield part["sha256"]
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from _hashes(one)


def _figures(folder: Path, steps: Sequence[Step]) -> None:
    from hessprobe.report import read_record
    from hessprobe.report.figures import figures_of

    place = folder / "figures"
    place.mkdir(exist_ok=True)
    for step in steps:
        for figure in figures_of(read_record(step.record), folder):
            path = place / f"{step.record.stem}-{figure.name}.svg"
            if not path.exists() or path.stat().st_mtime < step.record.stat().st_mtime:
                figure.save(path)


def _print_table(steps: Sequence[Step]) -> None:
    from hessprobe.cli import render
    from hessprobe.records.typed import MeasureRecord
    from hessprobe.report import read_record

    console = render.stdout_console()
    sign = render.plus_minus_for(console)
    records = [read_record(step.record) for step in steps if step.words[0] == "measure"]
    header = ["measure", *_OPTIMIZERS]
    columns = [
        {
            row.measure: render.both_errors(row.number, sign, data=render.tells_data([row.number]))
            for row in MeasureRecord.of(record).results
        }
        for record in records
    ]
    render.print_table([(header, [[name, *(column[name] for column in columns)] for name in _MEASURES])], console)
    render.print_line(
        console, f"value {sign} measurement {sign} data (from the data being a sample); + or - alone: a bracket"
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise process.UsageError(
            f"--out must be a folder that can be made; got {str(folder)!r} ({error.strerror}). Choose another."
        ) from error
    options.check_outputs(out=str(folder / "report.html"))


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
