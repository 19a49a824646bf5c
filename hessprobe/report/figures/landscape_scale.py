"""What every figure of a landscape shares: one scale for fill, lines and bar; headings, labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.landscape.names import TITLES
from hessprobe.landscape.result import Floats, Landscape, spans_decades

if TYPE_CHECKING:
    from matplotlib.colors import Normalize

HOLE = "#bbbbbb"
# Share of the loss by which the second-order model may be off.
DEPARTURE = 0.1
# Levels at least and about, and the ticks of a bar at most.
_LEAST, _ABOUT, _TICKS = 7, 12, 6
# Numbers that levels begin with, from few to many a decade.
_BEGINNINGS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_SHORT = {"lambda-max": r"$\lambda_{\max}$ of the Hessian", "lambda-min": r"$\lambda_{\min}$ of the Hessian"}


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

    @staticmethod
    def text(value: float) -> str:
        """Return a level in print."""
        return f"{value:.4g}".replace("-", "\u2212")


def scale(values: Floats, name: str) -> Scale:
    """Return the scale of quantity ``name``: logarithmic where positive values span more than a decade."""
    from matplotlib.colors import LogNorm, TwoSlopeNorm
    from matplotlib.colors import Normalize as Linear

    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    if spans_decades(values, name):
        levels = _decades(low, high)
        return Scale(LogNorm(levels[0], levels[-1]), levels, _few(levels), True)
    levels = _even(low, high)
    if name.startswith("lambda") and low < 0 < high:
        return Scale(TwoSlopeNorm(0.0, levels[0], levels[-1]), levels, _few(levels, 0.0), False)
    return Scale(Linear(levels[0], levels[-1]), levels, _few(levels), False)


def _even(low: float, high: float) -> Floats:
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=_ABOUT, steps=[1, 2, 2.5, 5, 10], min_n_ticks=_LEAST)
    return np.asarray(locator.tick_values(low, high), dtype=np.float64)


def _decades(low: float, high: float) -> Floats:
    """Return round numbers that cover [low, high], by ratio: as few beginnings as give enough of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = np.array([low, high])
    for beginnings in _BEGINNINGS:
        every = np.array([beginning * 10.0**power for power in powers for beginning in beginnings])
        first, last = np.searchsorted(every, low, "right") - 1, np.searchsorted(every, high, "left")
        found = every[max(first, 0) : last + 1]
        if len(found) >= _LEAST:
            break
    return found


def _few(levels: Floats, kept: float | None = None) -> Floats:
    """Return every so many of the levels, ``kept`` among them."""
    step = -(-len(levels) // _TICKS)
    first = 0 if kept is None else int(np.argmin(np.abs(levels - kept))) % step
    return levels[first::step]


def bar_ticks(bar: Any, shown: Scale, most: int = _TICKS) -> None:
    """Put at most ``most`` ticks on a color bar, at levels."""
    ticks = shown.ticks[:: -(-len(shown.ticks) // most)]
    bar.set_ticks(ticks, labels=[shown.text(value) for value in ticks])
    bar.ax.minorticks_off()


def quantity(name: str) -> str:
    """Return what stands over a panel or beside a bar."""
    return _SHORT.get(name, TITLES[name])


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
        .replace("eigenvector of", r"along $v$, $\lambda$ =")
    )
    return f"{label}{unit}"
