"""The spectral density and the distribution function in its band."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures.drawn import Drawn, table
from hessprobe.report.figures.fields import OPERATORS, POSITIVE, Floats, array, between, entry, short
from hessprobe.report.figures.kernel import curve as spread
from hessprobe.report.figures.style import BLUE, COLORS, NARROW, SHADE, SKY, narrow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Below this share of the largest eigenvalue the symlog axis is linear: the width of the bulk of a trained network.
_LINEAR = 1e-3
# Inches below which the label of three axes side by side does not fit.
_ROOMY = 6.0
# Width of a power of ten and of a 0 below a tick, and the least room between two, in inches.
_POWER_WIDE, _ZERO_WIDE, _BETWEEN = 0.34, 0.08, 0.08
# What a symlog axis has beyond the outermost point, as a factor.
_ROOM = 1.6
# Decades below the largest density that are worth the room, and how far the lowest peak is above the floor.
_DECADES, _ABOVE = 9, 4.0
_BAND = (
    "The band holds with this confidence at each point, not at all of them at once. It is what the Lanczos steps and "
    "probes leave open about the share below: wide where the steps are too few to tell crowded eigenvalues apart, as "
    "near 0."
)


def density(row: Mapping[str, Any], where: str) -> Drawn:
    """Return the density and, below it, the distribution function in its band: on a symlog axis, and a linear one.

    In a figure of one column the linear axis is left out. Each density is the spectrum spread by a kernel that is as
    wide on its axis everywhere, so that an outlier is a peak of the same width whatever its size; see ``kernel.curve``.

    Args:
        row: of the measure ``density``.
        where: the row in words.

    Raises:
        RecordError: an array is missing.
    """
    grid, cdf, low, high = (array(row, name, where) for name in ("grid", "cdf", "cdf_band_low", "cdf_band_high"))
    nodes, weights = array(row, "nodes", where), array(row, "weights", where)
    level = 100 * entry(row, "confidence", (int, float), where)
    zero = _threshold(nodes)
    positive = str(row["operator"]) in POSITIVE
    curves = {name: spread(nodes, weights, at, positive) for name, at in (("linear", None), ("symlog", zero))}

    def draw(figure: Figure) -> None:
        scales = ("symlog",) if narrow(figure) else ("linear", "symlog")
        panels: Any = figure.subplots(2, 1, sharex=True) if narrow(figure) else figure.subplots(1, 3)
        for panel, scale in zip(panels, scales, strict=False):
            _density(panel, *curves[scale])
            _floor(panel, *curves[scale], nodes)
            panel.set_ylabel("density")
        _distribution(panels[-1], grid, cdf, low, high, level)
        panels[-1].set_ylabel("share below")
        for panel, scale in zip(panels, (*scales, "symlog"), strict=True):
            _axis(panel, scale, zero, nodes, _ends(curves[scale]), 2 if narrow(figure) else 1)
        if NARROW <= figure.get_figwidth() < _ROOMY:
            # The gray is explained beside it.
            panels[-1].set_xlabel("eigenvalue")
        for panel in panels[-2:]:
            panel.axvspan(-zero, zero, color=SHADE, lw=0, zorder=0)
        if narrow(figure):
            panels[0].set_xlabel("")
            panels[0].tick_params(labelbottom=False)
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper center", ncol=2)

    matrix = OPERATORS.get(str(row["operator"]), str(row["operator"]))
    alt = (
        f"Above, how many eigenvalues of the {matrix} lie where, from {short(float(nodes.min()))} to "
        f"{short(float(nodes.max()))}; below, the share of them below each point, on an axis that is linear between "
        f"\u2212{short(zero)} and {short(zero)} (gray) and logarithmic beyond. {_quantiles(row, where)}At 0 the "
        f"{level:g} % band of the distribution reaches from {100 * float(np.interp(0.0, grid, low)):.3g} to "
        f"{100 * float(np.interp(0.0, grid, high)):.3g} %. {_BAND}"
    )
    data = table(panel="distribution", eigenvalue=grid, share_below=cdf, low=low, high=high)
    for scale, (x, y) in curves.items():
        data += table(panel=f"density, {scale}", eigenvalue=x, density=y)
    title = f"Spectral density of the {matrix}"
    return Drawn(f"density-{row['operator']}", title, alt, draw, (6.75, 2.5), _height, data)


def _height(width: float) -> float:
    return 1.2 + 0.55 * width if width < NARROW else 0.9 + 0.24 * width


def _ends(curve: tuple[Floats, Floats]) -> tuple[float, float]:
    return float(curve[0][0]), float(curve[0][-1])


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


def _spectra(
    rows: Mapping[str, tuple[Mapping[str, Any], str]],
) -> tuple[dict[str, tuple[Floats, Floats, bool]], Floats, float, str]:
    """Return nodes, weights and sign of every spectrum, all nodes, the threshold of zero, and the ends in words."""
    spectra = {
        title: (array(row, "nodes", where), array(row, "weights", where), str(row["operator"]) in POSITIVE)
        for title, (row, where) in rows.items()
    }
    every = np.concatenate([nodes for nodes, _, _ in spectra.values()])
    ends = (f"{title} from {short(float(n.min()))} to {short(float(n.max()))}" for title, (n, _, _) in spectra.items())
    return spectra, every, _threshold(every), "; ".join(ends)


def densities(name: str, rows: Mapping[str, tuple[Mapping[str, Any], str]]) -> Drawn:
    """Return the densities of several matrices over each other on a symlog axis, and a linear one where there is room.

    Args:
        name: of the figure.
        rows: by matrix: the row of the measure ``density``, and the row in words.

    Raises:
        RecordError: an array is missing.
    """
    spectra, every, zero, ends = _spectra(rows)
    curves = {
        scale: {title: spread(nodes, weights, at, positive) for title, (nodes, weights, positive) in spectra.items()}
        for scale, at in (("linear", None), ("symlog", zero))
    }

    def draw(figure: Figure) -> None:
        scales = ("symlog",) if narrow(figure) else ("linear", "symlog")
        panels: Any = figure.subplots(1, len(scales), squeeze=False)[0]
        for panel, scale in zip(panels, scales, strict=True):
            for (title, (x, y)), color in zip(curves[scale].items(), COLORS, strict=False):
                # The first is seen through the others where they agree.
                dash = "-" if title == next(iter(curves[scale])) else "--"
                panel.plot(x, y, dash, color=color, lw=1.1, label=title)
            panel.grid()
            found = [_ends(curve) for curve in curves[scale].values()]
            _axis(panel, scale, zero, every, (min(low for low, _ in found), max(high for _, high in found)), 2)
        panels[-1].axvspan(-zero, zero, color=SHADE, lw=0, zorder=0)
        for panel, scale in zip(panels, scales, strict=True):
            for (nodes, _, _), (x, y) in zip(spectra.values(), curves[scale].values(), strict=True):
                low, high = panel.get_ylim() if panel.get_yscale() == "log" else (np.inf, 0.0)
                _floor(panel, x, y, nodes)
                panel.set_ylim(min(low, panel.get_ylim()[0]), max(high, panel.get_ylim()[1]))
        panels[0].set_ylabel("density")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncol=len(spectra))

    data = [
        line
        for scale, found in curves.items()
        for title, (x, y) in found.items()
        for line in table(panel=scale, matrix=title, eigenvalue=x, density=y)
    ]
    alt = f"Spectral densities: {ends}."
    return Drawn(name, "Spectral densities side by side", alt, draw, (6.75, 2.8), lambda w: 1.2 + 0.28 * w, data)


def ridge(name: str, rows: Mapping[str, tuple[Mapping[str, Any], str]]) -> Drawn:
    """Return the densities of several checkpoints below each other on one symlog axis, each on a row of its own.

    Args:
        name: of the figure.
        rows: by checkpoint, the first on top: the row of the measure ``density``, and the row in words.

    Raises:
        RecordError: an array is missing.
    """
    spectra, every, zero, said = _spectra(rows)
    curves = {title: spread(nodes, weights, zero, positive) for title, (nodes, weights, positive) in spectra.items()}

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        ends = [_ends(curve) for curve in curves.values()]
        floor = min(float(np.interp(n.max(), *curves[title])) for title, (n, _, _) in spectra.items()) / _ABOVE
        top = max(float(y.max()) for _, y in curves.values())
        for panel, (title, (x, y)), color in zip(panels, curves.items(), COLORS * len(curves), strict=False):
            panel.fill_between(x, 1e-300, y, color=color, alpha=0.25, lw=0)
            panel.plot(x, y, color=color, lw=1.0)
            panel.set(yscale="log", ylim=(max(floor, top * 10.0**-_DECADES), 3 * top))
            panel.axvspan(-zero, zero, color=SHADE, lw=0, zorder=0)
            panel.set_title(title, loc="left", pad=3)
            panel.grid(axis="x")
        _axis(panels[-1], "symlog", zero, every, (min(low for low, _ in ends), max(high for _, high in ends)), 2)
        figure.supylabel("density", fontsize="medium")

    data = [line for title, (x, y) in curves.items() for line in table(checkpoint=title, eigenvalue=x, density=y)]
    height = 0.5 + 0.75 * len(curves)
    alt = f"Spectral densities of several checkpoints: {said}."
    return Drawn(name, "Spectra of several checkpoints", alt, draw, (4.2, height), lambda _: height, data)


def _density(panel: Any, x: Floats, y: Floats) -> None:
    panel.fill_between(x, 1e-300, y, color=SKY, alpha=0.3, lw=0)
    panel.plot(x, y, color=BLUE, lw=1.0, label="density", zorder=3)
    panel.grid()


def _floor(panel: Any, x: Floats, y: Floats, nodes: Floats) -> None:
    """Cut the axis of densities below the lower of the outermost peaks."""
    top = float(y.max())
    lowest = min(float(np.interp(end, x, y)) for end in (nodes.min(), nodes.max()))
    panel.set(yscale="log", ylim=(max(lowest / _ABOVE, top * 10.0**-_DECADES), 3 * top))


def _distribution(panel: Any, grid: Floats, cdf: Floats, low: Floats, high: Floats, level: float) -> None:
    # Between two points the function is at least what it is at the left one and at most what it is at the right one.
    places, bottom, top = np.repeat(grid, 2)[1:-1], np.repeat(low[:-1], 2), np.repeat(high[1:], 2)
    panel.plot(grid, cdf, color=BLUE, lw=1.0, label="distribution function")
    panel.fill_between(places, bottom, top, color=SKY, alpha=0.6, lw=0, label=f"{level:g} % band")
    panel.set(ylim=(-0.02, 1.02))
    panel.grid()


def _threshold(nodes: Floats) -> float:
    """Return where the axis becomes linear: a power of ten, so that the ticks are."""
    reach = float(np.abs(nodes).max()) or 1.0
    return float(10.0 ** math.floor(math.log10(_LINEAR * reach)))


def _axis(panel: Any, scale: str, threshold: float, nodes: Floats, ends: tuple[float, float], most: int) -> None:
    """Set limits and at most ``most`` ticks on either side of 0."""
    if scale == "linear":
        room = 0.03 * (ends[1] - ends[0])
        panel.set(xlabel="eigenvalue", xlim=(ends[0] - room, ends[1] + room))
        panel.locator_params(axis="x", nbins=5)
        return
    from matplotlib.ticker import FuncFormatter

    reach = float(np.abs(nodes).max()) or threshold
    panel.set_xscale("symlog", linthresh=threshold)
    low, high = (end * _ROOM if abs(end) > threshold else math.copysign(2 * threshold, end) for end in ends)
    low = -0.2 * threshold if nodes.min() >= 0 else min(low, -threshold)
    start, stop = round(math.log10(threshold)), math.floor(math.log10(reach))
    decades = [10.0**power for power in range(start, stop + 1)]
    sides = [-each for each in reversed(decades) if low <= -each], [each for each in decades if each <= high]
    few = [side[-1 :: -max(1, math.ceil(len(side) / most))][:most] for side in (sides[0][::-1], sides[1])]
    panel.set_xlim(low, high)
    # The outermost of each side first.
    panel.set_xticks(_apart(panel, [0.0, *few[0][:1], *few[1][:1], *few[0][1:], *few[1][1:]]))
    panel.xaxis.set_major_formatter(FuncFormatter(_power))
    panel.minorticks_off()
    panel.set_xlabel("eigenvalue (gray: linear)")


def _apart(panel: Any, ticks: list[float]) -> list[float]:
    """Return those ticks, in their order, whose numbers have room beside the ones before."""
    places = panel.transScale.transform([(each, 1.0) for each in (*panel.get_xlim(), *ticks)])[:, 0]
    inches = panel.get_position().width * panel.figure.get_figwidth() / (places[1] - places[0])
    kept: list[tuple[float, float, float]] = []
    for tick, place in zip(ticks, places[2:] * inches, strict=True):
        half = (_POWER_WIDE if tick else _ZERO_WIDE) / 2
        if all(abs(place - other) > half + far + _BETWEEN for _, other, far in kept):
            kept.append((tick, place, half))
    return sorted(tick for tick, _, _ in kept)


def _power(value: float, _: object) -> str:
    if value == 0:
        return "0"
    return rf"${'-' if value < 0 else ''}10^{{{round(math.log10(abs(value)))}}}$"
