"""Figures of ``hessprobe validate``: the curve of every claim that has one."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures.drawn import Drawn, table
from hessprobe.report.figures.fields import entry, floats, short
from hessprobe.report.figures.scales import logarithmic
from hessprobe.report.figures.style import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches: a letter of a label, a line of a legend or title; lines of a title at most.
_LETTER, _KEY_LINE, _LINES = 0.062, 0.15, 4
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
    """Return the curve of a claim under its sentence: theory dashed, what was measured in the same color.

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

    statement = entry(row, "statement", str, where)
    colors = _colors([(label, dashed) for label, _, _, dashed in lines])

    def draw(figure: Figure) -> None:
        panel: Any = figure.subplots()
        for (label, x, y, dashed), color in zip(lines, colors, strict=True):
            marker = "o" if len(x) <= 20 and not dashed else None
            panel.plot(x, y, "--" if dashed else "-", color=color, label=label, marker=marker, ms=3, lw=1.2)
        panel.set(xlabel=titles["x"], ylabel=titles["y"], xscale=scales["x"], yscale=scales["y"])
        panel.grid()
        for axis in ("x", "y"):
            every = np.concatenate([each[1 if axis == "x" else 2] for each in lines])
            positive = every[every > 0]
            if scales[axis] == "log" and len(positive) and positive.max() < _FEW * positive.min():
                logarithmic(panel, axis, positive, 1.0)
        figure.suptitle("\n".join(_wrapped(statement, figure.get_figwidth())), fontsize="medium")
        if len(lines) > 1:
            columns = _columns([label for label, *_ in lines], figure.get_figwidth())
            figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncol=columns)

    def height(width: float) -> float:
        rows = -(-len(lines) // _columns([label for label, *_ in lines], width)) if len(lines) > 1 else 0
        return _KEY_LINE * (rows + len(_wrapped(statement, width))) + 0.7 + 0.45 * min(width, 4.5)

    data = [line for label, x, y, dashed in lines for line in table(series=label, theory=str(dashed).lower(), x=x, y=y)]
    alt = f"{claim}, {entry(row, 'verdict', str, where)}: {statement}{_compared(row)}"
    return Drawn(claim.replace("/", "-"), claim, alt, draw, (5.0, height(5.0)), height, data)


def _columns(labels: Sequence[str], width: float) -> int:
    """Return columns of a legend below: as many as the longest label leaves room for, three at most."""
    return max(1, min(3, int(width / (0.5 + _LETTER * max(map(len, labels))))))


def _wrapped(sentence: str, width: float) -> list[str]:
    """Return the lines of a title; a statement that goes on for long is cut where its fourth line ends."""
    lines = textwrap.wrap(sentence, int((width - 0.2) / _LETTER))
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"{lines[_LINES - 1][:-1]}\u2026"]


def _colors(series: Sequence[tuple[str, bool]]) -> list[str]:
    """Return a color a series, the same for what was measured and the theory of it.

    They belong together where the theory's label has that of the measured in it, or where there is one of each.
    """
    measured = [label for label, dashed in series if not dashed]
    known = dict(zip(measured, COLORS * len(measured), strict=False))
    single = len(measured) == 1 and len(series) == 2
    free = iter([*COLORS[len(known) :], *COLORS])
    found = []
    for label, dashed in series:
        # The longest one: "trace" is in "trace, plain", too.
        owners = [each for each in measured if each in label] or (measured if single else [])
        found.append(known[max(owners, key=len)] if not dashed or owners else next(free))
    return found


def _compared(row: Mapping[str, Any]) -> str:
    if row.get("measured") is None:
        return ""
    measured = f" Measured {short(row['measured'])}"
    return f"{measured}." if row.get("predicted") is None else f"{measured}, predicted {short(row['predicted'])}."
