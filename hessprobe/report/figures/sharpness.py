"""Figures of ``hessprobe sharpness``: values against the radius, the arc of XSAM, the parts of the curvature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.records.sharpness import Arc, Reading, SharpnessRecord, Split
from hessprobe.report.figures.drawn import Drawn, table
from hessprobe.report.figures.fields import floats, short
from hessprobe.report.figures.operators import side_by_side
from hessprobe.report.figures.scales import DECADE, logarithmic
from hessprobe.report.figures.style import BLACK, BLUE, COLORS, NARROW, VERMILION, narrow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rises further apart than this are not all seen on a linear axis.
_SPREAD = 30.0
# Radii further apart than this are seen on a logarithmic axis.
_WIDE = 8.0
_Point = tuple[float, tuple[float, float, float], float]


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    kept = SharpnessRecord.of(record)
    lines = _lines(kept.results)
    found = [_against_radius(lines)] if lines else []
    if kept.diagnostics is not None:
        found.append(_arc(kept.diagnostics.arc))
        if kept.diagnostics.splits:
            found.append(_splits(kept.diagnostics.splits))
    return found


def _lines(readings: Sequence[Reading]) -> dict[str, list[_Point]]:
    """Return the points of every kind that has a radius: rho, value with its interval, second-order prediction."""
    lines: dict[str, list[_Point]] = {}
    for reading in readings:
        ball = reading.ball
        if ball is None or ball.rho is None:
            continue
        predicted = None if ball.predicted is None else ball.predicted.value
        model = math.nan if predicted is None else float(predicted)
        lines.setdefault(reading.title, []).append((float(ball.rho), reading.measured.number.spread, model))
    return {label: sorted(points) for label, points in lines.items()}


def _against_radius(lines: dict[str, list[_Point]]) -> Drawn:
    colors = dict(zip(lines, COLORS * len(lines), strict=False))
    groups = _groups(lines)

    def draw(figure: Figure) -> None:
        down, across = (len(groups), 1) if narrow(figure) else (1, len(groups))
        panels: Any = figure.subplots(down, across, squeeze=False).ravel()
        handles: list[Any] = []
        for panel, group in zip(panels, groups, strict=True):
            handles += [_line(panel, label, lines[label], colors[label]) for label in group]
            _axes(panel, [point for label in group for point in lines[label]])
            panel.set_ylabel("rise of the loss")
        _legend(figure, handles)

    known = [
        f"{label} {short(value)}{_model(model)} at rho = {rho:g}"
        for label, points in lines.items()
        for rho, (value, _, _), model in points[-1:]
    ]
    alt = f"How far the loss rises at radius rho; dashed, what the second-order model predicts: {'; '.join(known)}."

    def height(width: float) -> float:
        return 0.4 + 1.9 * len(groups) if width < NARROW else 3.2

    width = 4.2 if len(groups) == 1 else 6.75
    title = "Sharpness against the radius"
    data = _data({"": lines})
    return Drawn("sharpness", title, alt, draw, (width, height(width)), height, data)


def across(records: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Return the sharpness of several checkpoints over each other, one panel a kind, the second-order model dashed."""
    found: dict[str, dict[str, list[_Point]]] = {}
    for record in records:
        if record["command"] == "sharpness" and (lines := _lines(SharpnessRecord.of(record).results)):
            given = record["arguments"]
            name = Path(str(given.get("ckpt") or given.get("objective"))).stem
            found[name if name not in found else f"{name} ({len(found) + 1})"] = lines
    kinds = list(dict.fromkeys(kind for lines in found.values() for kind in lines))
    if len(found) < 2:
        return []
    colors = dict(zip(found, COLORS * len(found), strict=False))

    def draw(figure: Figure) -> None:
        down, wide = (len(kinds), 1) if narrow(figure) else (-(-len(kinds) // 3), min(3, len(kinds)))
        panels: Any = figure.subplots(down, wide, squeeze=False)
        handles: list[Any] = []
        for panel, kind in zip(panels.flat, kinds, strict=False):
            own = {name: lines[kind] for name, lines in found.items() if kind in lines}
            drawn = [_line(panel, name, points, colors[name]) for name, points in own.items()]
            handles += [] if len(handles) == len(found) else drawn[len(handles) :]
            _axes(panel, [point for points in own.values() for point in points])
            panel.set_title(kind, loc="left")
            if down > 1 and kind != kinds[-1]:
                panel.set_xlabel("")
        for panel in panels.flat[len(kinds) :]:
            panel.remove()
        for panel in panels[:, 0]:
            panel.set_ylabel("rise of the loss")
        _legend(figure, handles)

    def height(width: float) -> float:
        return 0.4 + 1.75 * len(kinds) if width < NARROW else 0.4 + 2.1 * -(-len(kinds) // 3)

    said = [
        f"{kind} of {name} {short(points[-1][1][0])}{_model(points[-1][2])} at rho = {points[-1][0]:g}"
        for kind in kinds
        for name, lines in found.items()
        if (points := lines.get(kind))
    ]
    alt = f"How far the loss of each checkpoint rises, dashed what the second-order model predicts: {'; '.join(said)}."
    title = "Sharpness of several checkpoints"
    return [Drawn("sharpness", title, alt, draw, (6.75, height(6.75)), height, _data(found))]


def _data(found: Mapping[str, Mapping[str, Sequence[_Point]]]) -> list[dict[str, Any]]:
    return [
        {**({"checkpoint": name} if name else {}), "kind": kind, "rho": rho, "value": value, "low": value - below,
         "high": value + above, "second order": model}
        for name, lines in found.items()
        for kind, points in lines.items()
        for rho, (value, below, above), model in points
    ]  # fmt: skip


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    model = Line2D([], [], color=BLACK, lw=1.0, ls="--", label="second order")
    figure.legend(handles=[*handles, model], loc="outside upper center", ncol=2 if narrow(figure) else 5)


def _numbers(points: Sequence[_Point]) -> list[float]:
    return [number for _, (value, _, _), model in points for number in (value, model) if math.isfinite(number)]


def _groups(lines: dict[str, list[_Point]]) -> list[list[str]]:
    """Return what stands in one panel: everything, or apart what a linear axis would flatten to a line at zero."""
    every = [number for points in lines.values() for number in _numbers(points)]
    if not every or min(every) > 0:
        return [list(lines)]
    sizes = {label: max(map(abs, _numbers(points)), default=0.0) for label, points in lines.items()}
    small = [label for label, size in sizes.items() if size * _SPREAD < max(sizes.values())]
    return [[label for label in lines if label not in small], small] if small else [list(lines)]


def _line(panel: Any, label: str, points: Sequence[_Point], color: str) -> Any:
    radii = [rho for rho, _, _ in points]
    values, below, above = np.array([each for _, each, _ in points]).T
    panel.plot(radii, [model for _, _, model in points], "--", color=color, lw=1.0, marker="_", ms=7)
    return panel.errorbar(radii, values, yerr=np.stack([below, above]), color=color, marker="o", ms=3.5, label=label)


def _model(value: float) -> str:
    return f" (second order {short(value)})" if math.isfinite(value) else ""


def _axes(panel: Any, points: Sequence[_Point]) -> None:
    from matplotlib.ticker import NullLocator

    numbers, radii = _numbers(points), sorted({rho for rho, _, _ in points})
    panel.set_xlabel(r"radius $\rho$")
    panel.grid()
    wide = radii[-1] > _WIDE * radii[0]
    if logarithmic(panel, "y", numbers, 1.0 if wide else DECADE):
        # The end of an interval below zero has no place here: it leaves the panel at the bottom.
        ends = [value - below for _, (value, below, _), _ in points if value - below > 0]
        panel.set_ylim(max(min(numbers + ends), min(numbers) / 10) / 1.5, panel.get_ylim()[1])
    else:
        panel.ticklabel_format(axis="y", scilimits=(-2, 3), useOffset=False, useMathText=True)
    if wide or (len(radii) > 1 and panel.get_yscale() == "log"):
        panel.set_xscale("log")
    if len(radii) == 1:
        panel.set_xlim(radii[0] * 0.8, radii[0] * 1.2)
    if len(radii) == 1 or panel.get_xscale() == "log":
        shown = radii[:: -(-len(radii) // 5)]
        panel.set_xticks(shown, labels=[f"{rho:g}" for rho in shown])
        panel.xaxis.set_minor_locator(NullLocator())


def _arc(arc: Arc) -> Drawn:
    alphas, rises, model = (
        floats(values, f"diagnostics, arc, {name}")
        for name, values in (("alphas", arc.alphas), ("rises", arc.rises), ("model", arc.model))
    )
    best, reach = (math.nan if number is None else float(number) for number in (arc.best, arc.rho_max))

    def draw(figure: Figure) -> None:
        panel: Any = figure.subplots()
        panel.plot(alphas, rises, color=BLUE, label="rise of the loss")
        panel.plot(alphas, model, "--", color=BLACK, lw=1.0, label="second-order model")
        panel.axvline(best, color=VERMILION, lw=1.0, label=rf"$\alpha^*$ = {best:g}")
        panel.set(xlabel=r"$\alpha$: 0 the gradient, 1 SAM's gradient", ylabel=f"rise at radius {reach:g}")
        panel.ticklabel_format(axis="y", scilimits=(-2, 3), useOffset=False, useMathText=True)
        panel.grid()
        panel.legend()

    top = short(float(np.nanmax(rises)))
    alt = (
        f"How far the loss rises at radius {reach:g} in the directions between the gradient (alpha 0) and SAM's "
        f"(alpha 1) and beyond: most, {top}, at alpha {best:g}."
    )
    data = table(alpha=alphas, rise=rises, model=model)
    return Drawn("arc", "Loss along XSAM's arc", alt, draw, (4.2, 2.7), lambda width: 1.0 + 0.4 * width, data)


def _splits(splits: Sequence[Split]) -> Drawn:
    bars = {
        "Hessian": {split.name: split.whole.spread for split in splits},
        "Gauss-Newton": {split.name: split.gauss_newton.spread for split in splits},
        "functional part": {split.name: split.functional.spread for split in splits},
    }
    return side_by_side("operators", bars)
