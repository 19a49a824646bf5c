"""Figures of landscapes. The only file here that needs matplotlib, which it loads when first asked to draw."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe import checks, files
from hessprobe.landscape.names import STYLES
from hessprobe.landscape.result import Floats, Landscape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

# Perceptually even, readable without color vision and in gray.
_MAP = "viridis"
_DIVERGING = "PuOr_r"
# Okabe and Ito's colors, which the color-blind can tell apart.
_ORANGE, _SKY, _VERMILION, _BLUE, _PURPLE = "#E69F00", "#56B4E9", "#D55E00", "#0072B2", "#CC79A7"
_HOLE = "#bbbbbb"
_LEVELS = 21
# Above this ratio of the largest to the smallest value a linear scale shows a flat floor.
_DECADES = 50.0
_DEPARTURE = 0.1
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.linewidth": 0.8,
    "svg.hashsalt": "hessprobe",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}
_TITLES = {
    "loss": "loss",
    "error": "error rate",
    "grad-norm": "gradient norm",
    "lambda-max": "largest Hessian eigenvalue",
    "lambda-min": "smallest Hessian eigenvalue",
}


def draw(
    landscape: Landscape,
    path: str | Path,
    *,
    style: str = "contour",
    rho: float | None = None,
    title: str = "",
) -> Path:
    """Write a figure of every quantity of a landscape, side by side; the ending of ``path`` chooses the format.

    A line is drawn as a curve, a plane as filled contours or as a surface in three dimensions. The scale is logarithmic
    where positive values span more than a factor 50. Holes are hatched gray and counted. Over the loss lie the contours
    of the second-order model (dashed) with the border beyond which it is more than 10 % off, the marked points, and the
    ball of radius ``rho``.

    Args:
        landscape: what to draw.
        path: ``.png``, ``.svg`` or ``.pdf``.
        style: ``"contour"`` or ``"surface"``.
        rho: radius of SAM's ball, > 0, or None for none.
        title: above the figure.

    Raises:
        ValueError: another ending or style, or nothing finite to draw.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = files.check_output("path", path)
    kind = target.suffix.lower().removeprefix(".")
    checks.one_of("format of path", kind, FORMATS)
    checks.one_of("style", style, STYLES)
    _require_finite(landscape)
    names = tuple(landscape.values)
    with rc_context(_STYLE):
        figure = Figure(figsize=_size(landscape, len(names), style), layout="constrained")
        FigureCanvasAgg(figure)
        three = {"projection": "3d"} if style == "surface" and len(landscape.axes) == 2 else {}
        panels: Any = figure.subplots(1, len(names), squeeze=False, subplot_kw=three)[0]
        handles: dict[str, Any] = {}
        for name, panel in zip(names, panels, strict=True):
            handles |= {handle.get_label(): handle for handle in _panel(figure, panel, landscape, name, style, rho)}
        if handles:
            figure.legend(
                handles=list(handles.values()), loc="outside lower center", ncol=2, frameon=False, fontsize=7.5
            )
        if title:
            figure.suptitle(title, fontsize=10)
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
        files.write_atomically(target, lambda file: figure.savefig(file, format=kind, metadata=metadata))
    return target


def _require_finite(landscape: Landscape) -> None:
    if not np.isfinite(landscape.values["loss"]).any():
        raise ValueError("landscape must hold a finite loss; got only holes. Choose a smaller span.")


def _size(landscape: Landscape, panels: int, style: str) -> tuple[float, float]:
    if len(landscape.axes) == 1:
        return 4.8 * panels, 3.4
    return (5.6 * panels, 5.0) if style == "surface" else (5.4 * panels, 5.2)


def _panel(figure: Figure, panel: Any, landscape: Landscape, name: str, style: str, rho: float | None) -> list[Any]:
    """Draw one quantity and return the handles of a legend for the whole figure."""
    if len(landscape.axes) == 1:
        _line(panel, landscape, name, rho)
    elif style == "surface":
        _surface(figure, panel, landscape, name)
    else:
        return _contour(figure, panel, landscape, name, rho)
    return []


def _scale(values: Floats, name: str) -> tuple[Normalize, Floats, bool]:
    """Return color scale, contour levels, and whether the scale is logarithmic."""
    from matplotlib.colors import LogNorm, TwoSlopeNorm
    from matplotlib.colors import Normalize as Linear

    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    if low > 0 and high / low > _DECADES and name != "error":
        return LogNorm(low, high), np.geomspace(low, high, _LEVELS), True
    if name.startswith("lambda") and low < 0 < high:
        return TwoSlopeNorm(0.0, low, high), np.linspace(low, high, _LEVELS), False
    return Linear(low, high), np.linspace(low, high, _LEVELS), False


def _contour(figure: Figure, panel: Axes, landscape: Landscape, name: str, rho: float | None) -> list[Any]:
    from matplotlib.patheffects import withStroke

    values = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    norm, levels, logarithmic = _scale(values, name)
    x, y = landscape.axes
    shown = np.ma.masked_invalid(values.T)
    panel.set_facecolor(_HOLE)
    diverging = name.startswith("lambda") and float(np.nanmin(values)) < 0 < float(np.nanmax(values))
    filled = panel.contourf(x, y, shown, levels=levels, norm=norm, cmap=_DIVERGING if diverging else _MAP)
    filled.set_rasterized(True)
    lines = panel.contour(x, y, shown, levels=levels[2:-1:3], norm=norm, colors="white", linewidths=0.5, alpha=0.65)
    texts = panel.clabel(lines, fmt=lambda value: f"{value:.2g}", fontsize=6.5, colors="white", inline_spacing=2)
    for text in texts:
        text.set_alpha(1.0)
        text.set_path_effects([withStroke(linewidth=1.2, foreground="#222222")])
    _hatch(panel, landscape, name)
    bar = figure.colorbar(filled, ax=panel, shrink=0.82, pad=0.02)
    _bar_ticks(bar, levels, logarithmic)
    bar.set_label(_TITLES[name], labelpad=3)
    handles = _overlays(panel, landscape, levels, rho) if name == "loss" else []
    handles += _marks(panel, landscape, norm if name == "loss" else None)
    _frame(panel, landscape, name)
    return handles


def _bar_ticks(bar: Any, levels: Floats, logarithmic: bool) -> None:
    ticks = levels[:: (len(levels) - 1) // 5]
    bar.set_ticks(ticks, labels=[f"{value:.2g}" if logarithmic else f"{value:.3g}" for value in ticks])
    bar.ax.minorticks_off()


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
        if np.nanmax(share) > _DEPARTURE:
            masked = np.ma.masked_invalid(share.T)
            panel.contour(x, y, masked, levels=[_DEPARTURE], colors=_VERMILION, linewidths=1.2)
            handles.append(Line2D([], [], color=_VERMILION, lw=1.2, label="model 10 % off the loss"))
    if rho is not None:
        from hessprobe.landscape.geometry import circle

        ring = circle(landscape.gram, rho)
        panel.plot(ring[:, 0], ring[:, 1], color=_SKY, lw=1.4)
        small = np.abs(ring).max() < 0.02 * (x[-1] - x[0])
        where = " (inside the star)" if small else ""
        handles.append(Line2D([], [], color=_SKY, lw=1.4, label=f"SAM's ball, $\\rho$ = {rho:g}{where}"))
    return handles


def _marks(panel: Axes, landscape: Landscape, norm: Normalize | None) -> list[Any]:
    """Draw the center and the marked points, checkpoints filled with the color of their true loss."""
    from matplotlib.lines import Line2D

    panel.plot(0, 0, marker="*", ms=9, mfc="white", mec="black", mew=0.7, ls="none", zorder=6)
    handles: list[Any] = [Line2D([], [], marker="*", ms=8, mfc="white", mec="black", ls="none", label="checkpoint")]
    if landscape.kind == "gradient":
        for (name, place, _), marker, color in zip(landscape.marks, ("^", "D"), (_ORANGE, _PURPLE), strict=False):
            panel.plot(*place, marker=marker, ms=6, mfc=color, mec="black", mew=0.6, ls="none", zorder=5)
            handles.append(Line2D([], [], marker=marker, ms=6, mfc=color, mec="black", ls="none", label=name))
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


def _mark_checkpoints(panel: Axes, landscape: Landscape, places: Floats, norm: Normalize | None) -> None:
    from matplotlib import colormaps

    every = max(1, math.ceil(len(places) / 12))
    for index, ((name, _, loss), place) in enumerate(zip(landscape.marks, places, strict=True)):
        known = norm is not None and loss is not None and math.isfinite(loss)
        color = colormaps[_MAP](norm(loss)) if known and norm is not None and loss is not None else "white"
        if place.any():
            panel.plot(*place, marker="o", ms=5.5, mfc=color, mec="white", mew=0.9, ls="none", zorder=5)
        if index % every and index != len(places) - 1:
            continue
        text = f"{name}: {loss:.3g}" if known else name
        left = place[0] > landscape.axes[0].mean()
        panel.annotate(
            text,
            place,
            textcoords="offset points",
            xytext=(-7 if left else 7, 5),
            ha="right" if left else "left",
            fontsize=7,
            color="white",
            bbox={"boxstyle": "round,pad=0.15", "fc": (0.0, 0.0, 0.0, 0.45), "ec": "none"},
            zorder=7,
        )


def _frame(panel: Any, landscape: Landscape, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    x, y = landscape.axes
    panel.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    panel.set_xlabel(_axis_label(landscape, 0))
    panel.set_ylabel(_axis_label(landscape, 1))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    panel.set_title(_heading(landscape, name))


def _heading(landscape: Landscape, name: str) -> str:
    holes = landscape.holes(name)
    lost = "" if not holes else f"  ({holes} of {landscape.done.size} points not finite, hatched)"
    return f"{_TITLES[name]}{lost}"


def _axis_label(landscape: Landscape, index: int) -> str:
    length = landscape.lengths[index]
    unit = "" if math.isclose(length, 1.0, rel_tol=1e-3) else f"\n(1 = {length:.3g} in parameter space)"
    return f"{landscape.labels[index]}{unit}"


def _line(panel: Axes, landscape: Landscape, name: str, rho: float | None) -> None:
    x, values = landscape.axes[0], landscape.values[name]
    shown = np.where(np.isfinite(values), values, np.nan)
    marker = "o" if len(x) <= 31 else None
    panel.plot(x, shown, color=_BLUE, lw=1.6, marker=marker, ms=2.5, label=_TITLES[name], zorder=3)
    _, _, logarithmic = _scale(shown, name)
    panel.set_yscale("log" if logarithmic else "linear")
    bottom, top = panel.get_ylim()
    model = landscape.quadratic() if name == "loss" else None
    if model is not None:
        panel.plot(x, np.where(model > 0, model, np.nan) if logarithmic else model, color="black", lw=1, ls="--",
                   label="second-order model", zorder=2)  # fmt: skip
    if rho is not None and name == "loss":
        half = rho / landscape.lengths[0]
        panel.axvspan(-half, half, color=_SKY, alpha=0.3, lw=0, label=f"SAM's ball, $\\rho$ = {rho:g}")
    for hole in x[landscape.done & ~np.isfinite(values)]:
        panel.axvspan(hole - (x[1] - x[0]) / 2, hole + (x[1] - x[0]) / 2, color=_HOLE, lw=0, zorder=0)
    panel.plot(0, values[landscape.center], marker="*", ms=10, mfc="white", mec="black", mew=0.7, ls="none",
               label="checkpoint", zorder=5)  # fmt: skip
    for mark, place, loss in landscape.marks:
        if any(place) and loss is not None and name == "loss":
            panel.plot(place[0], loss, marker="o", ms=6, mfc=_ORANGE, mec="black", mew=0.6, ls="none", zorder=5,
                       label=f"{mark}, true loss")  # fmt: skip
    panel.set(xlim=(x[0], x[-1]), ylim=(bottom, top), xlabel=_axis_label(landscape, 0), ylabel=_TITLES[name])
    panel.set_title(_heading(landscape, name))
    panel.grid(alpha=0.3, lw=0.5)
    panel.legend(frameon=False, fontsize=7.5)


def _surface(figure: Figure, panel: Any, landscape: Landscape, name: str) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    norm, levels, logarithmic = _scale(values, name)
    x, y = np.meshgrid(*landscape.axes, indexing="ij")
    height = np.log10(values) if logarithmic else values
    colors = colormaps[_MAP](norm(np.nan_to_num(values, nan=float(np.nanmin(values)))))
    colors[~np.isfinite(values)] = 0.0
    panel.plot_surface(
        x, y, height, facecolors=colors, rcount=len(x), ccount=len(y), linewidth=0, antialiased=False, shade=False
    )
    floor = float(np.nanmin(height)) - 0.25 * float(np.nanmax(height) - np.nanmin(height) or 1.0)
    panel.contour(x, y, np.ma.masked_invalid(height), levels=10, offset=floor, cmap=_MAP, linewidths=0.8)
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
    panel.set_box_aspect(None, zoom=0.82)
    panel.set_title(_heading(landscape, name))
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=_MAP), ax=panel, shrink=0.6, pad=0.08)
    bar.set_label(f"{_TITLES[name]}{', log scale' if logarithmic else ''}")
    _bar_ticks(bar, levels, logarithmic)
