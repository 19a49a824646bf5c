"""What ``hessprobe landscape`` draws, writes and says."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from hessprobe.cli import failures
from hessprobe.cli.opening import arguments_of

if TYPE_CHECKING:
    from hessprobe.cli.commands.landscape import Outcome, Request
    from hessprobe.cli.load import Subject
    from hessprobe.landscape import Landscape


def publish(request: Request, subject: Subject, outcome: Outcome) -> None:
    """Draw the figures, write the record, and say what was found."""
    from hessprobe import report
    from hessprobe.cli import render

    files: dict[str, str] = {"points": request.points}
    if outcome.landscape is not None:
        wanted = {"figure": request.figure, "interactive": request.interactive}
        files |= {name: path for name, path in wanted.items() if path is not None}
    record = _record(request, subject, outcome, files)
    try:
        if request.json not in (None, "-"):
            report.write_record(str(request.json), record)
        if outcome.landscape is not None:
            # From the record, as hessprobe plot does later.
            _draw(request, outcome.landscape, record)
    finally:
        if request.json == "-":
            sys.stdout.write(report.to_json(record))
        else:
            console = render.stdout_console()
            render.print_line(console, f"{subject.title}, {request.directions}, seed {request.seed}")
            for text in _lines(request, outcome, files):
                render.print_line(console, text)


def _draw(request: Request, found: Landscape, record: dict[str, Any]) -> None:
    if request.figure is not None:
        from hessprobe.report.figures import figures_of

        for figure in figures_of(record):
            figure.save(request.figure, request.width, request.style)
    if request.interactive is not None:
        from hessprobe.landscape.interactive import write_html
        from hessprobe.report.figures.landscape import title_of

        write_html(found, request.interactive, title=title_of(record))


def _lines(request: Request, outcome: Outcome, files: dict[str, str]) -> list[str]:
    found = outcome.landscape
    if found is None:
        from hessprobe.landscape.grid import interrupted_note, read_progress

        kept = read_progress(request.points)
        ended = "interrupted" if outcome.interrupted else "failed"
        return [ended if kept is None else f"{ended}; {interrupted_note(request.points, *kept)}"]
    shape = " x ".join(str(len(values)) for values in found.axes)
    reused = found.done.size - found.evaluated
    text = f"{shape} points" + (f", {reused} of them found in {request.points}" if reused else "")
    lines = [text, f"loss at the checkpoint {found.values['loss'][found.center]:.6g}"]
    for name in found.values:
        finite = found.values[name][~_not_finite(found.values[name])]
        if len(finite):
            lines.append(f"{name} from {finite.min():.6g} to {finite.max():.6g}")
        if found.holes(name):
            lines.append(f"{name}: {found.holes(name)} of {found.done.size} points are not finite; drawn as holes")
    lines += outcome.notes
    return [*lines, *(f"wrote {path}" for path in files.values())]


def _not_finite(values: Any) -> Any:
    import numpy as np

    return ~np.isfinite(values)


def _record(request: Request, subject: Subject, outcome: Outcome, files: dict[str, str]) -> dict[str, Any]:
    from hessprobe import report

    return report.build_record(
        "landscape",
        [] if outcome.landscape is None else [_row(outcome.landscape)],
        arguments={**arguments_of(request), "map": list(request.maps)},
        seed=request.seed,
        device=subject.risk.device,
        checkpoint=subject.checkpoint,
        data=subject.data,
        files=files,
        notes=outcome.notes,
        **failures.entries(outcome.failure),
    )


def _row(found: Landscape) -> dict[str, Any]:
    """Return everything a figure needs; holes are null, and counted."""
    share = found.departure()
    trusted = None if share is None else float((share <= 0.1).mean())
    return {
        "directions": found.kind,
        "labels": list(found.labels),
        "lengths": list(found.lengths),
        "gram": found.gram.tolist(),
        "axes": [values.tolist() for values in found.axes],
        "center": list(found.center),
        "values": {name: values.tolist() for name, values in found.values.items()},
        "holes": {name: found.holes(name) for name in found.values},
        "marks": [
            {"name": name, "coordinates": list(place), "loss": loss if loss is None or math.isfinite(loss) else None}
            for name, place, loss in found.marks
        ],
        "quadratic": None if found.slope is None or found.bend is None else {
            "slope": found.slope.tolist(), "bend": found.bend.tolist(), "within_10_percent": trusted,
        },
        "facts": found.facts,
        "points_computed": found.evaluated,
    }  # fmt: skip
