"""A plane as filled contours, with the second-order model, SAM's ball and the checkpoints over them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.landscape.axes import text as level_text
from hessprobe.landscape.result import Floats, Landscape
from hessprobe.report.figures.labels import name as beside
from hessprobe.report.figures.landscape_scale import (
    DEPARTURE,
    HOLE,
    Scale,
    axis_label,
    bar_ticks,
    quantity,
    scale,
)
from hessprobe.report.figures.style import (
    BLACK,
    DIVERGING,
    FILLED,
    GRAY,
    MAP,
    ORANGE,
    OVER_DARK,
    OVER_LIGHT,
    PURPLE,
    SKY,
    VERMILION,
    narrow,
    small,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

# A number on a contour within this share of the panel from its frame would be cut by it.
_BORDER = 0.1
# Axes of two lengths are drawn to one scale up to this ratio.
_LONGEST = 2.5
# Beside a panel that is lower than this times its width there is no room for a long name.
_FLAT = 0.7
# Names beside checkpoints, in a figure of one column and in others.
_NAMED_NARROW, _NAMED = 5, 9
_DARK = "#222222"
# Of paths over the map, told from it and from each other by color and lightness.
_PATH_COLORS = ("#ff7f4d", "#f2a7d6", "#8fd3ff", "#fefefe")
# What the name of a checkpoint has beyond that of its run.
_MOMENT = re.compile(r"[-_.]?(?:epoch|step)[-_]?\d+$")


def shape(landscape: Landscape) -> float:
    """Return height over width of the panel: a square, or to scale where both axes are in one unit."""
    x, y = (axis[-1] - axis[0] for axis in landscape.axes)
    ratio = float(y / x)
    equal = landscape.kind != "random" and math.isclose(*landscape.lengths, rel_tol=1e-3)
    return ratio if equal and 1 / _LONGEST <= ratio <= _LONGEST else 1.0


def contour(
    figure: Figure, panel: Axes, landscape: Landscape, name: str, rho: float | None, *, alone: bool, center: str
) -> list[Any]:
    """Draw one quantity of a plane and return the handles of a legend.

    Args:
        figure: with the panel.
        panel: empty axes.
        landscape: of a plane.
        name: of the quantity.
        rho: radius of SAM's ball, or None.
        alone: whether it is the only panel, so that numbers on lines and names of points have room.
        center: what the checkpoint at 0 is called.
    """
    values = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    shown = scale(values, name)
    x, y = landscape.axes
    panel.set_label(FILLED)
    panel.set_facecolor(HOLE)
    diverging = name.startswith("lambda") and float(np.nanmin(values)) < 0 < float(np.nanmax(values))
    grid = np.ma.masked_invalid(values.T)
    filled = panel.contourf(x, y, grid, levels=shown.levels, norm=shown.norm, cmap=DIVERGING if diverging else MAP)
    filled.set_rasterized(True)
    lines = panel.contour(x, y, grid, levels=shown.levels, colors=OVER_LIGHT, linewidths=0.4, alpha=0.7)
    modeled = name == "loss" and landscape.quadratic() is not None
    if alone and not modeled:
        _number(panel, landscape, lines, shown, OVER_LIGHT, _DARK)
    _hatch(panel, landscape, name)
    _bar(figure, panel, filled, shown, name, alone)
    handles = _overlays(panel, landscape, shown, rho, alone) if name == "loss" else []
    handles += _marks(panel, landscape, shown.norm if name == "loss" else None, center, alone)
    _frame(panel, landscape, 5 if alone or not narrow(figure) else 3)
    return handles


def _bar(figure: Figure, panel: Any, filled: Any, shown: Scale, name: str, alone: bool) -> None:
    """Put the bar beside the panel, as high as it is; on top of it where two panels share one column."""
    above = not alone and narrow(figure)
    place = panel.inset_axes((0.0, 1.04, 1.0, 0.05) if above else (1.03, 0.0, 0.045, 1.0), label=FILLED)
    bar = figure.colorbar(filled, cax=place, orientation="horizontal" if above else "vertical")
    if above:
        place.xaxis.set_ticks_position("top")
    bar_ticks(bar, shown, 6 if alone else 3 if above else 5)
    if alone:
        bar.set_label(quantity(name), labelpad=3)


def _number(panel: Any, landscape: Landscape, lines: Any, shown: Scale, color: str, halo: str) -> None:
    """Write the value on every line that is a tick of the bar; no line is cut open for it.

    Where the model is drawn, its lines alone have numbers: those of the loss are the borders of the fill, on the bar.
    """
    from matplotlib.patheffects import withStroke

    written = [level for level in lines.levels if np.isclose(level, shown.ticks).any()]
    for text in panel.clabel(lines, written, fmt=level_text, fontsize=small(), colors=color, inline=False):
        text.set_path_effects([withStroke(linewidth=1.6, foreground=halo)])
        if _at_border(landscape, text.get_position()):
            text.remove()


def _at_border(landscape: Landscape, place: tuple[float, float]) -> bool:
    """Return whether a number on a contour would be cut by the frame."""
    shares = [(at - axis[0]) / (axis[-1] - axis[0]) for at, axis in zip(place, landscape.axes, strict=True)]
    return not all(_BORDER < share < 1 - _BORDER for share in shares)


def _hatch(panel: Axes, landscape: Landscape, name: str) -> None:
    holes = landscape.done & ~np.isfinite(landscape.values[name])
    x, y = landscape.axes
    if holes.any():
        panel.contourf(x, y, holes.T.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
        panel.scatter(*_places(landscape, holes), marker="x", s=6, c="#555555", linewidths=0.5)


def _places(landscape: Landscape, mask: Any) -> tuple[Floats, Floats]:
    i, j = np.nonzero(mask)
    return landscape.axes[0][i], landscape.axes[1][j]


def _overlays(panel: Axes, landscape: Landscape, shown: Scale, rho: float | None, alone: bool) -> list[Any]:
    """Draw the second-order model, the border of its validity and SAM's ball; return legend handles."""
    from matplotlib.lines import Line2D

    handles = []
    x, y = landscape.axes
    model, share = landscape.quadratic(), landscape.departure()
    if model is not None and share is not None:
        dashed = panel.contour(x, y, model.T, levels=shown.ticks, colors=OVER_DARK, linewidths=0.8, linestyles="dashed")
        if alone:
            _number(panel, landscape, dashed, shown, OVER_DARK, OVER_LIGHT)
        handles.append(Line2D([], [], color=BLACK, lw=0.8, ls="--", label="second-order model"))
        if np.nanmax(share) > DEPARTURE:
            masked = np.ma.masked_invalid(share.T)
            panel.contour(x, y, masked, levels=[DEPARTURE], colors=VERMILION, linewidths=1.2)
            handles.append(Line2D([], [], color=VERMILION, lw=1.2, label="model 10 % off"))
    if rho is not None:
        from hessprobe.landscape.axes import circle

        ring = circle(landscape.gram, rho)
        panel.plot(ring[:, 0], ring[:, 1], color=SKY, lw=1.4)
        tiny = np.abs(ring).max() < 0.012 * (x[-1] - x[0])
        where = " (inside the star)" if tiny else ""
        handles.append(Line2D([], [], color=SKY, lw=1.4, label=f"SAM's ball, $\\rho$ = {rho:g}{where}"))
    return handles


def _marks(panel: Axes, landscape: Landscape, norm: Normalize | None, center: str, alone: bool) -> list[Any]:
    """Draw the center and the marked points, checkpoints filled with the color of their true loss."""
    from matplotlib.lines import Line2D

    panel.plot(0, 0, marker="*", ms=7, mfc=OVER_LIGHT, mec=OVER_DARK, mew=0.6, ls="none", zorder=6)
    handles: list[Any] = [Line2D([], [], marker="*", ms=7, mfc=OVER_LIGHT, mec=BLACK, ls="none", label=center)]
    if landscape.kind == "gradient":
        for (name, place, _), marker, color in zip(landscape.marks, ("^", "D"), (ORANGE, PURPLE), strict=False):
            panel.plot(*place, marker=marker, ms=4.5, mfc=color, mec=OVER_DARK, mew=0.6, ls="none", zorder=7)
            handles.append(Line2D([], [], marker=marker, ms=4.5, mfc=color, mec=BLACK, ls="none", label=_greek(name)))
        return handles
    if not landscape.marks:
        return handles
    places = np.array([place for _, place, _ in landscape.marks])
    runs = runs_of([name for name, _, _ in landscape.marks]) if landscape.kind == "pca" else {}
    if len(runs) > 1:
        return handles + _paths(panel, places, runs)
    if landscape.kind == "pca":
        path = in_order(places)
        panel.plot(*places[path].T, color=OVER_LIGHT, lw=0.9, zorder=4)
    _mark_checkpoints(panel, landscape, places, norm, alone)
    label = "fill: loss" if norm is not None else "projected"
    handles.append(Line2D([], [], marker="o", ms=4, mfc=GRAY, mec=BLACK, mew=0.5, ls="none", label=f"others ({label})"))
    return handles


def runs_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of the checkpoints of each run in order: ``sgd``, ``sgd-epoch-0002``; none where one is alone.

    Args:
        names: of the checkpoints, the center first.
    """
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(run_of(name), []).append(index)
    return found if all(len(each) > 1 for each in found.values()) else {}


def run_of(name: str) -> str:
    """Return the run of a checkpoint: its name without the epoch or step at its end."""
    return _MOMENT.sub("", name)


def _paths(panel: Any, places: Floats, runs: Mapping[str, Sequence[int]]) -> list[Any]:
    """Draw the path of every run in its color, from a hollow start to a full end; return handles of a legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    handles: list[Any] = []
    for (name, indices), color in zip(runs.items(), _PATH_COLORS * len(runs), strict=False):
        # The center is named first whichever end of its run it is; the last of the others stands last.
        own = [indices[place] for place in in_order(places[list(indices)])] if indices[0] == 0 else list(indices)
        halo = [withStroke(linewidth=2.6, foreground=OVER_DARK)]
        panel.plot(*places[own].T, color=color, lw=1.4, zorder=5, path_effects=halo)
        for at, face in ((own[0], OVER_LIGHT), (own[-1], color)):
            if places[at].any():
                panel.plot(*places[at], marker="o", ms=5, mfc=face, mec=OVER_DARK, mew=0.7, ls="none", zorder=6)
        panel.plot(*places[own[1:-1]].T, marker="o", ms=2.4, mfc=color, mec=OVER_DARK, mew=0.3, ls="none", zorder=6)
        handles.append(Line2D([], [], color=color, lw=1.8, marker="o", ms=4, mec=BLACK, mew=0.5, label=name))
    handles.append(Line2D([], [], marker="o", ms=4, mfc=OVER_LIGHT, mec=BLACK, mew=0.7, ls="none", label="start"))
    return handles


def in_order(places: Floats) -> list[int]:
    """Return the order of a trajectory: that of its points, with the center, which is the first, at the nearer end.

    The center is named first whichever end of the training it is, and one line too many would be drawn otherwise.
    """
    rest = list(range(1, len(places)))
    start, end = (float(np.linalg.norm(places[index] - places[0])) for index in (1, -1))
    return [0, *rest] if start <= end else [*rest, 0]


def _greek(text: str) -> str:
    return text.replace("rho", "$\\rho$").replace("alpha*", "$\\alpha^*$")


def _mark_checkpoints(panel: Any, landscape: Landscape, places: Floats, norm: Normalize | None, alone: bool) -> None:
    from matplotlib import colormaps

    box = {"boxstyle": "round,pad=0.12", "fc": (0.0, 0.0, 0.0, 0.5), "ec": "none"}
    # The center has its star and the legend.
    others = [index for index, place in enumerate(places) if place.any()]
    most = _NAMED_NARROW if narrow(panel.figure) else _NAMED
    named = (
        {others[round(step)] for step in np.linspace(0, len(others) - 1, min(most, len(others)))} if alone else set()
    )
    names = shortened([landscape.marks[index][0] for index in others])
    for index, text in zip(others, names, strict=True):
        loss = landscape.marks[index][2]
        known = norm is not None and loss is not None and math.isfinite(loss)
        color = colormaps[MAP](norm(loss)) if known and norm is not None and loss is not None else OVER_LIGHT
        panel.plot(*places[index], marker="o", ms=4.5, mfc=color, mec=OVER_LIGHT, mew=0.8, ls="none", zorder=5)
        if index in named:
            said = f"{text}: {loss:.3g}" if known and not narrow(panel.figure) else text
            beside(panel, tuple(places[index]), said, fontsize=small(), color=OVER_LIGHT, bbox=box, zorder=7)


def shortened(names: list[str]) -> list[str]:
    """Return names without the words that all begin with: ``run-epoch-0002`` and ``run-epoch-0010``, 0002 and 0010."""
    common = ""
    for letters in zip(*names, strict=False):
        if len(names) < 2 or len(set(letters)) > 1:
            break
        common += letters[0]
    # Only whole words go.
    cut = max((index + 1 for index, letter in enumerate(common) if not letter.isalnum()), default=0)
    return [name[cut:] or name for name in names]


def _frame(panel: Any, landscape: Landscape, ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    x, y = landscape.axes
    panel.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    panel.set_box_aspect(shape(landscape))
    panel.set_xlabel(axis_label(landscape, 0))
    label = axis_label(landscape, 1)
    panel.set_ylabel(label if shape(landscape) > _FLAT else label.replace(" of variance", ""))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(ticks))
