"""What every figure of a landscape shares: color scale, headings, labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.landscape.names import TITLES
from hessprobe.landscape.result import Floats, Landscape, spans_decades

if TYPE_CHECKING:
    from matplotlib.colors import Normalize

HOLE = "#bbbbbb"
LEVELS = 21
# Share of the loss by which the second-order model may be off.
DEPARTURE = 0.1


def scale(values: Floats, name: str) -> tuple[Normalize, Floats, bool]:
    """Return color scale, contour levels, and whether the scale is logarithmic."""
    from matplotlib.colors import LogNorm, TwoSlopeNorm
    from matplotlib.colors import Normalize as Linear

    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    if spans_decades(values, name):
        return LogNorm(low, high), np.geomspace(low, high, LEVELS), True
    if name.startswith("lambda") and low < 0 < high:
        return TwoSlopeNorm(0.0, low, high), np.linspace(low, high, LEVELS), False
    return Linear(low, high), np.linspace(low, high, LEVELS), False


def bar_ticks(bar: Any, levels: Floats, logarithmic: bool) -> None:
    """Put five ticks on a color bar, at levels."""
    ticks = levels[:: (len(levels) - 1) // 5]
    bar.set_ticks(ticks, labels=[f"{value:.2g}" if logarithmic else f"{value:.3g}" for value in ticks])
    bar.ax.minorticks_off()


def heading(landscape: Landscape, name: str) -> str:
    """Return the title of a panel: the quantity, and how much of it is missing."""
    holes = landscape.holes(name)
    lost = "" if not holes else f"  ({holes} of {landscape.done.size} points not finite, hatched)"
    return f"{TITLES[name]}{lost}"


def axis_label(landscape: Landscape, index: int) -> str:
    """Return what an axis is, and how long one unit of it is where that is not 1."""
    length = landscape.lengths[index]
    unit = "" if math.isclose(length, 1.0, rel_tol=1e-3) else f"\n(1 = {length:.3g} in parameter space)"
    return f"{landscape.labels[index]}{unit}"
