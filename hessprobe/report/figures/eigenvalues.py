"""The extreme eigenvalues at both ends of a spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import OPERATORS, array
from hessprobe.report.figures.style import BLUE, GRAY, VERMILION
from hessprobe.report.numbers import with_error
from hessprobe.report.typography import pretty

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def has_several(row: Mapping[str, Any], where: str) -> bool:
    """Return whether there are eigenvalues to compare: one alone is a number, not a figure."""
    return bool(row.get("arrays")) and len(array(row, "eigenvalues", where)) > 1


def eigenvalues(row: Mapping[str, Any], where: str) -> Drawn:
    """Return the extreme eigenvalues in order with their errors, and the residual of each below.

    Args:
        row: of a measure of eigenvalues, which carries all that were found.
        where: the row in words.

    Raises:
        RecordError: an array is missing.
    """
    values, errors, residuals = (array(row, name, where) for name in ("eigenvalues", "eigenvalue_errors", "residuals"))
    order = np.arange(1, len(values) + 1)

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        top.axhline(0, color=GRAY, lw=0.8)
        top.errorbar(order, values, yerr=errors, fmt="o", ms=4, color=BLUE)
        top.set(ylabel="eigenvalue")
        # An exact zero has no place on a logarithmic axis.
        bottom.plot(order, np.where(residuals > 0, residuals, np.nan), "s", ms=4, color=VERMILION)
        bottom.set(yscale="log", ylabel="residual", xlabel="Ritz value, from the largest down")
        bottom.set_xticks(order if len(order) <= 20 else order[:: len(order) // 10])
        for panel in (top, bottom):
            panel.grid()

    matrix = OPERATORS.get(str(row["operator"]), str(row["operator"]))
    shown = ", ".join(pretty(with_error(float(v), float(e))) for v, e in zip(values[:6], errors[:6], strict=True))
    more = f" and {len(values) - 6} more" if len(values) > 6 else ""
    top = pretty(f"{residuals.max():.2g}")
    alt = f"Extreme eigenvalues of the {matrix}: {shown}{more}; the largest residual is {top}."
    return Drawn(f"eigenvalues-{row['operator']}", f"Extreme eigenvalues of the {matrix}", alt, draw, (5.6, 4.0))
