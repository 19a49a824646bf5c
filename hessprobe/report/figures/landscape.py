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
from hessprobe.report.figures.drawn import Drawn, table
from hessprobe.report.figures.fields import NUMBER, entry, floats, short
from hessprobe.report.figures.landscape_scale import axis_label, heading
from hessprobe.report.figures.style import NARROW, narrow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panels side by side; more go below. In inches: width of a figure of one panel and of several, height of a line.
_ACROSS, _OWN, _PAGE, _LINE = 3, 4.2, 6.75, 0.16


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
    return [
        drawn(each, style=STYLES[1] if solid else STYLES[0], rho=rho, title=title, camera=camera_of(given))
        for each in found
    ]


def camera_of(given: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the camera among the arguments of a record: ``"35,-60"``, elevation and turn in degrees."""
    text = given.get("camera")
    if not text:
        return None
    elevation, _, turn = str(text).partition(",")
    return float(elevation), float(turn)


def title_of(record: Mapping[str, Any]) -> str:
    """Return the checkpoint in the center, and of a line where it leads."""
    given = record["arguments"]
    others = (given.get("with_") or []) if given.get("directions") == "line" else []
    ends = [given.get("ckpt") or given.get("objective") or "checkpoint", *others[-1:]]
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


def drawn(
    landscape: Landscape,
    *,
    style: str = "contour",
    rho: float | None = None,
    title: str = "",
    camera: tuple[float, float] | None = None,
) -> Drawn:
    """Return a figure of every quantity of a landscape, side by side.

    A line is drawn as a curve, a plane as filled contours or as a surface in three dimensions. The scale is logarithmic
    where positive values span more than a decade. Holes are hatched gray and counted. Over the loss lie the contours
    of the second-order model (dashed) with the border beyond which it is more than 10 % off, the marked points, and the
    ball of radius ``rho``.

    Args:
        landscape: what to draw.
        style: ``"contour"`` or ``"surface"``.
        rho: radius of SAM's ball, > 0, or None for none.
        title: above the figure.
        camera: elevation and turn of a surface in degrees; None for a turn from which the checkpoint is seen.

    Raises:
        ValueError: another style, or nothing finite to draw.
    """
    checks.one_of("style", style, STYLES)
    if not np.isfinite(landscape.values["loss"]).any():
        raise ValueError("landscape must hold a finite loss; got only holes. Choose a smaller span.")

    center = landscape.marks[0][0] if landscape.kind in ("pca", "line") and landscape.marks else "checkpoint"
    names = tuple(landscape.values)
    solid = style == "surface" and len(landscape.axes) == 2

    def draw(figure: Figure) -> None:
        rows, columns = _shape(landscape, figure.get_figwidth())
        three = {"projection": "3d"} if solid else {}
        panels: Any = figure.subplots(rows, columns, squeeze=False, subplot_kw=three)
        handles: dict[str, Any] = {}
        for name, panel in zip(names, panels.flat, strict=False):
            found = _panel(figure, panel, landscape, name, rho, solid, center, camera)
            handles |= {handle.get_label(): handle for handle in found}
            panel.set_title(heading(landscape, name, title if len(names) == 1 else ""))
        spare = panels.flat[len(names) :]
        if not solid and len(landscape.axes) > 1:
            _outer(figure, panels, landscape)
        _legend(figure, [*handles.values()], spare)
        if title and len(names) > 1:
            figure.suptitle(title)
        labels.spread(figure, "white")

    what = "Loss" if len(landscape.values) == 1 else "Loss and curvature"
    shape = "line" if len(landscape.axes) == 1 else "plane"
    said = f"{what} on a {shape}" + ("" if landscape.kind == shape else f", directions {landscape.kind}")

    def height(width: float) -> float:
        return _height(landscape, width, solid)

    width = _PAGE if len(names) > 1 else _OWN
    name = f"landscape-{landscape.kind}"
    return Drawn(name, said, _alt(landscape), draw, (width, height(width)), height, _data(landscape))


def _shape(landscape: Landscape, width: float) -> tuple[int, int]:
    """Return rows and columns of panels: two rows of a page, two columns of one column of it."""
    count = len(landscape.values)
    columns = min(count, 2 if width < NARROW or count == 4 else _ACROSS)
    return -(-count // columns), columns


def _height(landscape: Landscape, width: float, solid: bool) -> float:
    """Return the height at which panels are as wide as there is room for; see ``planes.shape``."""
    rows, columns = _shape(landscape, width)
    count, slim = len(landscape.values), width < NARROW
    words = _LINE * (1 + max(axis_label(landscape, index).count("\n") for index in range(len(landscape.axes))))
    if len(landscape.axes) == 1:
        return 0.9 + words + rows * (0.35 + (0.5 * min(width, _OWN + 0.6) if columns == 1 else 1.5))
    if solid:
        return 0.45 + rows * 0.72 * width / columns
    lost = _LINE * any(landscape.holes(name) for name in landscape.values)
    entries = 1 + 2 * (landscape.quadratic() is not None) + 2 * bool(landscape.marks) + (landscape.kind == "gradient")
    legend = 0.1 + _LINE * -(-entries // (2 if slim else 4))
    if count == 1:
        panel = (width - words - 0.37 - 0.52) / 1.05
        return 0.25 + lost + planes.shape(landscape) * panel + 0.22 + words + legend
    panel = (width - words - 0.35) / columns - (0.06 if slim else 0.48)
    between = 0.62 if slim else 0.42
    legend = legend if rows * columns == count else 0.0
    return 0.3 + rows * (planes.shape(landscape) * panel / (1.0 if slim else 1.1) + between + lost) + words + legend


def _outer(figure: Figure, panels: Any, landscape: Landscape) -> None:
    """Write the names of axes once for a grid of panels, and the numbers at its edge."""
    count, columns = len(landscape.values), panels.shape[1]
    if count == 1:
        return
    for index, panel in enumerate(panels.flat[:count]):
        panel.set(xlabel="", ylabel="")
        panel.tick_params(labelleft=not index % columns, labelbottom=index + columns >= count)
    figure.supxlabel(axis_label(landscape, 0), fontsize="medium")
    figure.supylabel(axis_label(landscape, 1), fontsize="medium")


def _legend(figure: Figure, handles: list[Any], spare: Any) -> None:
    """Put the legend into the empty cell of a grid where there is one, below the panels otherwise."""
    for panel in spare:
        panel.set_axis_off()
    if not handles:
        return
    if len(spare):
        spare[0].legend(handles=handles, loc="center")
    else:
        figure.legend(handles=handles, loc="outside lower center", ncol=2 if narrow(figure) else 4)


def _panel(
    figure: Figure,
    panel: Any,
    landscape: Landscape,
    name: str,
    rho: float | None,
    solid: bool,
    center: str,
    camera: tuple[float, float] | None,
) -> list[Any]:
    """Draw one quantity and return the handles of a legend for the whole figure."""
    if not np.isfinite(landscape.values[name]).any():
        panel.set_axis_off()
        return []
    if len(landscape.axes) == 1:
        return lines.line(panel, landscape, name, rho, center)
    if solid:
        return surfaces.surface(panel, landscape, name, center, camera)
    return planes.contour(figure, panel, landscape, name, rho, alone=len(landscape.values) == 1, center=center)


def _data(landscape: Landscape) -> list[dict[str, Any]]:
    """Return one row a point: coordinates, every quantity, the second-order model; and one a marked point."""
    places = dict(zip(("x", "y"), np.meshgrid(*landscape.axes, indexing="ij"), strict=False))
    columns = {key: grid.ravel() for key, grid in {**places, **landscape.values}.items()}
    model = landscape.quadratic()
    rows = table(**columns, **({} if model is None else {"model": model.ravel()}))
    marks = [
        {"point": name, **dict(zip(("x", "y"), place, strict=False)), "loss": loss}
        for name, place, loss in landscape.marks
    ]
    return [*rows, *marks]


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
    found = lines.barrier(landscape)
    if found is not None:
        parts.append(f"the barrier between the two is {short(max(found[1], 0.0))}, at {short(found[0])} of the way")
    return "; ".join(parts) + "."
