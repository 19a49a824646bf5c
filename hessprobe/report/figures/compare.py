"""Figures of ``hessprobe compare``: differences to the baseline, and measures against the generalisation gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessprobe.comparison.gaps import GAPS
from hessprobe.comparison.names import FLATTER, HIGHER, LOWER, SHARPER, UNDECIDED, WITHIN
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import NUMBER, between, entry, spread
from hessprobe.report.figures.labels import name as beside
from hessprobe.report.figures.labels import spread as spread_names
from hessprobe.report.figures.scales import logarithmic
from hessprobe.report.figures.style import BLACK, BLUE, GRAY, PURPLE, SHADE, VERMILION
from hessprobe.report.typography import pretty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 3
# Verdict: color, marker, and whether it is filled.
_MARKS = {
    SHARPER: (VERMILION, "^", True),
    HIGHER: (VERMILION, "^", True),
    FLATTER: (BLUE, "v", True),
    LOWER: (BLUE, "v", True),
    WITHIN: (GRAY, "o", False),
    UNDECIDED: (GRAY, "x", True),
}
# More numbers in a caption are not read; the table has them all.
_SAID = 6
# More points cannot be told apart by name or number.
_NAMED = 24
# Letters in all that have room beside the points; beyond that numbers stand there, with a key below.
_LETTERS = 30
# Names side by side in that key, and height of a line of it in inches.
_KEYS, _KEY_LINE = 4, 0.16
# Letters of a key across a panel.
_ACROSS_PANEL = 42


@dataclass(frozen=True)
class _Difference:
    measure: str
    checkpoint: str
    value: float
    below: float
    above: float
    independent: float
    verdict: str


@dataclass(frozen=True)
class _Point:
    checkpoint: str
    gap: float
    value: float
    below: float
    above: float


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    rows = entry(record, "differences", list, "the record")
    found = [_difference(row, f"differences[{index}],") for index, row in enumerate(rows)]
    shown = [one for one in found if math.isfinite(one.value)]
    drawn = [_forest(shown, str(entry(record, "baseline", str, "the record")))] if shown else []
    correlations = record.get("correlations") or []
    for gap in GAPS:
        own = [row for row in correlations if row["gap"] == gap]
        if own:
            drawn.append(_scatter(record, gap, own))
    return drawn


def _difference(row: Mapping[str, Any], where: str) -> _Difference:
    value, below, above = spread(row, where)
    error, wide = entry(row, "std_error", NUMBER, where), entry(row, "independent_std_error", NUMBER, where)
    solver = entry(entry(row, "errors", dict, where), "solver", NUMBER, f"{where} errors,") or 0.0
    # As many standard errors as the interval has.
    independent = solver + ((above - solver) / error * wide if error and wide else 0.0)
    measure, checkpoint = entry(row, "measure", str, where), entry(row, "checkpoint", str, where)
    return _Difference(measure, checkpoint, value, below, above, independent, entry(row, "verdict", str, where))


def _forest(found: Sequence[_Difference], baseline: str) -> Drawn:
    measures = list(dict.fromkeys(one.measure for one in found))
    checkpoints = list(dict.fromkeys(one.checkpoint for one in found))
    down, across = _grid(len(measures))

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplots(down, across, sharey=True, squeeze=False)
        for panel, measure in zip(panels.flat, measures, strict=False):
            _panel(panel, [one for one in found if one.measure == measure], checkpoints)
            panel.set_title(measure, loc="left")
        figure.supxlabel(f"difference to {baseline}", fontsize=8)
        for panel in panels.flat[len(measures) :]:
            panel.set_visible(False)
        for panel in panels[:, 0]:
            panel.set_yticks(range(len(checkpoints)), labels=checkpoints)
            panel.set_ylim(len(checkpoints) - 0.5, -0.5)
        _legend(figure, found)

    said = [f"{one.measure} of {one.checkpoint} {_signed(one)}, {one.verdict}" for one in found]
    more = "; …" if len(said) > _SAID else "."
    alt = (
        f"Each checkpoint's difference to {baseline} with its interval; gray behind it, the wider interval without "
        f"probes in common: {'; '.join(said[:_SAID])}{more}"
    )
    names = max(map(len, checkpoints))
    size = (0.8 + 0.075 * names + 2.4 * across, 0.6 + down * (0.85 + 0.24 * len(checkpoints)))
    return Drawn("differences", f"Differences to {baseline}", alt, draw, size)


def _grid(count: int) -> tuple[int, int]:
    """Return rows and columns of panels: four make a square, not a row and a rest."""
    across = 2 if count == 4 else min(count, _ACROSS)
    return -(-count // across), across


def _panel(panel: Any, found: Sequence[_Difference], checkpoints: Sequence[str]) -> None:
    for row in range(0, len(checkpoints), 2):
        panel.axhspan(row - 0.5, row + 0.5, color=SHADE, lw=0, zorder=0)
    panel.axvline(0, color=BLACK, lw=0.8)
    for one in found:
        height = checkpoints.index(one.checkpoint)
        color, marker, filled = _MARKS.get(one.verdict, (GRAY, "x", True))
        # What the interval would be without probes in common.
        ends = [one.value - one.independent, one.value + one.independent]
        panel.plot(ends, [height, height], color=GRAY, alpha=0.45, lw=5, solid_capstyle="butt", zorder=1.5)
        face = color if filled else "white"
        panel.errorbar(one.value, height, xerr=[[one.below], [one.above]], fmt=marker, ms=4.5, color=color, mfc=face)
    panel.margins(x=0.12)
    panel.locator_params(axis="x", nbins=4)
    panel.grid(axis="x")


def _legend(figure: Figure, found: Sequence[_Difference]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for verdict in dict.fromkeys(one.verdict for one in found):
        color, marker, filled = _MARKS.get(verdict, (GRAY, "x", True))
        face = color if filled else "white"
        handles.append(Line2D([], [], color=color, mfc=face, marker=marker, ms=4.5, ls="none", label=verdict))
    wide = Line2D([], [], color=GRAY, alpha=0.45, lw=5, label="interval with probes of their own")
    figure.legend(handles=[*handles, wide], loc="outside upper center", ncol=4)


def _scatter(record: Mapping[str, Any], gap: str, correlations: Sequence[Mapping[str, Any]]) -> Drawn:
    points = {row["measure"]: _points(record, str(row["measure"]), gap) for row in correlations}
    down, across = _grid(len(points))
    names = list(dict.fromkeys(one.checkpoint for each in points.values() for one in each))
    numbered = len(names) > 1 and sum(map(len, names)) > _LETTERS
    shown = {name: str(index) if numbered else name for index, name in enumerate(names, 1)}
    columns = min(_KEYS, max(1, _ACROSS_PANEL * across // (6 + max(map(len, names), default=0))))

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplots(down, across, squeeze=False)
        for panel, row in zip(panels.flat, correlations, strict=False):
            _cloud(panel, points[row["measure"]], shown if len(names) <= _NAMED else {})
            panel.set_title(f"{row['measure']}\n{_tau(row)}", loc="left", fontsize=8.5)
            panel.set_xlabel(_gap(gap), fontsize=8)
        for panel in panels.flat[len(points) :]:
            panel.set_visible(False)
        if numbered and len(names) <= _NAMED:
            _key(figure, shown, columns)
        spread_names(figure, GRAY)

    alt = "; ".join(f"{row['measure']}: {_tau(row)} over {row['count']} checkpoints" for row in correlations)
    title = f"Measures against {_gap(gap)}"
    key = _KEY_LINE * -(-len(names) // columns) + 0.1 if numbered and len(names) <= _NAMED else 0.0
    return Drawn(f"gap-{gap}", title, f"{title}: {alt}.", draw, (0.7 + 2.5 * across, 0.3 + 2.3 * down + key))


def _key(figure: Figure, shown: Mapping[str, str], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="none", label=f"{number}  {name}") for name, number in shown.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncol=columns, handlelength=0, handletextpad=0, fontsize=7
    )


def _gap(name: str) -> str:
    return GAPS[name].replace(" - ", " \u2212 ")


def _points(record: Mapping[str, Any], measure: str, gap: str) -> list[_Point]:
    gaps = {one["label"]: one.get("gaps") or {} for one in entry(record, "checkpoints", list, "the record")}
    found = []
    for index, row in enumerate(record["results"]):
        known = gaps.get(row["checkpoint"], {}).get(gap)
        if row["measure"] == measure and known is not None:
            found.append(_Point(str(row["checkpoint"]), float(known), *spread(row, f"results[{index}],")))
    return found


def _cloud(panel: Any, points: Sequence[_Point], shown: Mapping[str, str]) -> None:
    """Draw a point a checkpoint with its interval, and beside it what ``shown`` says for its name."""
    for axis, values in (("x", [one.gap for one in points]), ("y", [one.value for one in points])):
        if not logarithmic(panel, axis, values):
            panel.locator_params(axis=axis, nbins=5)
    for one in points:
        panel.errorbar(one.gap, one.value, yerr=[[one.below], [one.above]], fmt="o", ms=3.5, color=PURPLE)
        if one.checkpoint in shown:
            beside(panel, (one.gap, one.value), shown[one.checkpoint], fontsize=6)
    panel.margins(x=0.1, y=0.12)
    panel.grid()


def _tau(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    tau = "nan" if row["tau"] is None else f"{row['tau']:.2f}"
    return pretty(f"τ = {tau} ({low:.2f} to {high:.2f})")


def _signed(one: _Difference) -> str:
    return f"{'+' if one.value > 0 else ''}{between(one.value, one.below, one.above)}"
