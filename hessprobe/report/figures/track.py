"""The figure of ``hessprobe track``: curvature along a run against the edge of stability, alignment, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import NUMBER, Floats, array, entry, floats, short, spread
from hessprobe.report.figures.scales import logarithmic
from hessprobe.report.figures.style import BLACK, BLUE, COLORS, GREEN, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {
    "lambda-max": "largest eigenvalue",
    "lambda-min": "smallest eigenvalue",
    "spectral-norm": "spectral norm",
    "trace": "trace",
    "frob": "Frobenius norm",
    "effective-rank": "effective rank",
}
# Beyond this many times the largest eigenvalue a threshold is out of sight: it goes to infinity with a falling rate.
_SIGHT = 30.0
# Within this many times the largest number shown a threshold is worth the room.
_REACH = 4.0
_MANY = 40

_Panel = Callable[[Any], None]


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figure of a record; see ``dispatch.figures_of``."""
    rows = record["results"]
    if not rows:
        return []
    for index, row in enumerate(rows):
        where = f"results[{index}],"
        for key, kind in (("step", int), ("edge", dict), ("measures", dict), ("scores", dict)):
            entry(row, key, kind, where)
    steps = floats([row["step"] for row in rows], "results, step,")
    panels = [_eigenvalues(rows, steps)]
    panels += [_measure(rows, steps, name) for name in rows[0]["measures"] if name != "lambda-max"]
    panels += [_alignment(rows, steps), _loss(rows, steps)]
    if _scores(rows, "train_accuracy") is not None or _scores(rows, "test_accuracy") is not None:
        panels.append(_accuracy(rows, steps))
    columns = 2 if len(panels) > 1 else 1
    lines = math.ceil(len(panels) / columns)

    def draw(figure: Figure) -> None:
        axes = np.atleast_1d(figure.subplots(lines, columns, sharex=True)).ravel()
        for panel, axis in zip(panels, axes, strict=False):
            panel(axis)
            axis.grid()
            axis.tick_params(labelbottom=True)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[max(len(panels) - columns, 0) : len(panels)]:
            axis.set_xlabel("step")

    return [Drawn("track", "Curvature along training", _alt(rows), draw, (3.6 * columns + 0.2, 2.2 * lines + 0.2))]


def _style(count: int) -> dict[str, Any]:
    return {"marker": "o", "ms": 2.5 if count <= _MANY else 1.2}


def _measured(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Floats, Floats]:
    """Return the values (n,) of a measure and how far their intervals reach, (2, n)."""
    triples = []
    for index, row in enumerate(rows):
        where = f"results[{index}], measures,"
        triples.append(spread(entry(row["measures"], name, dict, where), f"{where} {name},"))
    values, below, above = np.array(triples, dtype=np.float64).T
    return values, np.stack([below, above])


def _edges(rows: Sequence[Mapping[str, Any]], key: str) -> Floats:
    return floats([entry(row["edge"], key, NUMBER, f"results[{i}], edge,") for i, row in enumerate(rows)], key)


def _eigenvalues(rows: Sequence[Mapping[str, Any]], steps: Floats) -> _Panel:
    values, reach = _measured(rows, "lambda-max")
    others = _further(rows)
    plain, aware = _edges(rows, "plain"), _edges(rows, "sharpness_aware")
    formula = next((row["edge"]["formula"] for row in rows if row["edge"].get("formula")), "2/lr")

    def draw(axis: Any) -> None:
        axis.errorbar(steps, values, yerr=reach, color=BLUE, label=r"$\lambda_{\max}$", zorder=3, **_style(len(steps)))
        for index, other in enumerate(others, 2):
            axis.plot(steps, other, color=SKY, lw=0.9, label="further eigenvalues" if index == 2 else None)
        known = np.concatenate([values, *others])
        beyond = []
        # The lower line first: where it widens the axis, the upper one may come into sight.
        for line, color, dash, label in ((aware, VERMILION, "-.", "with SAM's ascent"), (plain, BLACK, "--", formula)):
            seen = _seen(line, values, known)
            if len(seen):
                known = np.concatenate([known, seen])
                # Whole, so that it leaves the panel where it goes; the limits below are of what is in sight.
                marker = "_" if len(steps) < 3 else None
                axis.plot(steps, line, color=color, ls=dash, lw=1.1, label=label, marker=marker)
            elif np.isfinite(line).any():
                beyond.append(_bound(label, line))
        _limits(axis, known)
        axis.set_ylabel("largest eigenvalue")
        if beyond:
            axis.annotate("\n".join(beyond), (1.0, 1.0), xycoords="axes fraction", xytext=(0, 2), fontsize=6.5,
                          textcoords="offset points", ha="right", va="bottom")  # fmt: skip
        _legend(axis, len(beyond))

    return draw


def _seen(line: Floats, values: Floats, known: Floats) -> Floats:
    """Return the part of a threshold that the panel is to show, empty where it is out of sight."""
    top = max(_SIGHT * float(np.nanmax(values)), _REACH * float(np.nanmax(known)))
    return line[np.isfinite(line) & (line > 0) & (line <= top)]


def _bound(label: str, line: Floats) -> str:
    """Return in words where a threshold lies that no point of the panel shows."""
    found = line[np.isfinite(line)]
    low, high = float(found.min()), float(found.max())
    sign = "=" if math.isclose(low, high, rel_tol=1e-3) else "\u2265"
    return f"{label} {sign} {short(float(f'{low:.3g}'))}, above"


def _legend(axis: Any, lines: int = 0) -> None:
    """Put the legend above the panel, whose lines cross all of it, and above so many lines of a note."""
    from matplotlib.container import Container

    handles, _ = axis.get_legend_handles_labels()
    # What was measured before what it is compared with; intervals come last otherwise.
    handles.sort(key=lambda handle: not isinstance(handle, Container))
    axis.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2 + 1.4 * lines,
                ncol=3 if len(handles) == 3 else 2, fontsize=6.5, columnspacing=0.8, handlelength=1.9)  # fmt: skip


def _further(rows: Sequence[Mapping[str, Any]]) -> list[Floats]:
    """Return the second to k-th largest eigenvalues, (n,) each."""
    k = min((row.get("alignment") or {}).get("k", 1) for row in rows)
    if k < 2:
        return []
    stored = [
        array(row["measures"]["lambda-max"], "eigenvalues", f"results[{index}], measures, lambda-max,")
        for index, row in enumerate(rows)
    ]
    return [np.array([each[place] for each in stored]) for place in range(1, k)]


def _limits(axis: Any, numbers: Floats) -> None:
    known = numbers[np.isfinite(numbers)]
    low, high = float(known.min()), float(known.max())
    if logarithmic(axis, "y", known):
        axis.set_ylim(low / 1.3, high * 1.3)
    else:
        room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        axis.set_ylim(low - room, high + room)


def _measure(rows: Sequence[Mapping[str, Any]], steps: Floats, name: str) -> _Panel:
    values, reach = _measured(rows, name)
    color = {"trace": GREEN, "frob": PURPLE}.get(name, VERMILION)

    def draw(axis: Any) -> None:
        axis.errorbar(steps, values, yerr=reach, color=color, **_style(len(steps)))
        logarithmic(axis, "y", values)
        axis.set_ylabel(_NAMES.get(name, name))

    return draw


def _alignment(rows: Sequence[Mapping[str, Any]], steps: Floats) -> _Panel:
    parts = [entry(row, "alignment", (dict, type(None)), f"results[{i}],") or {} for i, row in enumerate(rows)]
    k = max(part.get("k", 1) for part in parts)
    first, space = (floats([part.get(key) for part in parts], f"alignment, {key},") for key in ("first", "space"))

    def draw(axis: Any) -> None:
        axis.plot(steps, first, color=BLUE, label=r"$|\cos(g, v_1)|$", **_style(len(steps)))
        if k > 1:
            axis.plot(steps, space, color=SKY, label=f"with the {k} leading", **_style(len(steps)))
            _legend(axis)
        axis.set(ylim=(-0.03, 1.03), ylabel=r"gradient along $v_1$" if k == 1 else "gradient along eigenvectors")

    return draw


def _loss(rows: Sequence[Mapping[str, Any]], steps: Floats) -> _Panel:
    loss = floats([entry(row, "loss", NUMBER, f"results[{i}],") for i, row in enumerate(rows)], "loss")
    test = _scores(rows, "test_loss")

    def draw(axis: Any) -> None:
        axis.plot(steps, loss, color=BLUE, label="measured data", **_style(len(steps)))
        if test is not None:
            axis.plot(steps, test, color=VERMILION, label="test", **_style(len(steps)))
            _legend(axis)
        logarithmic(axis, "y", loss)
        axis.set_ylabel("loss")

    return draw


def _accuracy(rows: Sequence[Mapping[str, Any]], steps: Floats) -> _Panel:
    lines = {name: _scores(rows, f"{name}_accuracy") for name in ("train", "test")}

    def draw(axis: Any) -> None:
        for (name, values), color in zip(lines.items(), COLORS, strict=False):
            if values is not None:
                axis.plot(steps, 100 * values, color=color, label=name, **_style(len(steps)))
        axis.set_ylabel("accuracy (%)")
        _legend(axis)

    return draw


def _scores(rows: Sequence[Mapping[str, Any]], name: str) -> Floats | None:
    values = [row["scores"].get(name) for row in rows]
    return None if all(value is None for value in values) else floats(values, f"scores, {name},")


def _alt(rows: Sequence[Mapping[str, Any]]) -> str:
    ends = [rows[0], rows[-1]] if len(rows) > 1 else [rows[0]]
    parts = []
    for name in rows[0]["measures"]:
        values = [short(row["measures"][name]["value"]) for row in ends]
        parts.append(f"{_NAMES.get(name, name)} {' to '.join(values)}")
    above = [
        row["step"]
        for row in rows
        if row["edge"]["plain"] is not None
        and row["measures"]["lambda-max"]["value"] is not None
        and row["measures"]["lambda-max"]["value"] > row["edge"]["plain"]
    ]
    known = sum(row["edge"]["plain"] is not None for row in rows)
    edge = f" The largest eigenvalue is above 2/lr at {len(above)} of {known} points." if known else ""
    steps = " to ".join(str(row["step"]) for row in ends)
    return f"Along steps {steps}, {len(rows)} points: {'; '.join(parts)}.{edge}"
