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
from hessprobe.report.figures.style import BLACK, BLUE, COLORS, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rises further apart than this are not all seen on a linear axis.
_SPREAD = 30.0
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
    def draw(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        panel: Any = figure.subplots()
        for (label, points), color in zip(lines.items(), COLORS * len(lines), strict=False):
            radii = [rho for rho, _, _ in points]
            values, below, above = np.array([each for _, each, _ in points]).T
            panel.errorbar(radii, values, yerr=np.stack([below, above]), color=color, marker="o", ms=3.5, label=label)
            panel.plot(radii, [model for _, _, model in points], "--", color=color, lw=1.0, marker="_", ms=5)
        handles, _ = panel.get_legend_handles_labels()
        handles.append(Line2D([], [], color=BLACK, lw=1.0, ls="--", marker="_", label="second-order prediction"))
        panel.legend(handles=handles)
        panel.set(xlabel=r"radius $\rho$", ylabel="rise of the loss")
        _logarithmic(panel, lines)
        panel.grid()

    known = [
        f"{label} {short(value)}{_model(model)} at rho = {rho:g}"
        for label, points in lines.items()
        for rho, (value, _, _), model in points[-1:]
    ]
    alt = f"How far the loss rises at radius rho; dashed, what the second-order model predicts: {'; '.join(known)}."
    return Drawn("sharpness", "Sharpness against the radius", alt, draw)


def _model(value: float) -> str:
    return f" (second order {short(value)})" if math.isfinite(value) else ""


def _logarithmic(panel: Any, lines: dict[str, list[_Point]]) -> None:
    points = [point for each in lines.values() for point in each]
    numbers = [number for _, (value, _, _), model in points for number in (value, model) if math.isfinite(number)]
    radii = [rho for rho, _, _ in points]
    positive = bool(numbers) and min(numbers) > 0
    apart = positive and max(numbers) > _SPREAD * min(numbers) and len(set(radii)) > 1
    if max(radii) > 8 * min(radii) or apart:
        panel.set_xscale("log")
        shown = sorted(set(radii))
        step = -(-len(shown) // 8)
        panel.set_xticks(shown[::step], labels=[f"{rho:g}" for rho in shown[::step]])
        panel.minorticks_off()
        if positive:
            panel.set_yscale("log")


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
