"""The extreme eigenvalues, each end of the spectrum in a panel of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.records.typed import with_error
from hessprobe.report.figures.drawn import Drawn, table
from hessprobe.report.figures.fields import OPERATORS, Floats, array
from hessprobe.report.figures.style import BLUE, GRAY, NARROW, VERMILION
from hessprobe.report.typography import pretty

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def has_several(row: Mapping[str, Any], where: str) -> bool:
    """Return whether there are eigenvalues to compare: one alone is a number, not a figure."""
    return bool(row.get("arrays")) and len(array(row, "eigenvalues", where)) > 1


def eigenvalues(row: Mapping[str, Any], where: str, both: bool) -> Drawn:
    """Return the extreme eigenvalues with their intervals, counted from the end that they belong to.

    Args:
        row: of a measure of eigenvalues, which carries all that were found, descending.
        where: the row in words.
        both: whether they are of both ends: as many of the smallest as of the largest, or one fewer. Their axes are
            their own, as the smallest of a trained network are a hundred times smaller.

    Raises:
        RecordError: an array is missing.
    """
    values, errors, residuals = (array(row, name, where) for name in ("eigenvalues", "eigenvalue_errors", "residuals"))
    split = -(-len(values) // 2) if both else len(values)
    ends = {"largest": (values[:split], errors[:split], residuals[:split])}
    if split < len(values):
        ends["smallest"] = (values[split:][::-1], errors[split:][::-1], residuals[split:][::-1])

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplots(1, len(ends), squeeze=False)[0]
        for panel, (name, (found, error, _)), color in zip(panels, ends.items(), (BLUE, VERMILION), strict=False):
            order = np.arange(1, len(found) + 1)
            panel.errorbar(order, found, yerr=error, fmt="o", ms=3, color=color)
            _zero(panel, found, error)
            panel.set(title=name, xlabel=f"from the {name}", xlim=(0.5, len(found) + 0.5))
            panel.set_xticks(order[:: -(-len(order) // 8)])
            panel.locator_params(axis="y", nbins=6)
            panel.grid()
        panels[0].set_ylabel("eigenvalue")

    matrix = OPERATORS.get(str(row["operator"]), str(row["operator"]))
    shown = ", ".join(pretty(with_error(float(v), float(e))) for v, e in zip(values[:6], errors[:6], strict=True))
    more = f" and {len(values) - 6} more" if len(values) > 6 else ""
    top = pretty(f"{residuals.max():.2g}")
    alt = f"Extreme eigenvalues of the {matrix}: {shown}{more}; the largest residual is {top}."
    data = [
        line
        for name, (found, error, residual) in ends.items()
        for line in table(
            end=name, number=np.arange(1, len(found) + 1), eigenvalue=found, error=error, residual=residual
        )
    ]
    title = f"Extreme eigenvalues of the {matrix}"
    return Drawn(f"eigenvalues-{row['operator']}", title, alt, draw, (6.0, 2.4), _height, data)


def _height(width: float) -> float:
    return 2.1 if width < NARROW else 1.2 + 0.2 * width


def _zero(panel: Any, values: Floats, errors: Floats) -> None:
    """Mark 0 where it lies within the axis, or near: a line that would flatten the values is not worth it."""
    low, high = float((values - errors).min()), float((values + errors).max())
    if low <= 0 <= high or min(abs(low), abs(high)) < 0.3 * (high - low):
        panel.axhline(0, color=GRAY, lw=0.8)
