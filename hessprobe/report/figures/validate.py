"""Figures of ``hessprobe validate``: the curve of every claim that has one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import entry, floats, short
from hessprobe.report.figures.scales import logarithmic
from hessprobe.report.figures.style import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More lines than these leave a legend no room among them.
_INSIDE = 4
# Letters beyond which two columns of a legend below fill the figure, and height of a line of it in inches.
_LONG, _KEY_LINE = 22, 0.17
# A logarithmic axis of less than this ratio has one power of ten or none.
_FEW = 100.0


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    return list(curves(record).values())


def curves(record: Mapping[str, Any]) -> dict[str, Drawn]:
    """Return the figure of each claim that has a curve.

    Raises:
        RecordError: an entry is missing.
    """
    found = [(row, f"results[{index}],") for index, row in enumerate(record["results"])]
    return {entry(row, "claim", str, where): curve(row, where) for row, where in found if row.get("curve")}


def curve(row: Mapping[str, Any], where: str) -> Drawn:
    """Return the curve of a claim: what the theory says dashed, what was measured as lines or points.

    Args:
        row: of the claim.
        where: the row in words.

    Raises:
        RecordError: an entry is missing.
    """
    claim = entry(row, "claim", str, where)
    found, where = entry(row, "curve", dict, where), f"{where} curve"
    lines = []
    for index, series in enumerate(entry(found, "series", list, where)):
        place = f"{where}, series[{index}],"
        x, y = (floats(entry(series, key, list, place), f"{place} {key}") for key in ("x", "y"))
        lines.append((entry(series, "label", str, place), x, y, entry(series, "dashed", bool, place)))
    titles = {key: entry(found, key, str, where) for key in ("x", "y")}
    scales = {key: "log" if entry(found, f"log_{key}", bool, where) else "linear" for key in ("x", "y")}

    columns = 2 if max((len(label) for label, *_ in lines), default=0) > _LONG else 3
    key = _KEY_LINE * -(-len(lines) // columns) if len(lines) > _INSIDE else 0.0

    def draw(figure: Figure) -> None:
        panel: Any = figure.subplots()
        for (label, x, y, dashed), color in zip(lines, COLORS * len(lines), strict=False):
            marker = "o" if len(x) <= 20 and not dashed else None
            panel.plot(x, y, "--" if dashed else "-", color=color, label=label, marker=marker, ms=3, lw=1.2)
        panel.set(xlabel=titles["x"], ylabel=titles["y"], title=claim, xscale=scales["x"], yscale=scales["y"])
        panel.grid()
        for axis in ("x", "y"):
            every = np.concatenate([each[1 if axis == "x" else 2] for each in lines])
            positive = every[every > 0]
            if scales[axis] == "log" and len(positive) and positive.max() < _FEW * positive.min():
                logarithmic(panel, axis, positive, 1.0)
        if len(lines) > _INSIDE:
            figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncol=columns)
        elif len(lines) > 1:
            panel.legend()

    alt = f"{claim}, {entry(row, 'verdict', str, where)}: {entry(row, 'statement', str, where)}{_compared(row)}"
    return Drawn(claim.replace("/", "-"), claim, alt, draw, (5.6, 3.4 + key))


def _compared(row: Mapping[str, Any]) -> str:
    if row.get("measured") is None:
        return ""
    measured = f" Measured {short(row['measured'])}"
    return f"{measured}." if row.get("predicted") is None else f"{measured}, predicted {short(row['predicted'])}."
