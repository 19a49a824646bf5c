"""The spectral density with its band, and the extreme eigenvalues with their residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import Floats, array, between, entry, short
from hessprobe.report.figures.style import BLUE, COLORS, GRAY, SKY, VERMILION
from hessprobe.report.numbers import with_error
from hessprobe.report.typography import pretty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Below this share of the largest eigenvalue the symlog axis is linear: the width of the bulk of a trained network.
_LINEAR = 1e-3
# What a symlog axis has beyond the outermost point, as a factor.
_ROOM = 1.6
# A density this far below its largest value is drawn on the floor.
_DECADES = 6
_BAND = (
    "The band holds with this confidence at each point, not at all of them at once. It is what the Lanczos steps and "
    "probes leave open about the share below: wide where the steps are too few to tell crowded eigenvalues apart, as "
    "near 0."
)
OPERATORS = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "functional": "functional part",
}


def density(row: Mapping[str, Any], where: str) -> Drawn:
    """Return the density and, below it, the distribution function in its band, on a linear and a symlog axis.

    Args:
        row: of the measure ``density``.
        where: the row in words.

    Raises:
        RecordError: an array is missing.
    """
    grid, curve, cdf, low, high = (
        array(row, name, where) for name in ("grid", "density", "cdf", "cdf_band_low", "cdf_band_high")
    )
    nodes, weights = array(row, "nodes", where), array(row, "weights", where)
    level = 100 * entry(row, "confidence", (int, float), where)

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, scale in enumerate(("linear", "symlog")):
            _density(panels[0, column], grid, curve, nodes, weights)
            _distribution(panels[1, column], grid, cdf, low, high, level)
            _axis(panels[1, column], scale, nodes)
        panels[0, 0].set_ylabel("density")
        panels[1, 0].set_ylabel("share of eigenvalues below")
        # Above the panels: curve and band fill them to the corners.
        handles = [handle for panel in panels[:, 1] for handle in panel.get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside upper center", ncol=4, columnspacing=1.2)

    matrix = OPERATORS.get(str(row["operator"]), str(row["operator"]))
    alt = (
        f"Above, how many eigenvalues of the {matrix} lie where, from {short(float(nodes.min()))} to "
        f"{short(float(nodes.max()))}; below, the share of them below each point: left on a linear axis, right on a "
        f"logarithmic one. {_quantiles(row, where)}At 0 the {level:g} % band of the distribution reaches from "
        f"{100 * float(np.interp(0.0, grid, low)):.3g} to {100 * float(np.interp(0.0, grid, high)):.3g} %. {_BAND}"
    )
    return Drawn(f"density-{row['operator']}", f"Spectral density of the {matrix}", alt, draw, (7.6, 5.0))


def _quantiles(row: Mapping[str, Any], where: str) -> str:
    """Return the outer and the middle quantile in a sentence; nothing of a record that has none."""
    if "quantile" not in (row.get("arrays") or {}):
        return ""
    names = ("quantile_levels", "quantile", "quantile_low", "quantile_high")
    levels, values, lows, highs = (array(row, name, where) for name in names)
    shown = [0, len(levels) // 2, len(levels) - 1]
    texts = [
        f"{100 * levels[i]:g} % up to {between(values[i], values[i] - lows[i], highs[i] - values[i])}" for i in shown
    ]
    return f"Of the eigenvalues lie {'; '.join(texts)}. "


def densities(name: str, rows: Mapping[str, tuple[Mapping[str, Any], str]]) -> Drawn:
    """Return the densities of several matrices over each other, on a linear and a symlog axis.

    Args:
        name: of the figure.
        rows: by matrix: the row of the measure ``density``, and the row in words.

    Raises:
        RecordError: an array is missing.
    """
    curves = {
        title: tuple(array(row, key, where) for key in ("grid", "density", "nodes"))
        for title, (row, where) in rows.items()
    }
    nodes = np.concatenate([found[2] for found in curves.values()])
    top = max(float(curve.max()) for _, curve, _ in curves.values())

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplots(1, 2, sharey=True)
        for panel, scale in zip(panels, ("linear", "symlog"), strict=True):
            for (title, (grid, curve, _)), color in zip(curves.items(), COLORS, strict=False):
                # The first is seen through the others where they agree.
                dash = "-" if title == next(iter(curves)) else "--"
                panel.plot(grid, curve, dash, color=color, lw=1.2, label=title)
            panel.set(yscale="log", ylim=(top * 10.0**-_DECADES, 3 * top))
            panel.grid()
            _axis(panel, scale, nodes)
        panels[0].set_ylabel("density")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncol=len(curves))

    ends = [f"{title} from {short(float(n.min()))} to {short(float(n.max()))}" for title, (_, _, n) in curves.items()]
    return Drawn(name, "Spectral densities side by side", f"Spectral densities: {'; '.join(ends)}.", draw, (7.6, 3.2))


def _density(panel: Any, grid: Floats, curve: Floats, nodes: Floats, weights: Floats) -> None:
    top = float(curve.max())
    panel.plot(grid, curve, color=BLUE, label="density", zorder=3)
    panel.fill_between(grid, top * 10.0**-_DECADES, curve, color=SKY, alpha=0.3, lw=0)
    # The outliers that smoothing hides: one tick a Ritz value of weight above a millionth.
    shown = nodes[weights > 1e-6 * weights.max()]
    panel.plot(shown, np.full(len(shown), 0.02), "|", color=VERMILION, ms=6, mew=0.6, label="Ritz values",
               transform=panel.get_xaxis_transform(), zorder=4, rasterized=True)  # fmt: skip
    panel.set(yscale="log", ylim=(top * 10.0**-_DECADES, 3 * top))
    panel.grid()


def _distribution(panel: Any, grid: Floats, cdf: Floats, low: Floats, high: Floats, level: float) -> None:
    # Between two points the function is at least what it is at the left one and at most what it is at the right one.
    places, bottom, top = np.repeat(grid, 2)[1:-1], np.repeat(low[:-1], 2), np.repeat(high[1:], 2)
    panel.fill_between(places, bottom, top, color=SKY, alpha=0.6, lw=0, label=f"{level:g} % band, at each point")
    panel.plot(grid, cdf, color=BLUE, lw=1.0, label="distribution function")
    panel.set(ylim=(-0.02, 1.02))
    panel.grid()


def _axis(panel: Any, scale: str, nodes: Floats) -> None:
    if scale == "linear":
        panel.set_xlabel("eigenvalue")
        return
    reach = float(np.abs(nodes).max()) or 1.0
    # Powers of ten, so that the ticks are.
    start, stop = math.floor(math.log10(_LINEAR * reach)), math.floor(math.log10(reach))
    threshold = 10.0**start
    panel.set_xscale("symlog", linthresh=threshold)
    # The margin of the linear axis is none on this one.
    low, high = (end * _ROOM if end * side > 0 else end for end, side in zip(panel.get_xlim(), (-1, 1), strict=True))
    decades = [10.0**power for power in range(start, stop + 1, max((stop - start + 1) // 2, 1))]
    ticks = [-each for each in reversed(decades)] + [0.0] + decades
    panel.set_xticks([each for each in ticks if low <= each <= high])
    panel.minorticks_off()
    panel.set_xlim(low, high)
    panel.set_xlabel(f"eigenvalue, linear below {threshold:g}")


def has_several(row: Mapping[str, Any], where: str) -> bool:
    """Return whether there are eigenvalues to compare: one alone is a number, not a figure."""
    return bool(row.get("arrays")) and len(array(row, "eigenvalues", where)) > 1


def eigenvalues(row: Mapping[str, Any], where: str) -> Drawn:
    """Return the extreme eigenvalues in order with their errors, and the residual of each below.

    Args:
        row: of a measure of eigenvalues, which carries all that were found.
        where: the row in words.

    Raises:
        RecordError: an array is missing.
    """
    values, errors, residuals = (array(row, name, where) for name in ("eigenvalues", "eigenvalue_errors", "residuals"))
    order = np.arange(1, len(values) + 1)

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        top.axhline(0, color=GRAY, lw=0.8)
        top.errorbar(order, values, yerr=errors, fmt="o", ms=4, color=BLUE)
        top.set(ylabel="eigenvalue")
        # An exact zero has no place on a logarithmic axis.
        bottom.plot(order, np.where(residuals > 0, residuals, np.nan), "s", ms=4, color=VERMILION)
        bottom.set(yscale="log", ylabel="residual", xlabel="Ritz value, from the largest down")
        bottom.set_xticks(order if len(order) <= 20 else order[:: len(order) // 10])
        for panel in (top, bottom):
            panel.grid()

    matrix = OPERATORS.get(str(row["operator"]), str(row["operator"]))
    shown = ", ".join(pretty(with_error(float(v), float(e))) for v, e in zip(values[:6], errors[:6], strict=True))
    more = f" and {len(values) - 6} more" if len(values) > 6 else ""
    top = pretty(f"{residuals.max():.2g}")
    alt = f"Extreme eigenvalues of the {matrix}: {shown}{more}; the largest residual is {top}."
    return Drawn(f"eigenvalues-{row['operator']}", f"Extreme eigenvalues of the {matrix}", alt, draw, (5.6, 4.0))
