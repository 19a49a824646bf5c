"""A surface to turn around, in one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hessprobe import files
from hessprobe.errors import UnsupportedError
from hessprobe.landscape.names import TITLES
from hessprobe.landscape.result import Landscape, spans_decades


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
    """Write a rotatable surface of every quantity of a plane; the library stands in the file (about 5 MB).

    Args:
        landscape: of a plane.
        path: the HTML file.
        title: above the surface.

    Raises:
        ValueError: a line, or nothing finite to draw.
        UnsupportedError: plotly is not installed.
    """
    require_plotly()
    import plotly.graph_objects as go

    if len(landscape.axes) != 2:
        raise ValueError("landscape must be of a plane for a surface; got a line. Draw it with draw().")
    target = files.check_output("path", path)
    figure = go.Figure()
    names = tuple(landscape.values)
    for name in names:
        figure.add_trace(_surface(go, landscape, name, name == names[0]))
    figure.add_trace(_points(go, landscape))
    figure.update_layout(
        title={"text": title},
        scene={"xaxis": {"title": {"text": landscape.labels[0]}}, "yaxis": {"title": {"text": landscape.labels[1]}},
               "zaxis": {"title": {"text": _axis(landscape, names[0])}}, "aspectmode": "cube",
               # Far enough away that the titles of the axes are inside the frame.
               "camera": {"eye": {"x": 1.75, "y": 1.75, "z": 1.2}}},
        margin={"l": 0, "r": 0, "b": 0, "t": 60},
        updatemenus=_menu(landscape, names) if len(names) > 1 else [],
    )  # fmt: skip
    text = figure.to_html(full_html=True, include_plotlyjs=True, div_id="hessprobe-landscape", default_height="95vh")
    files.write_atomically(target, lambda file: file.write(text.encode()))
    return target


def _surface(go: Any, landscape: Landscape, name: str, visible: bool) -> Any:
    values = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    height = np.log10(values) if _logarithmic(landscape, name) else values
    x, y = landscape.axes
    hover = f"x %{{x:.4g}}<br>y %{{y:.4g}}<br>{TITLES[name]} %{{customdata:.5g}}<extra></extra>"
    # nan is a hole: nothing is drawn there.
    return go.Surface(
        x=x, y=y, z=height.T, customdata=values.T, colorscale="Viridis", visible=visible, hovertemplate=hover,
        colorbar={"title": {"text": _axis(landscape, name)}}, name=TITLES[name],
        contours={"z": {"show": True, "usecolormap": True, "project": {"z": True}}},
    )  # fmt: skip


def _points(go: Any, landscape: Landscape) -> Any:
    """Return the center and the marked points at their true loss, where it is known."""
    logarithmic = _logarithmic(landscape, "loss")
    known = [("checkpoint", (0.0, 0.0), float(landscape.values["loss"][landscape.center]))]
    known += [
        (name, (place[0], place[1]), loss) for name, place, loss in landscape.marks if loss is not None and any(place)
    ]
    losses = np.array([loss for _, _, loss in known])
    return go.Scatter3d(
        x=[place[0] for _, place, _ in known], y=[place[1] for _, place, _ in known],
        z=np.log10(losses) if logarithmic else losses, text=[f"{name}: {loss:.5g}" for name, _, loss in known],
        mode="markers", marker={"size": 4, "color": "#D55E00"}, hovertemplate="%{text}<extra></extra>",
        name="true loss", showlegend=False,
    )  # fmt: skip


def _menu(landscape: Landscape, names: tuple[str, ...]) -> list[dict[str, Any]]:
    buttons = [
        {
            "label": TITLES[name],
            "method": "update",
            "args": [
                {"visible": [*(name == each for each in names), name == "loss"]},
                {"scene.zaxis.title.text": _axis(landscape, name)},
            ],
        }
        for name in names
    ]
    return [{"buttons": buttons, "x": 0.02, "y": 0.98, "xanchor": "left", "yanchor": "top"}]


def _logarithmic(landscape: Landscape, name: str) -> bool:
    return spans_decades(landscape.values[name], name)


def _axis(landscape: Landscape, name: str) -> str:
    return f"log10 of {TITLES[name]}" if _logarithmic(landscape, name) else TITLES[name]
