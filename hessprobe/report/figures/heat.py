"""Layers against measures: where in the network each kind of curvature lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.measures.table import Layers, entry_of
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import OPERATORS, entry
from hessprobe.report.figures.style import FILLED, MAP, OVER_DARK, OVER_LIGHT, small

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More rows are not readable, and above this share a number is dark on the light end of the map.
_MOST, _LIGHT = 60, 0.6


def heat(rows: Sequence[tuple[Mapping[str, Any], str]], name: str = "heat") -> Drawn | None:
    """Return layers by measures, colored by the share that a layer has of the measure; None for one measure alone.

    The share of a trace or a squared norm is that of the sum over layers of absolute values; of an eigenvalue, which
    does not add up, it is relative to the largest of any block.

    Args:
        rows: results with the same layers, and each in words, of one operator.
        name: of the figure, without the operator.

    Raises:
        RecordError: a layer lacks its value.
    """
    found: dict[str, dict[str, float]] = {}
    for row, where in rows:
        layers = entry(row, "layers", dict, where)
        values = {key: entry(each, "value", (int, float, type(None)), where) for key, each in layers.items()}
        found[str(row["measure"])] = {
            key: float("nan") if each is None else float(each) for key, each in values.items()
        }
    layers = list(next(iter(found.values())))[:_MOST]
    if len(found) < 2 or len(layers) < 2 or any(set(layers) - each.keys() for each in found.values()):
        return None
    sizes = np.abs([[each[layer] for each in found.values()] for layer in layers])
    whole = [
        np.nanmax(each) if _layers(key).adding == "apart" else np.nansum(each)
        for key, each in zip(found, sizes.T, strict=True)
    ]
    shares = sizes / np.where(np.array(whole) > 0, whole, 1.0)

    def draw(figure: Figure) -> None:
        panel: Any = figure.subplots()
        panel.set_label(FILLED)
        image = panel.imshow(shares, cmap=MAP, vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            text = "" if np.isnan(share) else f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.2g}"
            color = OVER_DARK if share > _LIGHT else OVER_LIGHT
            panel.text(column, row, text, ha="center", va="center", color=color, fontsize=small())
        panel.set_xticks(range(len(found)), labels=[_layers(each).of for each in found])
        panel.set_yticks(range(len(layers)), labels=layers)
        panel.tick_params(length=0)
        bar = figure.colorbar(image, ax=panel, aspect=25, pad=0.03)
        bar.ax.set_label(FILLED)
        bar.set_ticks([0, 0.5, 1], labels=["0", "50", "100"])
        bar.set_label("share (%)")

    operator = str(rows[0][0]["operator"])
    matrix = OPERATORS.get(operator, operator)
    tops = [f"{key} most in {layers[int(np.nanargmax(each))]}" for key, each in zip(found, shares.T, strict=True)]
    alt = f"Share of every layer in the curvature of the {matrix}, in percent: {'; '.join(tops)}."
    data = [
        {"layer": layer, "measure": key, "value": found[key][layer], "share": shares[i, j]}
        for i, layer in enumerate(layers)
        for j, key in enumerate(found)
    ]
    height = 0.55 + 0.2 * len(layers)
    return Drawn(f"{name}-{operator}", "Where the curvature lies", alt, draw, (3.6, height), lambda _: height, data)


def _layers(name: str) -> Layers:
    return entry_of(name).layers or Layers("sum", name, name)
