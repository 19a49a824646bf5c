"""A plane as a surface in three dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.landscape.names import TITLES
from hessprobe.landscape.result import Landscape
from hessprobe.report.figures.landscape_scale import bar_ticks, scale
from hessprobe.report.figures.style import MAP

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def surface(figure: Figure, panel: Any, landscape: Landscape, name: str) -> list[Any]:
    """Draw one quantity of a plane as a surface, with its contours on the floor."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    shown = scale(values, name)
    norm, logarithmic = shown.norm, shown.logarithmic
    x, y = np.meshgrid(*landscape.axes, indexing="ij")
    height = np.log10(values) if logarithmic else values
    colors = colormaps[MAP](norm(np.nan_to_num(values, nan=float(np.nanmin(values)))))
    colors[~np.isfinite(values)] = 0.0
    panel.plot_surface(
        x, y, height, facecolors=colors, rcount=len(x), ccount=len(y), linewidth=0, antialiased=False, shade=False
    )
    floor = float(np.nanmin(height)) - 0.25 * float(np.nanmax(height) - np.nanmin(height) or 1.0)
    panel.contour(x, y, np.ma.masked_invalid(height), levels=10, offset=floor, cmap=MAP, linewidths=0.8)
    panel.set_zlim(floor, float(np.nanmax(height)))
    # The room for the contours on the floor is no part of the scale.
    ticks = MaxNLocator(5).tick_values(float(np.nanmin(height)), float(np.nanmax(height)))
    panel.set_zticks([tick for tick in ticks if np.nanmin(height) - 1e-9 <= tick <= np.nanmax(height)])
    if logarithmic:
        panel.zaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.2g}"))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    panel.set_xlabel(landscape.labels[0], fontsize=8, labelpad=6)
    panel.set_ylabel(landscape.labels[1], fontsize=8, labelpad=6)
    panel.tick_params(labelsize=7, pad=1)
    panel.view_init(elev=32, azim=-55)
    # Labels of three-dimensional axes are not part of the layout: leave room for them.
    panel.set_box_aspect(None, zoom=0.86)
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=MAP), ax=panel, shrink=0.6, pad=0.08)
    bar.set_label(f"{TITLES[name]}{', log scale' if logarithmic else ''}")
    bar_ticks(bar, shown)
    return []
