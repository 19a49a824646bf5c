"""One bar a parameter tensor, grouped by module, with the interval of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.errors import RecordError
from hessprobe.measures.table import entry_of
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import OPERATORS, between, entry, spread
from hessprobe.report.figures.style import COLORS, GRAY, SHADE, narrow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More bars are not readable on a page; the largest of the first measure are kept.
_MOST = 80
# Letters of a name beside its bar at most and at least, inches of one, and those that a panel keeps.
_LONG, _SHORT, _LETTER, _PANEL = 40, 14, 0.06, 0.7
# Inches of a panel, the names counted as one, below which its axis has few ticks.
_TIGHT = 1.0
_Bars = dict[str, tuple[float, float, float]]


def bars(rows: Sequence[tuple[Mapping[str, Any], str]]) -> Drawn:
    """Return one panel a measure with one bar a parameter tensor, modules told apart by their background.

    Args:
        rows: results with layers and each in words, of one operator.

    Raises:
        RecordError: a layer lacks value or interval, or measures have different layers.
    """
    found = {str(row["measure"]): _bars(row, where) for row, where in rows}
    first = next(iter(found.values()))
    for name, each in found.items():
        if each.keys() != first.keys():
            raise RecordError(f"layers of {name!r} differ from those of the first measure. Write the record again.")
    names = _largest(first)
    operator = str(rows[0][0]["operator"])
    level = 100 * entry(rows[0][0], "confidence", (int, float), rows[0][1])

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        letters = min(_LONG, max(_SHORT, int((figure.get_figwidth() - _PANEL * len(found)) / _LETTER)))
        for panel, (name, values), color in zip(panels, found.items(), COLORS, strict=False):
            bars_of(panel, [values[each] for each in names], color)
            _background(panel, names)
            panel.set_xlabel(_title(name))
            # Two numbers have room below a panel of so few inches.
            tight = figure.get_figwidth() < _TIGHT * (len(found) + 1)
            panel.locator_params(axis="x", nbins=2 if tight else 3 if narrow(figure) else 4)
        panels[0].set_yticks(range(len(names)), labels=_labels(names, letters))
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        left = len(first) - len(names)
        if left:
            panels[0].set_title(f"the {len(names)} largest of {len(first)}", loc="left")

    titles = ", ".join(found)
    alt = f"By layer, {level:g} % intervals: " + "; ".join(f"{name}: {_words(each)}" for name, each in found.items())
    matrix = OPERATORS.get(operator, operator)
    height = 0.75 + 0.19 * len(names)
    size = (2.2 + 2.0 * len(found), height)
    data = [
        {"measure": name, "layer": layer, "value": value, "low": value - below, "high": value + above}
        for name, each in found.items()
        for layer, (value, below, above) in each.items()
    ]
    title = f"{titles} of the {matrix} by layer"
    return Drawn(f"layers-{operator}", title, f"{alt}.", draw, size, lambda _: height, data)


def _title(name: str) -> str:
    layers = entry_of(name).layers
    return name if layers is None else layers.symbol


def _bars(row: Mapping[str, Any], where: str) -> _Bars:
    layers = entry(row, "layers", dict, where)
    return {name: spread(layer, f"{where} layers, {name!r},") for name, layer in layers.items()}


def _largest(values: _Bars) -> list[str]:
    if len(values) <= _MOST:
        return list(values)
    kept = set(sorted(values, key=lambda name: -abs(np.nan_to_num(values[name][0])))[:_MOST])
    return [name for name in values if name in kept]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _labels(names: Sequence[str], long: int) -> list[str]:
    """Return names that fit beside the bars and differ: without their common modules, or with the middle left out."""
    if max(map(len, names)) <= long:
        return list(names)
    modules = [name.split(".")[:-1] for name in names]
    common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False)))
    own = ["…" * bool(common) + ".".join(name.split(".")[common:]) for name in names]
    # Blocks are told apart at the front, weight and bias at the end.
    short = [name if len(name) <= long else f"{name[: long // 2 - 1]}…{name[-long // 2 :]}" for name in own]
    return short if len(set(short)) == len(short) else own


def bars_of(panel: Any, values: Sequence[tuple[float, float, float]], color: str) -> None:
    """Draw bars from above with their intervals: value, and how far its interval reaches below and above."""
    place = np.arange(len(values))
    size, below, above = np.array(values).T
    panel.barh(place, size, xerr=np.stack([below, above]), color=color, height=0.7, zorder=2,
               error_kw={"lw": 0.9, "capsize": 1.6, "zorder": 3})  # fmt: skip
    panel.axvline(0, color=GRAY, lw=0.8)
    panel.grid(axis="x")


def _background(panel: Any, names: Sequence[str]) -> None:
    start = 0
    for index, (_, group) in enumerate(groupby(names, _module)):
        stop = start + len(list(group))
        if index % 2 == 0:
            panel.axhspan(start - 0.5, stop - 0.5, color=SHADE, lw=0, zorder=0)
        start = stop


def _words(values: _Bars) -> str:
    top = sorted(values, key=lambda name: -abs(np.nan_to_num(values[name][0])))[:3]
    return ", ".join(f"{name} {between(*values[name])}" for name in top)
