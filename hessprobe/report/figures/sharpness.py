"""Figures of ``hessprobe sharpness``: values against the radius, the arc of XSAM, the parts of the curvature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import NUMBER, entry, floats, short, spread
from hessprobe.report.figures.operators import parts
from hessprobe.report.figures.scales import DECADE, logarithmic
from hessprobe.report.figures.style import BLACK, BLUE, COLORS, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rises further apart than this are not all seen on a linear axis.
_SPREAD = 30.0
# Radii further apart than this are seen on a logarithmic axis.
_WIDE = 8.0
_Point = tuple[float, tuple[float, float, float], float]


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    lines = _lines(record["results"])
    found = [_against_radius(lines)] if lines else []
    diagnostics = record.get("diagnostics")
    if diagnostics:
        found.append(_arc(entry(diagnostics, "arc", dict, "diagnostics")))
        splits = entry(diagnostics, "splits", list, "diagnostics")
        if splits:
            found.append(_splits(splits))
    return found


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[_Point]]:
    """Return the points of every kind that has a radius: rho, value with its interval, second-order prediction."""
    lines: dict[str, list[_Point]] = {}
    for index, row in enumerate(rows):
        where = f"results[{index}],"
        if row.get("rho") is None:
            continue
        name = entry(row, "measure", str, where)
        label = name if row.get("m") is None else f"{name}, m = {row['m']}"
        model = entry(row, "predicted", (dict, type(None)), where)
        predicted = None if model is None else entry(model, "value", NUMBER, f"{where} predicted")
        point = (float(row["rho"]), spread(row, where), math.nan if predicted is None else float(predicted))
        lines.setdefault(label, []).append(point)
    return {label: sorted(points) for label, points in lines.items()}


def _against_radius(lines: dict[str, list[_Point]]) -> Drawn:
    colors = dict(zip(lines, COLORS * len(lines), strict=False))
    groups = _groups(lines)

    def draw(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        panels: Any = figure.subplots(1, len(groups), squeeze=False)[0]
        handles: list[Any] = []
        for panel, group in zip(panels, groups, strict=True):
            handles += [_line(panel, label, lines[label], colors[label]) for label in group]
            _axes(panel, [point for label in group for point in lines[label]])
        panels[0].set_ylabel("rise of the loss")
        handles.append(Line2D([], [], color=BLACK, lw=1.0, ls="--", marker="_", label="second-order prediction"))
        figure.legend(handles=handles, loc="outside upper center", ncol=4)

    known = [
        f"{label} {short(value)}{_model(model)} at rho = {rho:g}"
        for label, points in lines.items()
        for rho, (value, _, _), model in points[-1:]
    ]
    alt = f"How far the loss rises at radius rho; dashed, what the second-order model predicts: {'; '.join(known)}."
    size = (5.6, 3.6) if len(groups) == 1 else (7.6, 3.4)
    return Drawn("sharpness", "Sharpness against the radius", alt, draw, size)


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
        shown = radii[:: -(-len(radii) // 8)]
        panel.set_xticks(shown, labels=[f"{rho:g}" for rho in shown])
        panel.xaxis.set_minor_locator(NullLocator())


def _arc(arc: Mapping[str, Any]) -> Drawn:
    where = "diagnostics, arc,"
    alphas, rises, model = (
        floats(entry(arc, key, list, where), f"{where} {key}") for key in ("alphas", "rises", "model")
    )
    best, reach = (float(entry(arc, key, (int, float), where)) for key in ("best", "rho_max"))

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
    return Drawn("arc", "Loss along XSAM's arc", alt, draw, (5.0, 3.2))


def _splits(splits: Sequence[Mapping[str, Any]]) -> Drawn:
    titles = {"whole": "Hessian", "gauss_newton": "Gauss-Newton", "functional": "functional part"}
    bars: dict[str, dict[str, tuple[float, float, float]]] = {title: {} for title in titles.values()}
    for index, split in enumerate(splits):
        where = f"diagnostics, splits[{index}],"
        name = entry(split, "name", str, where)
        for key, title in titles.items():
            bars[title][name] = spread(entry(split, key, dict, where), f"{where} {key}")
    return parts("operators", bars)
