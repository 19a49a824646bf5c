"""Figures of ``hessprobe compare``: differences to the baseline, and measures against the generalisation gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessprobe.comparison.differences import GAPS
from hessprobe.comparison.names import FLATTER, HIGHER, LOWER, SHARPER, UNDECIDED, WITHIN
from hessprobe.records.compare import CompareRecord, Correlation, Difference
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import between
from hessprobe.report.figures.labels import name as beside
from hessprobe.report.figures.labels import spread as spread_names
from hessprobe.report.figures.scales import logarithmic
from hessprobe.report.figures.style import BLACK, BLUE, GRAY, NARROW, PURPLE, SHADE, VERMILION, narrow, small
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
# In inches: a letter of a name, the least width of a panel, a width that no figure has.
_LETTER, _PANEL, _WIDEST = 0.06, 1.2, 100.0


@dataclass(frozen=True)
class _Drawn:
    """A difference, how far its interval reaches, and how far it would without probes in common."""

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
    found = CompareRecord.of(record)
    shown = [_drawn(one) for one in found.differences if one.number.value is not None]
    drawn = [_forest(shown, found.baseline or "")] if shown else []
    correlations = found.correlations or ()
    for gap in GAPS:
        own = [one for one in correlations if one.gap == gap]
        if own:
            drawn.append(_scatter(found, gap, own))
    return [*drawn, _taus(correlations)] if any(one.tau is not None for one in correlations) else drawn


def _drawn(one: Difference) -> _Drawn:
    number = one.number
    value, below, above = number.spread
    solver, wide = number.errors.solver or 0.0, one.independent_std_error
    # As many standard errors as the interval has.
    independent = solver + ((above - solver) / number.std_error * wide if number.std_error and wide else 0.0)
    return _Drawn(one.measure, one.checkpoint, value, below, above, independent, one.verdict)


def _forest(found: Sequence[_Drawn], baseline: str) -> Drawn:
    measures = list(dict.fromkeys(one.measure for one in found))
    checkpoints = list(dict.fromkeys(one.checkpoint for one in found))
    names = max(map(len, checkpoints))

    def draw(figure: Figure) -> None:
        down, across = _grid(len(measures), figure.get_figwidth() - _LETTER * names)
        panels: Any = figure.subplots(down, across, sharey=True, squeeze=False)
        for panel, measure in zip(panels.flat, measures, strict=False):
            _panel(panel, [one for one in found if one.measure == measure], checkpoints)
            panel.set_title(measure, loc="left")
        figure.supxlabel(f"difference to {baseline}", fontsize="medium")
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

    def height(width: float) -> float:
        down, _ = _grid(len(measures), width - _LETTER * names)
        return 0.75 + 0.16 * (width < NARROW) + down * (0.52 + 0.19 * len(checkpoints))

    width = 0.8 + _LETTER * names + 2.0 * _grid(len(measures), _WIDEST)[1]
    data = [
        {"measure": one.measure, "checkpoint": one.checkpoint, "difference": one.value, "low": one.value - one.below,
         "high": one.value + one.above, "own probes": one.independent, "verdict": one.verdict}
        for one in found
    ]  # fmt: skip
    return Drawn("differences", f"Differences to {baseline}", alt, draw, (width, height(width)), height, data)


def _grid(count: int, width: float) -> tuple[int, int]:
    """Return rows and columns of panels in a width in inches: four make a square, not a row and a rest."""
    most = max(1, min(_ACROSS, int(width / _PANEL)))
    across = 2 if count == 4 and most > 1 else min(count, most)
    return -(-count // across), across


def _panel(panel: Any, found: Sequence[_Drawn], checkpoints: Sequence[str]) -> None:
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
    panel.locator_params(axis="x", nbins=3)
    panel.grid(axis="x")


def _legend(figure: Figure, found: Sequence[_Drawn]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for verdict in dict.fromkeys(one.verdict for one in found):
        color, marker, filled = _MARKS.get(verdict, (GRAY, "x", True))
        face = color if filled else "white"
        handles.append(Line2D([], [], color=color, mfc=face, marker=marker, ms=4.5, ls="none", label=verdict))
    wide = Line2D([], [], color=GRAY, alpha=0.45, lw=5, label="with probes of their own")
    figure.legend(handles=[*handles, wide], loc="outside upper center", ncol=2 if narrow(figure) else 4)


def _scatter(record: CompareRecord, gap: str, correlations: Sequence[Correlation]) -> Drawn:
    points = {row.measure: _points(record, row.measure, gap) for row in correlations}
    names = list(dict.fromkeys(one.checkpoint for each in points.values() for one in each))
    numbered = len(names) > 1 and sum(map(len, names)) > _LETTERS
    shown = {name: str(index) if numbered else name for index, name in enumerate(names, 1)}
    longest = max(map(len, names), default=0)

    def columns(width: float) -> int:
        return min(_KEYS, max(1, int(width / (_LETTER * (6 + longest)))))

    def draw(figure: Figure) -> None:
        down, across = _grid(len(points), figure.get_figwidth())
        panels: Any = figure.subplots(down, across, squeeze=False)
        for panel, row in zip(panels.flat, correlations, strict=False):
            _cloud(panel, points[row.measure], shown if len(names) <= _NAMED else {})
            said = _tau(row).replace(" (", "\n(") if narrow(figure) else _tau(row)
            panel.set_title(f"{row.measure}\n{said}", loc="left")
            panel.set_xlabel(_shortened(_gap(gap)) if narrow(figure) else _gap(gap))
        for panel in panels.flat[len(points) :]:
            panel.set_visible(False)
        if numbered and len(names) <= _NAMED:
            _key(figure, shown, columns(figure.get_figwidth()))
        spread_names(figure, GRAY)

    alt = "; ".join(f"{row.measure}: {_tau(row)} over {row.count} checkpoints" for row in correlations)
    title = f"Measures against {_gap(gap)}"

    def height(width: float) -> float:
        key = _KEY_LINE * -(-len(names) // columns(width)) + 0.1 if numbered and len(names) <= _NAMED else 0.0
        down, across = _grid(len(points), width)
        return 0.2 + down * (0.9 + 0.62 * min(width / across, 2.4)) + key

    width = 0.5 + 2.1 * _grid(len(points), _WIDEST)[1]
    data = [
        {"measure": measure, "checkpoint": one.checkpoint, "gap": one.gap, "value": one.value,
         "low": one.value - one.below, "high": one.value + one.above}
        for measure, each in points.items()
        for one in each
    ]  # fmt: skip
    return Drawn(f"gap-{gap}", title, f"{title}: {alt}.", draw, (width, height(width)), height, data)


def _taus(correlations: Sequence[Correlation]) -> Drawn:
    """Return Kendall's tau of every measure with every gap, each with its interval."""
    measures = list(dict.fromkeys(row.measure for row in correlations))
    gaps = list(dict.fromkeys(row.gap for row in correlations))
    colors = dict(zip(gaps, (BLUE, VERMILION), strict=False))
    found: list[tuple[Correlation, float, tuple[float, float]]] = []
    for row in correlations:
        low, high = row.interval
        if row.tau is not None and low is not None and high is not None:
            found.append((row, row.tau, (low, high)))

    def draw(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        panel: Any = figure.subplots()
        for stripe in range(0, len(measures), 2):
            panel.axhspan(stripe - 0.5, stripe + 0.5, color=SHADE, lw=0, zorder=0)
        panel.axvline(0, color=BLACK, lw=0.8)
        for row, tau, (low, high) in found:
            place = measures.index(row.measure) + (gaps.index(row.gap) - (len(gaps) - 1) / 2) * 0.36
            color = colors[row.gap]
            # The line is the interval, whatever lies under the point.
            panel.plot([low, high], [place, place], color=color, lw=2.4, alpha=0.45, solid_capstyle="butt")
            panel.plot(tau, place, "o", ms=4, color=color)
        panel.set_yticks(range(len(measures)), labels=measures)
        panel.set(xlim=(-1.05, 1.05), ylim=(len(measures) - 0.5, -0.5), xlabel="Kendall's τ with the gap")
        panel.grid(axis="x")
        handles = [Line2D([], [], color=colors[gap], marker="o", ms=4, lw=2.4, label=_gap(gap)) for gap in gaps]
        figure.legend(handles=handles, loc="outside upper center", ncol=1 if narrow(figure) else 2)

    height = 0.75 + 0.16 * len(gaps) + 0.3 * len(measures)
    said = [f"{row.measure} with {_gap(row.gap)}: {_tau(row)}" for row in correlations]
    data = [
        {"measure": row.measure, "gap": row.gap, "tau": tau, "low": low, "high": high}
        for row, tau, (low, high) in found
    ]
    title = "Rank correlation of measures with the generalisation gap"
    return Drawn("tau", title, f"{title}: {'; '.join(said)}.", draw, (4.2, height), lambda _: height, data)


def _key(figure: Figure, shown: Mapping[str, str], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="none", label=f"{number}  {name}") for name, number in shown.items()]
    figure.legend(handles=handles, loc="outside lower center", ncol=columns, handlelength=0, handletextpad=0)


def _gap(name: str) -> str:
    return GAPS[name].replace(" - ", " \u2212 ")


def _shortened(label: str) -> str:
    """Return the name of a gap that fits below a panel of half a column."""
    return label.replace("training", "train").replace("accuracy", "acc.")


def _points(record: CompareRecord, measure: str, gap: str) -> list[_Point]:
    gaps = {one.label: one.gaps or {} for one in record.checkpoints}
    found = []
    for row in record.results:
        known = gaps.get(row.checkpoint, {}).get(gap)
        if row.measured.measure == measure and known is not None:
            found.append(_Point(row.checkpoint, float(known), *row.measured.number.spread))
    return found


def _cloud(panel: Any, points: Sequence[_Point], shown: Mapping[str, str]) -> None:
    """Draw a point a checkpoint with its interval, and beside it what ``shown`` says for its name."""
    for axis, values in (("x", [one.gap for one in points]), ("y", [one.value for one in points])):
        if not logarithmic(panel, axis, values):
            panel.locator_params(axis=axis, nbins=3 if narrow(panel.figure) and axis == "x" else 4)
    for one in points:
        panel.errorbar(one.gap, one.value, yerr=[[one.below], [one.above]], fmt="o", ms=3.5, color=PURPLE)
        if one.checkpoint in shown:
            beside(panel, (one.gap, one.value), shown[one.checkpoint], fontsize=small())
    panel.margins(x=0.1, y=0.12)
    panel.grid()


def _tau(row: Correlation) -> str:
    low, high = row.interval
    tau = "nan" if row.tau is None else f"{row.tau:.2f}"
    return pretty(f"τ = {tau} ({low:.2f} to {high:.2f})")


def _signed(one: _Drawn) -> str:
    return f"{'+' if one.value > 0 else ''}{between(one.value, one.below, one.above)}"
