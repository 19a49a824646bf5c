"""A plane as a surface in three dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hessprobe.landscape.result import Floats, Landscape
from hessprobe.report.figures.landscape_scale import axis_label, quantity, scale
from hessprobe.report.figures.style import FILLED, MAP, OVER_LIGHT, VERMILION

# Degrees above the floor, and the turns that are tried, the usual one first; both axes are seen from all of them.
ELEVATION, _TURNS = 35.0, (-60, -50, -40, -30, -120, -130, -140, -150, 30, 40, 50, 60, 120, 130, 140, 150)
# Share of the height that the floor lies below the surface.
_FLOOR = 0.25


def surface(panel: Any, landscape: Landscape, name: str, center: str, camera: tuple[float, float] | None) -> list[Any]:
    """Draw one quantity of a plane as a surface over its contours on the floor, and return handles of a legend.

    Args:
        panel: three-dimensional axes.
        landscape: of a plane.
        name: of the quantity.
        center: what the checkpoint at 0 is called.
        camera: elevation and turn in degrees; None for a turn from which the checkpoint is seen, see ``free_turn``.
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    shown = scale(values, name)
    x, y = np.meshgrid(*landscape.axes, indexing="ij")
    height = np.log10(values) if shown.logarithmic else values
    colors = colormaps[MAP](shown.norm(np.nan_to_num(values, nan=float(np.nanmin(values)))))
    colors[~np.isfinite(values)] = 0.0
    panel.set_label(FILLED)
    panel.computed_zorder = False
    low, high = float(np.nanmin(height)), float(np.nanmax(height))
    floor = low - _FLOOR * (high - low or 1.0)
    levels = np.log10(shown.levels) if shown.logarithmic else shown.levels
    panel.contour(x, y, np.ma.masked_invalid(height), levels=levels, offset=floor, cmap=MAP, linewidths=0.8, zorder=1)
    panel.plot_surface(
        x, y, height, facecolors=colors, rcount=len(x), ccount=len(y), linewidth=0.15, edgecolor=(0, 0, 0, 0.25),
        antialiased=True, shade=False, zorder=2,
    )  # fmt: skip
    at = float(height[landscape.center])
    panel.plot([0, 0], [0, 0], [floor, at], color=VERMILION, lw=0.9, ls=":", zorder=3)
    panel.plot([0], [0], [at], marker="*", ms=8, mfc=VERMILION, mec=OVER_LIGHT, mew=0.6, ls="none", zorder=4)
    panel.set_zlim(floor, high)
    # The room for the contours on the floor is no part of the scale.
    ticks = levels if shown.logarithmic else MaxNLocator(4).tick_values(low, high)
    panel.set_zticks([tick for tick in ticks[:: -(-len(ticks) // 6)] if low - 1e-9 <= tick <= high + 1e-9])
    if shown.logarithmic:
        panel.zaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.3g}"))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(3))
    panel.set_xlabel(_short(landscape, 0), labelpad=-3)
    panel.set_ylabel(_short(landscape, 1), labelpad=-3)
    panel.set_zlabel(quantity(name), labelpad=-4)
    panel.tick_params(pad=-3)
    elevation, turn = camera or (ELEVATION, free_turn(landscape, height))
    panel.view_init(elev=elevation, azim=turn)
    panel.set_box_aspect((1, 1, 0.8), zoom=0.88)
    return [Line2D([], [], marker="*", ms=8, mfc=VERMILION, mec=OVER_LIGHT, mew=0.6, ls="none", label=center)]


def _short(landscape: Landscape, index: int) -> str:
    """Return the name of an axis that fits along an edge of the box: without its norm, unit or share."""
    label = axis_label(landscape, index).partition("\n")[0].partition(", filter")[0].partition(" (")[0]
    return label.replace("along the rest of SAM's gradient", "rest of SAM's").replace("random direction", "direction")


def free_turn(landscape: Landscape, height: Floats) -> float:
    """Return the azimuth of the camera in degrees at which the surface hides the checkpoint least.

    Along the line of sight from the checkpoint, the surface is compared with the ray that rises with the camera's
    elevation, all three axes scaled to one length; the first turn at which nothing is above the ray is taken, and the
    one with the least above it where every turn is hidden.
    """
    x, y = landscape.axes
    span = float(np.nanmax(height) - np.nanmin(height)) or 1.0
    start = float(height[landscape.center])
    steps = np.linspace(0.02, 1.4, 70)
    least, best = math.inf, float(_TURNS[0])
    for turn in _TURNS:
        along = steps[:, None] * np.array([math.cos(math.radians(turn)), math.sin(math.radians(turn))])
        i = np.round(np.interp(along[:, 0] * (x[-1] - x[0]), x, np.arange(len(x)), -1, -1)).astype(int)
        j = np.round(np.interp(along[:, 1] * (y[-1] - y[0]), y, np.arange(len(y)), -1, -1)).astype(int)
        inside = (i >= 0) & (j >= 0)
        # The box is 0.8 as high as it is wide, the floor's room included.
        rise = 0.8 * (height[i[inside], j[inside]] - start) / (span * (1 + _FLOOR))
        above = np.nan_to_num(rise - steps[inside] * math.tan(math.radians(ELEVATION)), nan=-1.0)
        hidden = float(above.max(initial=0.0))
        if hidden < least - 1e-12:
            least, best = hidden, float(turn)
        if hidden <= 0:
            break
    return best
