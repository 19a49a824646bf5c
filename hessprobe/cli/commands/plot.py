"""``hessprobe plot``: every figure again, from records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import options, process
from hessprobe.cli.process import shown

if TYPE_CHECKING:
    from hessprobe.report.figures import Drawn

_FORMATS = ("png", "svg", "pdf")
_TOGETHER = "side-by-side"


@dataclass(frozen=True)
class _Look:
    """Format, width in inches or None, and style of every figure."""

    kind: str
    width: float | None
    style: str


def plot(
    records: Annotated[list[str], typer.Argument(metavar="RECORD", help="JSON records of any commands.")],
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FOLDER", help="Where the figures go; beside each record by default."),
    ] = None,
    kind: Annotated[str, typer.Option("--format", metavar="NAME", help=f"One of {', '.join(_FORMATS)}.")] = "png",
    width: options.Width = None,
    style: options.FigureStyle = "paper",
    debug: options.Debug = False,
) -> None:
    """Make every figure again from records, with its numbers beside it as CSV; nothing is computed.

    Records of several operators are put side by side.

    Example: hessprobe plot digits.json --out figures --format pdf --width 3.25
    """
    options.choice("--format", kind, _FORMATS)
    options.figure_look(width, style)
    options.require_records(records)
    look = _Look(kind, width, style)
    paths = list(dict.fromkeys(Path(record) for record in records))
    if out is not None:
        _make(Path(out))
    written: list[str] = []
    broken = []
    for base, source in _work(paths, out):
        try:
            written += _draw(source, base, look)
        except Exception as error:
            broken.append(error)
    # Last, because what reads the output may go away early (head, less): every figure is there by then.
    for line in written:
        typer.echo(shown(line))
    for each in broken[:-1]:
        process.say(f"error: {process.one_line(each)}")
    if broken:
        process.fail(broken[-1], debug)
    if not written:
        raise process.UsageError(
            "RECORD must hold something to draw: a density, several eigenvalues (--k), layers (--per-layer), a "
            f"sharpness, a landscape, a comparison; got {', '.join(map(str, paths))}. Measure more of these."
        )


def _work(paths: Sequence[Path], out: str | None) -> Iterator[tuple[Path, list[Path]]]:
    """Yield the beginning of the names of figures, and the records they are made from."""
    stems = [path.stem for path in paths]
    for path, stem in zip(paths, stems, strict=True):
        # Records of one name in two folders must not overwrite each other's figures.
        name = stem if stems.count(stem) == 1 or out is None else f"{path.resolve().parent.name}-{stem}"
        yield (path.parent if out is None else Path(out)) / name, [path]
    if len(paths) > 1:
        yield (paths[0].parent if out is None else Path(out)) / _TOGETHER, list(paths)


def _draw(sources: Sequence[Path], base: Path, look: _Look) -> list[str]:
    """Write the figures of one record, or of several side by side, and return a line about each."""
    from hessprobe.errors import RecordError
    from hessprobe.report import read_record
    from hessprobe.report.figures import figures_across, figures_of

    if len(sources) > 1:
        return _save(figures_across([*_readable(sources)]), base, look)
    (path,) = sources
    record = read_record(path)
    try:
        return _save(figures_of(record, path.parent), base, look)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def _readable(sources: Sequence[Path]) -> Iterator[dict[str, Any]]:
    import contextlib

    from hessprobe.errors import RecordError
    from hessprobe.report import read_record

    for path in sources:
        # What is wrong with the others has been said where they stood alone.
        with contextlib.suppress(RecordError):
            yield read_record(path)


def _save(figures: Sequence[Drawn], base: Path, look: _Look) -> list[str]:
    lines = []
    for figure in figures:
        target = Path(f"{base}-{figure.name}.{look.kind}")
        numbers = target.with_suffix(".csv") if figure.data else None
        options.check_outputs(out=str(target))
        if numbers is not None:
            options.check_numbers(numbers, figure.columns)
        path = figure.save(target, look.width, look.style)
        if numbers is not None:
            figure.save_data(numbers)
        lines.append(f"{path}: {figure.title}")
    return lines


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise process.UsageError(
            f"--out must be a folder that can be made; got {str(out)!r} ({error.strerror}). Choose another."
        ) from error
