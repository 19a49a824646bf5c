"""How every figure looks: three styles, colors for the color-blind, and files that are the same every time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hessprobe import checks
from hessprobe.looks import STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Below this width in inches panels stand below each other and legends have fewer columns.
NARROW = 5.0

# Okabe and Ito's colors, which the color-blind can tell apart, in an order that also differs in gray.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GRAY = "#E69F00", "#56B4E9", "#000000", "#777777"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GRAY)
# Perceptually even, readable without color vision and in gray.
MAP, DIVERGING = "viridis", "PuOr_r"
SHADE = "#f2f2f2"
# Label of axes that a color map fills: what lies over it keeps its colors in the dark.
FILLED = "filled"

# Of lines and numbers over a color map, in both: nearly black and nearly white, so that they are told from the ground.
OVER_DARK, OVER_LIGHT = "#010101", "#fefefe"

# On a dark ground: the same hues, lighter; every one has a contrast of 4.5 or more with it.
GROUND = "#161616"
DARK = {
    BLUE: "#4FA9E2", VERMILION: "#FF8C4D", GREEN: "#2CC79B", PURPLE: "#E39CC4", BLACK: "#E8E8E8", GRAY: "#A0A0A0",
    SHADE: "#262626", "#ffffff": GROUND,
}  # fmt: skip

# Of a coordinate, what is more than two of them.
_DECIMALS = re.compile(r"(\.\d\d)\d+")

_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "figure.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.3,
    "errorbar.capsize": 1.8,
    # The same ids in every run, text as text in SVG, fonts that journals take in PDF.
    "svg.hashsalt": "hessprobe",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}
_LARGER: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
}
_LIGHT_ON_DARK: dict[Any, Any] = {
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "grid.color": "#8a8a8a",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "hatch.color"), DARK[BLACK]
    ),
}
_SETTINGS: dict[str, dict[Any, Any]] = {
    "paper": _RC,
    "screen": {**_RC, **_LARGER},
    "dark": {**_RC, **_LARGER, **_LIGHT_ON_DARK},
}
# Who made it, so that a later run knows its own figures from others; no date, so that the same figure is the same file.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "hessprobe"},
    "pdf": {"CreationDate": None, "Creator": "hessprobe"},
    "png": {"Software": "hessprobe"},
}


def narrow(figure: Figure) -> bool:
    """Return whether a figure has the width of one column, where panels stand below each other."""
    return bool(figure.get_figwidth() < NARROW)


def small() -> float:
    """Return the size in points of the smallest text: ticks, legends, numbers beside points."""
    from matplotlib import rcParams

    return float(rcParams["legend.fontsize"])


def build(draw: Callable[[Figure], object], size: tuple[float, float], style: str = STYLES[0]) -> Figure:
    """Return a figure that ``draw`` has filled, in a style of this file and apart from pyplot's state.

    Args:
        draw: is given the empty figure.
        size: width and height in inches.
        style: a name in ``STYLES``: letters of 7 to 9 points, of 8 and 9 for the screen, and these on a dark ground.

    Raises:
        ValueError: another style.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS[checks.one_of("style", style, STYLES)]):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        if style == "dark":
            _darken(figure)
    return figure


def encoded(draw: Callable[[Figure], object], size: tuple[float, float], kind: str, style: str = STYLES[0]) -> bytes:
    """Return the figure as the content of a file of ``kind``, a name in ``FORMATS``; the same every time."""
    from matplotlib import rc_context

    figure = build(draw, size, style)
    content = io.BytesIO()
    with rc_context(_SETTINGS[style]):
        figure.savefig(content, format=kind, metadata=_METADATA[kind])
    return content.getvalue()


def adaptive(svg: bytes) -> bytes:
    """Return an SVG whose colors are those of the dark style where its reader, or the page around it, is dark.

    Colors of this file become variables with two values; ``OVER_DARK`` and ``OVER_LIGHT``, which lie over a color map,
    stay. The image itself asks for the color scheme, so that it needs no script and no style of the page. Coordinates
    of curves are cut at a hundredth of a point.
    """
    text = re.sub(r"(?<= d=\")[^\"]*", lambda found: _DECIMALS.sub(r"\1", found[0]), svg.decode("utf-8"))
    light, dark = [], []
    for number, (color, other) in enumerate(DARK.items()):
        name = f"--c{number}"
        text = re.sub(rf"(?<=[:\s]){color}(?=[;\"])", f"var({name})", text, flags=re.IGNORECASE)
        light.append(f"{name}:{color}")
        dark.append(f"{name}:{other}")
    ink = f"var(--c{list(DARK).index(BLACK)})"
    rules = (
        f":root{{color-scheme:light dark;{';'.join(light)}}}text{{fill:{ink}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{';'.join(dark)}}}}}"
    )
    return text.replace("<defs>", f"<style>{rules}</style><defs>", 1).encode("utf-8")


def _darken(figure: Figure) -> None:
    """Give every color of this file its lighter one, but to what lies over a color map."""
    from matplotlib.colors import to_hex

    known = {color.lower(): dark for color, dark in DARK.items()}
    for artist in _outside_maps(figure):
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            found = getattr(artist, f"get_{part}", lambda: None)()
            if found is None or (isinstance(found, str) and found in ("none", "auto")):
                continue
            if hasattr(artist, "get_array") and artist.get_array() is not None:
                continue
            every = _rows(found)
            changed = [(*_rgb(known[name]), one[3]) if (name := to_hex(one)) in known else one for one in every]
            if changed != every:
                getattr(artist, f"set_{part}")(changed if hasattr(artist, "get_paths") else changed[0])


def _outside_maps(figure: Figure) -> Iterator[Any]:
    for panel in figure.axes:
        if panel.get_label() != FILLED:
            yield from (each for each in panel.findobj() if each is not panel.patch)
        else:
            panel.set_facecolor(panel.get_facecolor())
    for legend in figure.legends:
        yield from legend.findobj()
    yield from figure.texts


def _rows(color: Any) -> list[tuple[float, float, float, float]]:
    from matplotlib.colors import to_rgba_array

    return [(float(r), float(g), float(b), float(a)) for r, g, b, a in to_rgba_array(color)]


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)
