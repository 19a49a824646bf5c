"""How every figure looks: one style, colors for the color-blind, and files that are the same every time."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

# Okabe and Ito's colors, which the color-blind can tell apart, in an order that also differs in gray.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GRAY = "#E69F00", "#56B4E9", "#000000", "#777777"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GRAY)
# Perceptually even, readable without color vision and in gray.
MAP, DIVERGING = "viridis", "PuOr_r"
SHADE = "#f2f2f2"

_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "errorbar.capsize": 2,
    # The same ids in every run, text as text in SVG, fonts that journals take in PDF.
    "svg.hashsalt": "hessprobe",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}
# Who made it, so that a later run knows its own figures from others; no date, so that the same figure is the same file.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "hessprobe"},
    "pdf": {"CreationDate": None, "Creator": "hessprobe"},
    "png": {"Software": "hessprobe"},
}


def build(draw: Callable[[Figure], object], size: tuple[float, float]) -> Figure:
    """Return a figure that ``draw`` has filled, in the style of this file and apart from pyplot's state.

    Args:
        draw: is given the empty figure.
        size: width and height in inches.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_RC):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
    return figure


def encoded(draw: Callable[[Figure], object], size: tuple[float, float], kind: str) -> bytes:
    """Return the figure as the content of a file of ``kind``, a name in ``FORMATS``; the same every time."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context(_RC):
        build(draw, size).savefig(content, format=kind, metadata=_METADATA[kind])
    return content.getvalue()
