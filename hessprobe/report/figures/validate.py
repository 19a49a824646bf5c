"""Figures of ``hessprobe validate``: the curve of every claim that has one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import entry, floats, short
from hessprobe.report.figures.style import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def draw(figure: Figure) -> None:
        panel: Any = figure.subplots()
        for (label, x, y, dashed), color in zip(lines, COLORS * len(lines), strict=False):
            marker = "o" if len(x) <= 20 and not dashed else None
            panel.plot(x, y, "--" if dashed else "-", color=color, label=label, marker=marker, ms=3, lw=1.2)
        panel.set(xlabel=titles["x"], ylabel=titles["y"], title=claim, xscale=scales["x"], yscale=scales["y"])
        panel.grid()
        if len(lines) > 1:
            panel.legend()

    alt = f"{claim}, {entry(row, 'verdict', str, where)}: {entry(row, 'statement', str, where)}{_compared(row)}"
    return Drawn(claim.replace("/", "-"), claim, alt, draw, (5.6, 3.4))


def _compared(row: Mapping[str, Any]) -> str:
    if row.get("measured") is None:
        return ""
    measured = f" Measured {short(row['measured'])}"
    return f"{measured}." if row.get("predicted") is None else f"{measured}, predicted {short(row['predicted'])}."
