"""A plane as filled contours, with the second-order model, SAM's ball and the checkpoints over them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.landscape.names import TITLES
from hessprobe.landscape.result import Floats, Landscape
from hessprobe.report.figures.labels import name as beside
from hessprobe.report.figures.landscape_scale import DEPARTURE, HOLE, axis_label, bar_ticks, heading, scale
from hessprobe.report.figures.style import DIVERGING, MAP, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

# A number on a contour is cut within this share of the panel from its frame.
_BORDER = 0.04


def contour(figure: Figure, panel: Axes, landscape: Landscape, name: str, rho: float | None) -> list[Any]:
    """Draw one quantity of a plane and return the handles of a legend."""
    from matplotlib.patheffects import withStroke

    values = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    norm, levels, logarithmic = scale(values, name)
    x, y = landscape.axes
    shown = np.ma.masked_invalid(values.T)
    panel.set_facecolor(HOLE)
    diverging = name.startswith("lambda") and float(np.nanmin(values)) < 0 < float(np.nanmax(values))
    filled = panel.contourf(x, y, shown, levels=levels, norm=norm, cmap=DIVERGING if diverging else MAP)
    filled.set_rasterized(True)
    lines = panel.contour(x, y, shown, levels=levels[2:-1:3], norm=norm, colors="white", linewidths=0.5, alpha=0.65)
    texts = panel.clabel(lines, fmt=lambda value: f"{value:.2g}", fontsize=6.5, colors="white", inline_spacing=2)
    for text in texts:
        text.set_alpha(1.0)
        text.set_path_effects([withStroke(linewidth=1.2, foreground="#222222")])
        if _at_border(landscape, text.get_position()):
            text.remove()
    _hatch(panel, landscape, name)
    bar = figure.colorbar(filled, ax=panel, shrink=0.82, pad=0.02)
    bar_ticks(bar, levels, logarithmic)
    bar.set_label(TITLES[name], labelpad=3)
    handles = _overlays(panel, landscape, levels, rho) if name == "loss" else []
    handles += _marks(panel, landscape, norm if name == "loss" else None)
    _frame(panel, landscape, name)
    return handles


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


def _overlays(panel: Axes, landscape: Landscape, levels: Floats, rho: float | None) -> list[Any]:
    """Draw the second-order model, the border of its validity and SAM's ball; return legend handles."""
    from matplotlib.lines import Line2D

    handles = []
    x, y = landscape.axes
    model, share = landscape.quadratic(), landscape.departure()
    if model is not None and share is not None:
        panel.contour(x, y, model.T, levels=levels[2:-1:3], colors="black", linewidths=0.7, linestyles="dashed")
        handles.append(Line2D([], [], color="black", lw=0.8, ls="--", label="second-order model, same levels"))
        if np.nanmax(share) > DEPARTURE:
            masked = np.ma.masked_invalid(share.T)
            panel.contour(x, y, masked, levels=[DEPARTURE], colors=VERMILION, linewidths=1.2)
            handles.append(Line2D([], [], color=VERMILION, lw=1.2, label="model 10 % off the loss"))
    if rho is not None:
        from hessprobe.landscape.geometry import circle

        ring = circle(landscape.gram, rho)
        panel.plot(ring[:, 0], ring[:, 1], color=SKY, lw=1.4)
        small = np.abs(ring).max() < 0.012 * (x[-1] - x[0])
        where = " (inside the star)" if small else ""
        handles.append(Line2D([], [], color=SKY, lw=1.4, label=f"SAM's ball, $\\rho$ = {rho:g}{where}"))
    return handles


def _marks(panel: Axes, landscape: Landscape, norm: Normalize | None) -> list[Any]:
    """Draw the center and the marked points, checkpoints filled with the color of their true loss."""
    from matplotlib.lines import Line2D

    panel.plot(0, 0, marker="*", ms=9, mfc="white", mec="black", mew=0.7, ls="none", zorder=6)
    handles: list[Any] = [Line2D([], [], marker="*", ms=8, mfc="white", mec="black", ls="none", label="checkpoint")]
    if landscape.kind == "gradient":
        for (name, place, _), marker, color in zip(landscape.marks, ("^", "D"), (ORANGE, PURPLE), strict=False):
            panel.plot(*place, marker=marker, ms=6, mfc=color, mec="black", mew=0.6, ls="none", zorder=5)
            handles.append(Line2D([], [], marker=marker, ms=6, mfc=color, mec="black", ls="none", label=_greek(name)))
        return handles
    if not landscape.marks:
        return handles
    places = np.array([place for _, place, _ in landscape.marks])
    if landscape.kind == "pca":
        panel.plot(places[:, 0], places[:, 1], color="white", lw=1.0, zorder=4)
    _mark_checkpoints(panel, landscape, places, norm)
    label = "checkpoints, filled with their true loss" if norm is not None else "checkpoints, projected"
    handles.append(Line2D([], [], marker="o", ms=5, mfc="#35b779", mec="white", ls="none", label=label))
    return handles


def _greek(text: str) -> str:
    return text.replace("rho", "$\\rho$").replace("alpha*", "$\\alpha^*$")


def _mark_checkpoints(panel: Axes, landscape: Landscape, places: Floats, norm: Normalize | None) -> None:
    from matplotlib import colormaps

    every = max(1, math.ceil(len(places) / 12))
    box = {"boxstyle": "round,pad=0.15", "fc": (0.0, 0.0, 0.0, 0.45), "ec": "none"}
    for index, ((name, _, loss), place) in enumerate(zip(landscape.marks, places, strict=True)):
        known = norm is not None and loss is not None and math.isfinite(loss)
        color = colormaps[MAP](norm(loss)) if known and norm is not None and loss is not None else "white"
        if place.any():
            panel.plot(*place, marker="o", ms=5.5, mfc=color, mec="white", mew=0.9, ls="none", zorder=5)
        if not index % every or index == len(places) - 1:
            text = f"{name}: {loss:.3g}" if known else name
            beside(panel, tuple(place), text, fontsize=7, color="white", bbox=box, zorder=7)


def _frame(panel: Any, landscape: Landscape, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    x, y = landscape.axes
    panel.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    panel.set_xlabel(axis_label(landscape, 0))
    panel.set_ylabel(axis_label(landscape, 1))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    panel.set_title(heading(landscape, name))
