"""Figures of ``hessprobe invariance``: each measure after a function-preserving transform, over its value before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessprobe.measures.table import entry_of
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import NUMBER, entry, short
from hessprobe.report.figures.style import BLACK, COLORS, NARROW, SHADE, narrow
from hessprobe.report.typography import pretty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Decades of change beyond which the axis is cut and an arrow drawn.
_REACH = 6.0
# More numbers in a caption are not read; the table has them all.
_SAID = 4
# Half of a 95 % interval in standard errors.
_SIGMAS = 1.96
# First word of a verdict: marker, and whether it is filled.
_MARKERS = {"changes": ("o", True), "invariant": ("o", False), "undecided": ("D", False)}


@dataclass(frozen=True)
class _Change:
    """log10 of after over before, and half of its interval."""

    measure: str
    transform: str
    decades: float
    error: float
    verdict: str


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    changes = []
    for index, row in enumerate(record["results"]):
        change = _change(row, f"results[{index}],")
        if change is not None:
            changes.append(change)
    return [_ratios(changes)] if changes else []


def _change(row: Mapping[str, Any], where: str) -> _Change | None:
    """Return how far a measure moved, or None where there is no ratio of two numbers of one sign."""
    measure, strength = entry(row, "measure", str, where), entry(row, "strength", NUMBER, where)
    transform = entry(row, "transform", str, where) + ("" if strength is None else f" {strength:g}")
    before, after, error = (
        entry(row, key, (dict, type(None)), where) for key in ("before", "after", "difference_error")
    )
    if before is None or after is None or error is None:
        return None
    if entry_of(measure).logarithmic:
        return _of_logarithms(row, measure, transform, where)
    first, then = (entry(part, "value", NUMBER, f"{where} before and after") for part in (before, after))
    if not first or not then or not then / first > 0:
        return None
    reach = _SIGMAS * (error.get("std_error") or 0.0) + (error.get("bound") or 0.0)
    decades = math.log10(then / first)
    return _Change(measure, transform, decades, reach / (abs(then) * math.log(10)), entry(row, "verdict", str, where))


def _of_logarithms(row: Mapping[str, Any], measure: str, transform: str, where: str) -> _Change | None:
    """Return the ratio of two determinants from their logarithms, whose own ratio says nothing."""
    first, then = (entry(row[side], "value", NUMBER, f"{where} before and after") for side in ("before", "after"))
    if first is None or then is None:
        return None
    error = row["difference_error"]
    reach = _SIGMAS * (error.get("std_error") or 0.0) + (error.get("bound") or 0.0)
    scale = math.log(10)
    return _Change(measure, transform, (then - first) / scale, reach / scale, entry(row, "verdict", str, where))


def _ratios(changes: Sequence[_Change]) -> Drawn:
    measures = list(dict.fromkeys(change.measure for change in changes))
    transforms = list(dict.fromkeys(change.transform for change in changes))
    # Colors tell transforms apart, markers say what was found.
    colors = dict(zip(transforms, COLORS * len(transforms), strict=False))
    step = 0.8 / max(len(transforms), 1)

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        panel: Any = figure.subplots()
        for row in range(0, len(measures), 2):
            panel.axhspan(row - 0.5, row + 0.5, color=SHADE, lw=0, zorder=0)
        panel.axvline(0, color=BLACK, lw=0.8)
        for change in changes:
            height = measures.index(change.measure) + (transforms.index(change.transform) + 0.5) * step - 0.4
            _point(panel, change, height, colors[change.transform])
        _legend(figure, colors, changes)
        panel.set_yticks(range(len(measures)), labels=measures)
        panel.set_ylim(len(measures) - 0.5, -0.5)
        panel.set_xlim(-_reach([-change.decades for change in changes]), _reach([one.decades for one in changes]))
        # Whole decades: the numbers between are no round ones.
        panel.xaxis.set_major_locator(MaxNLocator(5 if narrow(figure) else 9, integer=True))
        panel.xaxis.set_major_formatter(lambda value, _: _power(value))
        panel.set_xlabel("after / before")
        panel.grid(axis="x")

    logarithms = any(entry_of(one.measure).logarithmic for one in changes)
    determinants = "Of log-determinants, the determinants are compared. " if logarithms else ""
    most = sorted(changes, key=lambda one: -abs(one.decades))
    said = [f"{one.measure} under {one.transform}: \u00d7 {_power(one.decades)} ({one.verdict})" for one in most]
    alt = (
        "Each measure after a transform over the same measure before it; at 1 nothing has changed. "
        f"{determinants}The most: {', '.join(said[:_SAID])}{', …' if len(said) > _SAID else '.'}"
    )

    def height(width: float) -> float:
        rows = -(-(len(transforms) + len(_MARKERS) + 1) // (2 if width < NARROW else 3))
        return 0.55 + 0.16 * rows + max(0.25, 0.1 * len(transforms)) * len(measures)

    data = [
        {"measure": one.measure, "transform": one.transform, "decades": one.decades, "decades error": one.error,
         "verdict": one.verdict}
        for one in changes
    ]  # fmt: skip
    title = "What function-preserving transforms change"
    return Drawn("invariance", title, alt, draw, (6.0, height(6.0)), height, data)


def _reach(decades: Sequence[float]) -> float:
    """Return how far the axis goes to one side: a decade at least, so that a little never looks like much."""
    return min(max(1.0, 1.1 * max(decades)), _REACH)


def _point(panel: Any, change: _Change, height: float, color: str) -> None:
    beyond = abs(change.decades) > _REACH
    place = math.copysign(_REACH * 0.97, change.decades) if beyond else change.decades
    marker, filled = _MARKERS.get(change.verdict.partition(" ")[0], ("x", True))
    if beyond:
        marker = ">" if change.decades > 0 else "<"
    error = 0.0 if beyond or not math.isfinite(change.error) else change.error
    panel.errorbar(place, height, xerr=error, fmt=marker, ms=4.5, color=color, mfc=color if filled else "white")


def _legend(figure: Figure, colors: Mapping[str, str], changes: Sequence[_Change]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, marker="o", ms=4.5, ls="none", label=name) for name, color in colors.items()]
    handles += [
        Line2D([], [], color=BLACK, mfc=BLACK if filled else "white", marker=marker, ms=4.5, ls="none", label=verdict)
        for verdict, (marker, filled) in _MARKERS.items()
        if any(change.verdict.startswith(verdict) for change in changes)
    ]
    if any(abs(change.decades) > _REACH for change in changes):
        handles.append(Line2D([], [], color=BLACK, marker=">", ms=4.5, ls="none", label="beyond the axis"))
    figure.legend(handles=handles, loc="outside lower center", ncol=2 if narrow(figure) else 3)


def _power(decades: float) -> str:
    return short(10**decades) if abs(decades) < 4 else pretty(f"1e{decades:.0f}").rpartition("\u202f")[2]
