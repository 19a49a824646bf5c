"""Figures of ``hessprobe measure``: spectral density, eigenvalues, the share of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hessprobe.report.figures import density, eigenvalues, heat, layers
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import POSITIVE

_EIGENVALUES = ("lambda-max", "lambda-min", "spectral-norm")
# Measures that look at both ends of the spectrum.
_BOTH = {"lambda-min", "spectral-norm"}


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    rows = {row["measure"]: (row, f"results[{index}],") for index, row in enumerate(record["results"])}
    drawn = []
    if "density" in rows:
        drawn.append(density.density(*rows["density"]))
    first = next((rows[name] for name in _EIGENVALUES if name in rows), None)
    # Every measure of an eigenvalue carries all of them.
    if first is not None and eigenvalues.has_several(*first):
        both = bool(rows.keys() & _BOTH) and str(first[0]["operator"]) not in POSITIVE
        drawn.append(eigenvalues.eigenvalues(*first, both))
    layered = [found for found in rows.values() if found[0].get("layers")]
    if layered:
        drawn.append(layers.bars(layered))
        drawn += [found for found in (heat.heat(layered),) if found is not None]
    return drawn
