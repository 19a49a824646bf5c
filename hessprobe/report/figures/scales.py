"""Axes that are logarithmic where numbers are spread over decades, with the numbers written out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Beyond this ratio of largest to smallest an axis is logarithmic.
DECADE = 8.0
# Beyond this ratio powers of ten alone are ticks enough.
_WIDE = 300.0
# Numbers of more zeros than these have are not read: powers of ten stand there.
_LOW, _HIGH = 1e-5, 1e6


def logarithmic(panel: Any, which: str, values: ArrayLike, decade: float = DECADE) -> bool:
    """Make an axis logarithmic where its values are positive and spread, and return whether it is.

    Args:
        panel: the axes.
        which: ``"x"`` or ``"y"``.
        values: all that the axis shows; what is not finite does not count.
        decade: ratio of the largest to the smallest beyond which it is logarithmic.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    every = np.asarray(values, dtype=np.float64)
    known = every[np.isfinite(every)]
    if not len(known) or not known.min() > 0 or not known.max() > decade * known.min():
        return False
    panel.set(**{f"{which}scale": "log"})
    axis = panel.xaxis if which == "x" else panel.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0,) if known.max() > _WIDE * known.min() else (1.0, 2.0, 5.0)))
    axis.set_minor_formatter(NullFormatter())
    if known.min() >= _LOW and known.max() <= _HIGH:
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    return True
