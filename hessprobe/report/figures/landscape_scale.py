"""What every figure of a landscape shares: one scale for fill, lines and bar; headings, labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hessprobe.landscape.axes import levels, text, ticks
from hessprobe.landscape.names import TITLES
from hessprobe.landscape.result import Floats, Landscape
from hessprobe.measures.table import TABLE

if TYPE_CHECKING:
    from matplotlib.colors import Normalize

HOLE = "#bbbbbb"
# Share of the loss by which the second-order model may be off.
DEPARTURE = 0.1
# Ticks of a bar at most.
_TICKS = 6


@dataclass(frozen=True)
class Scale:
    """Colors of values.

    Attributes:
        norm: from values to colors, over all levels.
        levels: round numbers that cover the values; fill changes and lines run at them.
        ticks: those that are written, on the bar and on lines.
        logarithmic: whether levels are spaced by ratio.
    """

    norm: Normalize
    levels: Floats
    ticks: Floats
    logarithmic: bool


def scale(values: Floats, name: str) -> Scale:
    """Return the scale of quantity ``name``: logarithmic where positive values span more than a decade."""
    from matplotlib.colors import LogNorm, TwoSlopeNorm
    from matplotlib.colors import Normalize as Linear

    every, by_ratio = levels(values, name)
    if by_ratio:
        return Scale(LogNorm(every[0], every[-1]), every, ticks(every), True)
    if name.startswith("lambda") and every[0] < 0 < every[-1]:
        return Scale(TwoSlopeNorm(0.0, every[0], every[-1]), every, ticks(every, 0.0), False)
    return Scale(Linear(every[0], every[-1]), every, ticks(every), False)


def bar_ticks(bar: Any, shown: Scale, most: int = _TICKS) -> None:
    """Put at most ``most`` ticks on a color bar, at levels."""
    written = shown.ticks[:: -(-len(shown.ticks) // most)]
    bar.set_ticks(written, labels=[text(value) for value in written])
    bar.ax.minorticks_off()


def quantity(name: str) -> str:
    """Return what stands over a panel or beside a bar."""
    return f"{TABLE[name].symbol} of the Hessian" if name in TABLE else TITLES[name]


def missing(landscape: Landscape, name: str) -> str:
    """Return in words how many points are missing, "" where none is."""
    holes = landscape.holes(name)
    return f"{holes} of {landscape.done.size} points not finite (hatched)" if holes else ""


def heading(landscape: Landscape, name: str, title: str = "") -> str:
    """Return the title of a panel: the quantity, or another title, and how much is missing."""
    lost = missing(landscape, name)
    return f"{title or quantity(name)}{lost and chr(10)}{lost}"


def axis_label(landscape: Landscape, index: int) -> str:
    """Return what an axis is, and how long one unit of it is where that is not 1."""
    length = landscape.lengths[index]
    unit = "" if math.isclose(length, 1.0, rel_tol=1e-3) else f"\n(1 = {length:.3g} in parameter space)"
    label = (
        landscape.labels[index]
        .replace("principal component", "PC")
        .replace("eigenvector of", rf"along $v_{index + 1}$, $\lambda$ =")
    )
    return f"{label}{unit}"
