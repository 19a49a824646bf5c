"""A line through parameter space as a curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.landscape.result import Landscape
from hessprobe.report.figures.landscape_scale import DEPARTURE, HOLE, axis_label, quantity, scale
from hessprobe.report.figures.style import BLUE, GRAY, GREEN, ORANGE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def line(panel: Axes, landscape: Landscape, name: str, rho: float | None, center: str) -> list[Any]:
    """Draw one quantity of a line with its second-order model, SAM's ball, holes and checkpoints.

    Returns:
        Handles of a legend for the whole figure.
    """
    x, values = landscape.axes[0], landscape.values[name]
    shown = np.where(np.isfinite(values), values, np.nan)
    marker = "o" if len(x) <= 31 else None
    panel.plot(x, shown, color=BLUE, lw=1.6, marker=marker, ms=2.5, zorder=3)
    logarithmic = scale(shown, name).logarithmic
    panel.set_yscale("log" if logarithmic else "linear")
    bottom, top = panel.get_ylim()
    model = landscape.quadratic() if name == "loss" else None
    if model is not None:
        _departure(panel, landscape)
        panel.plot(x, np.where(model > 0, model, np.nan) if logarithmic else model, color="black", lw=1, ls="--",
                   label="second-order model", zorder=2)  # fmt: skip
    if rho is not None and name == "loss":
        half = rho / landscape.lengths[0]
        panel.axvspan(-half, half, color=SKY, alpha=0.3, lw=0, label=f"SAM's ball, $\\rho$ = {rho:g}")
    for hole in x[landscape.done & ~np.isfinite(values)]:
        panel.axvspan(hole - (x[1] - x[0]) / 2, hole + (x[1] - x[0]) / 2, color=HOLE, lw=0, zorder=0)
    panel.plot(0, values[landscape.center], marker="*", ms=7, mfc="white", mec="black", mew=0.6, ls="none",
               label=center, zorder=5)  # fmt: skip
    for mark, place, loss in landscape.marks:
        if any(place) and loss is not None and name == "loss":
            panel.plot(place[0], loss, marker="o", ms=4.5, mfc=ORANGE, mec="black", mew=0.6, ls="none", zorder=5,
                       label=f"{mark}, true loss")  # fmt: skip
    found = barrier(landscape) if name == "loss" else None
    if found is not None and found[1] > 0:
        at, height, chord = found
        ends = landscape.values["loss"][[landscape.center[0], int(np.flatnonzero(x == 1.0)[0])]]
        panel.plot([0, 1], ends, color=GRAY, lw=0.9, zorder=1)
        panel.plot([at, at], [chord, chord + height], color=GREEN, lw=1.6, marker="_", ms=5, zorder=4,
                   label=f"barrier {height:.3g}")  # fmt: skip
    panel.set(xlim=(x[0], x[-1]), ylim=(bottom, top), xlabel=axis_label(landscape, 0), ylabel=quantity(name))
    panel.grid()
    handles, _ = panel.get_legend_handles_labels()
    return handles


def barrier(landscape: Landscape) -> tuple[float, float, float] | None:
    """Return where between two checkpoints the loss is farthest above the straight line of their losses.

    B = max over t in [0, 1] of L(t) - (1 - t) L(0) - t L(1), on the points of the grid (Frankle et al. 2020).

    Returns:
        t, B and the straight line's loss there; None where the line is not one between two checkpoints.
    """
    x, loss = landscape.axes[0], landscape.values["loss"]
    between = (x >= 0) & (x <= 1)
    if landscape.kind != "line" or len(landscape.axes) != 1 or len(landscape.marks) != 2 or not (x == 1).any():
        return None
    if not np.isfinite(loss[between]).all():
        return None
    t, values = x[between], loss[between]
    chord = (1 - t) * values[0] + t * values[-1]
    top = int(np.argmax(values - chord))
    return float(t[top]), float(values[top] - chord[top]), float(chord[top])


def _departure(panel: Axes, landscape: Landscape) -> None:
    """Mark on either side of the center how far the second-order model is within a tenth of the loss."""
    share, x = landscape.departure(), landscape.axes[0]
    if share is None or not np.nanmax(share) > DEPARTURE:
        return
    # A hole is no point at which the model holds.
    good = share <= DEPARTURE
    first = last = landscape.center[0]
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(x) - 1 and good[last + 1]:
        last += 1
    for number, end in enumerate(x[[first, last]]):
        panel.axvline(end, color=VERMILION, lw=1.0, ls=":", label=None if number else "model within 10 %",
                      zorder=1)  # fmt: skip
