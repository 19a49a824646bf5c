"""Figures of ``hessprobe landscape``: every quantity of a line or plane, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe import checks
from hessprobe.errors import RecordError
from hessprobe.landscape.names import RHO, STYLES, TITLES
from hessprobe.landscape.result import Landscape
from hessprobe.report.figures import labels, lines, planes, surfaces
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import NUMBER, entry, floats, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panels side by side; more go below.
_ACROSS = 3


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    given = record["arguments"]
    rho = given.get("rho")
    if rho is None and given.get("directions") == "gradient":
        rho = RHO
    title = title_of(record)
    found = [landscape_of(row, f"results[{index}],") for index, row in enumerate(record["results"])]
    # Older records say it as a style.
    solid = bool(given.get("surface")) or given.get("style") == "surface"
    return [drawn(each, style=STYLES[1] if solid else STYLES[0], rho=rho, title=title) for each in found]


def title_of(record: Mapping[str, Any]) -> str:
    """Return the checkpoint, or the first and the last of them."""
    given = record["arguments"]
    ends = [given.get("ckpt") or given.get("objective") or "checkpoint", *(given.get("with_") or [])[-1:]]
    return " to ".join(Path(end).name for end in ends)


def landscape_of(row: Mapping[str, Any], where: str) -> Landscape:
    """Return the landscape that stands in a record; what was nan or infinite is nan.

    Raises:
        RecordError: an entry is missing, or values do not fit the axes.
    """
    axes = tuple(floats(axis, f"{where} axes") for axis in entry(row, "axes", list, where))
    shape = tuple(len(axis) for axis in axes)
    values = {
        name: floats(grid, f"{where} values, {name!r},") for name, grid in entry(row, "values", dict, where).items()
    }
    entry(values, "loss", np.ndarray, f"{where} values")
    if not all(axis.ndim == 1 and (axis == 0).any() for axis in axes):
        raise RecordError(f"{where} has an axis without 0, the checkpoint. Write the record again.")
    for name, grid in values.items():
        if name not in TITLES:
            raise RecordError(f"{where} has values of {name!r}, which this hessprobe does not know. Update hessprobe.")
        if grid.shape != shape:
            raise RecordError(
                f"{where} has values of {name!r} of shape {grid.shape} on axes of {shape}. Write the record again."
            )
    marks = []
    for index, mark in enumerate(entry(row, "marks", list, where)):
        place = f"{where} marks[{index}]"
        at = tuple(floats(entry(mark, "coordinates", list, place), place))
        marks.append((entry(mark, "name", str, place), at, entry(mark, "loss", NUMBER, place)))
    model = entry(row, "quadratic", (dict, type(None)), where)
    slope, bend = (
        None if model is None else floats(entry(model, key, list, f"{where} quadratic"), f"{where} quadratic")
        for key in ("slope", "bend")
    )
    return Landscape(
        axes=axes,
        values=values,
        done=np.ones(shape, dtype=bool),
        labels=tuple(entry(row, "labels", list, where)),
        kind=entry(row, "directions", str, where),
        lengths=tuple(entry(row, "lengths", list, where)),
        gram=floats(entry(row, "gram", list, where), f"{where} gram"),
        marks=tuple(marks),
        facts=entry(row, "facts", dict, where),
        slope=slope,
        bend=bend,
    )


def drawn(landscape: Landscape, *, style: str = "contour", rho: float | None = None, title: str = "") -> Drawn:
    """Return a figure of every quantity of a landscape, side by side.

    A line is drawn as a curve, a plane as filled contours or as a surface in three dimensions. The scale is logarithmic
    where positive values span more than a factor 50. Holes are hatched gray and counted. Over the loss lie the contours
    of the second-order model (dashed) with the border beyond which it is more than 10 % off, the marked points, and the
    ball of radius ``rho``.

    Args:
        landscape: what to draw.
        style: ``"contour"`` or ``"surface"``.
        rho: radius of SAM's ball, > 0, or None for none.
        title: above the figure.

    Raises:
        ValueError: another style, or nothing finite to draw.
    """
    checks.one_of("style", style, STYLES)
    if not np.isfinite(landscape.values["loss"]).any():
        raise ValueError("landscape must hold a finite loss; got only holes. Choose a smaller span.")

    def draw(figure: Figure) -> None:
        solid = style == "surface" and len(landscape.axes) == 2
        three = {"projection": "3d"} if solid else {}
        rows, columns = _shape(landscape)
        panels: Any = figure.subplots(rows, columns, squeeze=False, subplot_kw=three).ravel()
        handles: dict[str, Any] = {}
        for spare in panels[len(landscape.values) :]:
            spare.remove()
        for name, panel in zip(landscape.values, panels, strict=False):
            handles |= {handle.get_label(): handle for handle in _panel(figure, panel, landscape, name, style, rho)}
        if handles:
            figure.legend(handles=list(handles.values()), loc="outside lower center", ncol=2)
        if title and len(landscape.values) == 1:
            panels[0].set_title(f"{title}: {panels[0].get_title()}")
        elif title:
            figure.suptitle(title, fontsize=10)
        labels.spread(figure, "white")

    what = "Loss" if len(landscape.values) == 1 else "Loss and curvature"
    shape = "line" if len(landscape.axes) == 1 else "plane"
    heading = f"{what} on a {shape}" + ("" if landscape.kind == shape else f", directions {landscape.kind}")
    return Drawn(f"landscape-{landscape.kind}", heading, _alt(landscape), draw, _size(landscape, style))


def _shape(landscape: Landscape) -> tuple[int, int]:
    """Return rows and columns of panels."""
    columns = min(len(landscape.values), _ACROSS)
    return -(-len(landscape.values) // columns), columns


def _size(landscape: Landscape, style: str) -> tuple[float, float]:
    rows, columns = _shape(landscape)
    if len(landscape.axes) == 1:
        return 4.8 * columns, 0.7 + 3.1 * rows
    return (5.6 * columns, 0.2 + 4.6 * rows) if style == "surface" else (5.4 * columns, 0.6 + 4.6 * rows)


def _panel(figure: Figure, panel: Any, landscape: Landscape, name: str, style: str, rho: float | None) -> list[Any]:
    """Draw one quantity and return the handles of a legend for the whole figure."""
    if not np.isfinite(landscape.values[name]).any():
        panel.set_title(f"{TITLES[name]}: not finite anywhere")
        panel.set_axis_off()
        return []
    if len(landscape.axes) == 1:
        return lines.line(panel, landscape, name, rho)
    if style == "surface":
        surfaces.surface(figure, panel, landscape, name)
        return []
    return planes.contour(figure, panel, landscape, name, rho)


def _alt(landscape: Landscape) -> str:
    shape = " \u00d7 ".join(str(len(axis)) for axis in landscape.axes)
    center = short(float(landscape.values["loss"][landscape.center]))
    parts = [f"Loss landscape on {shape} points ({', '.join(landscape.labels)}); {center} at the checkpoint"]
    for name, values in landscape.values.items():
        finite = values[np.isfinite(values)]
        if len(finite):
            parts.append(f"{TITLES[name]} from {short(float(finite.min()))} to {short(float(finite.max()))}")
        if landscape.holes(name):
            parts.append(f"{landscape.holes(name)} points of it are not finite")
    parts += [f"{name} {short(loss)}" for name, _, loss in landscape.marks if loss is not None and math.isfinite(loss)]
    return "; ".join(parts) + "."
