"""A surface to turn around, in one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from hessprobe import files
from hessprobe.errors import UnsupportedError
from hessprobe.landscape import axes
from hessprobe.landscape.names import TITLES
from hessprobe.landscape.result import Landscape

_PAGE = Path(__file__).with_name("surface.html")


def require_plotly() -> None:
    """Refuse to go on without plotly.

    Raises:
        UnsupportedError: says how to get it.
    """
    try:
        import plotly.graph_objects  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise UnsupportedError(
            "An interactive surface needs plotly, which is not installed. Run pip install 'hessprobe[interactive]'."
        ) from error


def write_html(landscape: Landscape, path: str | Path, *, title: str = "") -> Path:
    """Write a rotatable surface of every quantity of a plane; the library stands in the file, packed (below 2 MB).

    Ticks and colors are those of the figure: the levels of ``levels.levels``. The page follows the reader's dark mode.
    It needs a browser of 2023 or later, which unpacks it.

    Args:
        landscape: of a plane.
        path: the HTML file.
        title: of the page and above the surface.

    Raises:
        ValueError: a line, or nothing finite to draw.
        UnsupportedError: plotly is not installed.
    """
    require_plotly()
    from plotly.offline import get_plotlyjs

    if len(landscape.axes) != 2:
        raise ValueError("landscape must be of a plane for a surface; got a line. Draw it with draw().")
    target = files.check_output("path", path)
    page = _PAGE.read_text(encoding="utf-8")
    # A label may hold anything, also the end of a script: the figure is packed as the library is.
    figure = json.dumps(_figure(landscape, title), allow_nan=False)
    for name, content in (
        ("TITLE", html.escape(title or "Loss landscape")),
        ("FIGURE", _packed(figure)),
        ("LIBRARY", _packed(get_plotlyjs())),
    ):
        page = page.replace(f"@{name}@", content)
    files.write_atomically(target, lambda file: file.write(page.encode()))
    return target


def _packed(text: str) -> str:
    """Return text compressed, in an alphabet of 85 letters without quotes and ``/``: it cannot end a script."""
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode("ascii")


def _figure(landscape: Landscape, title: str) -> dict[str, Any]:
    names = tuple(landscape.values)
    layout: dict[str, Any] = {
        "title": {"text": html.escape(title), "font": {"size": 16}},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "scene": {
            "xaxis": {"title": {"text": html.escape(landscape.labels[0])}},
            "yaxis": {"title": {"text": html.escape(landscape.labels[1])}},
            "zaxis": _axis(landscape, names[0]),
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.8},
            # Far enough away that the titles of the axes are inside the frame.
            "camera": {"eye": {"x": 1.5, "y": -1.5, "z": 1.1}},
        },
        "margin": {"l": 0, "r": 0, "b": 0, "t": 48},
        "updatemenus": _menu(landscape, names) if len(names) > 1 else [],
    }
    return {"data": [*(_surface(landscape, name, name == names[0]) for name in names), _points(landscape)],
            "layout": layout}  # fmt: skip


def _surface(landscape: Landscape, name: str, visible: bool) -> dict[str, Any]:
    values = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    every, by_ratio = axes.levels(values, name)
    ends = np.log10(every[[0, -1]]) if by_ratio else every[[0, -1]]
    axis = _axis(landscape, name)
    return {
        "type": "surface", "name": TITLES[name], "visible": visible,
        "x": _plain(landscape.axes[0]), "y": _plain(landscape.axes[1]),
        "z": _plain((np.log10(values) if by_ratio else values).T), "customdata": _plain(values.T),
        "hovertemplate": f"x %{{x:.4g}}<br>y %{{y:.4g}}<br>{TITLES[name]} %{{customdata:.5g}}<extra></extra>",
        "colorscale": "Viridis", "cmin": float(ends[0]), "cmax": float(ends[1]),
        "colorbar": {"title": axis["title"], "tickvals": axis["tickvals"], "ticktext": axis["ticktext"], "len": 0.7},
        "contours": {"z": {"show": True, "usecolormap": True, "project": {"z": True}}},
    }  # fmt: skip


def _plain(values: Any) -> Any:
    """Return nested lists of numbers of six digits; nan, a hole where nothing is drawn, becomes None."""
    if isinstance(values, np.ndarray) and values.ndim:
        return [_plain(each) for each in values]
    return float(f"{values:.6g}") if np.isfinite(values) else None


def _points(landscape: Landscape) -> dict[str, Any]:
    """Return the center and the marked points at their true loss, where it is known."""
    by_ratio = axes.levels(landscape.values["loss"], "loss")[1]
    known = [("checkpoint", (0.0, 0.0), float(landscape.values["loss"][landscape.center]))]
    known += [
        (name, (place[0], place[1]), loss) for name, place, loss in landscape.marks if loss is not None and any(place)
    ]
    losses = np.array([loss for _, _, loss in known])
    with np.errstate(invalid="ignore", divide="ignore"):
        heights = np.log10(losses) if by_ratio else losses
    return {
        "type": "scatter3d", "mode": "markers", "name": "true loss", "showlegend": False,
        "x": [place[0] for _, place, _ in known], "y": [place[1] for _, place, _ in known], "z": _plain(heights),
        "text": [f"{html.escape(name)}: {loss:.5g}" for name, _, loss in known],
        "marker": {"size": [6] + [4] * (len(known) - 1), "color": "#D55E00"},
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _menu(landscape: Landscape, names: tuple[str, ...]) -> list[dict[str, Any]]:
    buttons = [
        {
            "label": TITLES[name],
            "method": "update",
            "args": [
                {"visible": [*(name == each for each in names), name == "loss"]},
                {f"scene.zaxis.{key}": value for key, value in _axis(landscape, name).items()},
            ],
        }
        for name in names
    ]
    return [{"buttons": buttons, "x": 0.02, "y": 0.98, "xanchor": "left", "yanchor": "top"}]


def _axis(landscape: Landscape, name: str) -> dict[str, Any]:
    """Return title and ticks of the vertical axis: the levels that the figure's bar has, too."""
    every, by_ratio = axes.levels(landscape.values[name], name)
    written = axes.ticks(every)
    places = np.log10(written) if by_ratio else written
    return {"title": {"text": TITLES[name]}, "tickvals": places.tolist(), "ticktext": [*map(axes.text, written)]}
