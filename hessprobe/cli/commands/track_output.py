"""What ``hessprobe track`` draws, writes and says."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hessprobe.cli import failures
from hessprobe.cli.opening import arguments_of

if TYPE_CHECKING:
    from hessprobe.cli.commands.track import Outcome, Request

_SHORT = {"spectral-norm": "||A||", "effective-rank": "eff. rank"}


def publish(request: Request, outcome: Outcome) -> None:
    """Draw the figure, write record and table of every finished checkpoint, and say what was found."""
    from hessprobe import report
    from hessprobe.cli import render
    from hessprobe.report.track import write_track_csv

    record = _record(request, outcome)
    try:
        if request.json not in (None, "-"):
            report.write_record(str(request.json), record)
        if request.csv is not None:
            write_track_csv(request.csv, record)
        if outcome.rows:
            from hessprobe.report.figures import figures_of

            for figure in figures_of(record):
                figure.save(request.figure)
    finally:
        if request.json == "-":
            sys.stdout.write(report.to_json(record))
        else:
            console = render.stdout_console()
            if outcome.rows:
                render.print_line(console, _heading(request, outcome))
                track_table(outcome.rows, console)
            for text in _lines(request, outcome):
                render.print_line(console, text)


def track_table(rows: Sequence[Mapping[str, Any]], console: Any) -> None:
    """Print one line a checkpoint; on a narrow terminal columns go, those that matter least first."""
    from hessprobe.cli import render

    sign = render.plus_minus_for(console)
    order = ["products", "|g|", "epoch", "test", "train", "lr", "align"]
    told = [measured for row in rows for measured in row["measures"].values()]
    layouts = []
    for data in (True, False) if render.tells_data(told) else (False,):
        columns, gone = _columns(rows, sign, data=data), set()
        for name in (None, *order):
            gone.add(name)
            kept = [title for title in columns if title not in gone]
            layouts.append((kept, [[columns[title][index] for title in kept] for index in range(len(rows))]))
    header = render.print_table(layouts, console) or layouts[0][0]
    shown = any(f"{sign} data" in title for title in header)
    for text in render.errors_legend(told, sign):
        if shown or not text.startswith(f"{sign} data"):
            render.print_line(console, text, style="dim")


def _columns(rows: Sequence[Mapping[str, Any]], sign: str, *, data: bool) -> dict[str, list[str]]:
    from hessprobe.cli import render

    columns = {"step": [str(row["step"]) for row in rows], "epoch": [_text(row["epoch"]) for row in rows]}
    columns |= {"lr": [_text(row["lr"], 3) for row in rows], "loss": [_text(row["loss"], 4) for row in rows]}
    columns["|g|"] = [_text(row["gradient_norm"], 3) for row in rows]
    for name in rows[0]["measures"]:
        measured = [row["measures"][name] for row in rows]
        title = f"{_SHORT.get(name, name)} {sign} meas.{f' {sign} data' if data else ''}"
        columns[title] = [render.both_errors(each, sign, data=data) for each in measured]
    columns["2/lr"] = [_text(row["edge"]["plain"], 4) for row in rows]
    columns["SAM edge"] = [_text(row["edge"]["sharpness_aware"], 4) for row in rows]
    columns["align"] = [_text((row["alignment"] or {}).get("first"), 3) for row in rows]
    for split in ("train", "test"):
        columns[split] = [_percent(row["scores"].get(f"{split}_accuracy")) for row in rows]
    columns["products"] = [_text(row["matvecs"], 4) for row in rows]
    return {title: cells for title, cells in columns.items() if any(cells)}


def _heading(request: Request, outcome: Outcome) -> str:
    what = f"{outcome.title.partition(': ')[2]}, " if outcome.title else ""
    return f"{request.ckpt}: {what}{request.operator}, seed {request.seed}"


def _lines(request: Request, outcome: Outcome) -> list[str]:
    lines = list(outcome.notes)
    lines += _edge_notes(outcome.rows)
    spent = sum(row["matvecs"] for row in outcome.rows)
    lines.append(f"{len(outcome.rows)} of {outcome.count} checkpoints, {spent:.0f} products in all")
    if outcome.reused:
        lines[-1] += f"; {outcome.reused} of them found in {request.store}"
    if outcome.failure is not None:
        ended = "interrupted" if outcome.interrupted else "failed"
        lines.append(f"{ended}; what is finished is kept in {request.store}; the same command goes on from there")
    if outcome.rows:
        lines.append(f"wrote {request.figure}")
    return lines


def _edge_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    formulas = {row["edge"]["formula"] for row in rows if row["edge"]["formula"]}
    notes = [
        f"2/lr: the largest stable eigenvalue, here {formula}" for formula in sorted(formulas) if formula != "2/lr"
    ]
    if any(row["edge"]["sharpness_aware"] is not None for row in rows):
        notes.append("SAM edge: the same with SAM's ascent step, at the gradient norm of all measured data")
    missing: dict[str, int] = {}
    for row in rows:
        if row["edge"]["reason"]:
            missing[row["edge"]["reason"]] = missing.get(row["edge"]["reason"], 0) + 1
    advice = {"the learning rate is not known": "; pass --lr"}
    notes += [f"no 2/lr line at {count} checkpoints: {why}{advice.get(why, '')}" for why, count in missing.items()]
    return notes


def _record(request: Request, outcome: Outcome) -> dict[str, Any]:
    from hessprobe import report

    return report.build_record(
        "track",
        outcome.rows,
        arguments={**arguments_of(request), "measure": list(request.names)},
        seed=request.seed,
        device=outcome.device,
        data=outcome.data,
        files={"points": request.store, **({"figure": request.figure} if outcome.rows else {})},
        notes=[*outcome.notes, *_edge_notes(outcome.rows)],
        **failures.entries(outcome.failure),
    )


def _text(number: float | None, digits: int = 6) -> str:
    return "" if number is None else f"{number:.{digits}g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"
