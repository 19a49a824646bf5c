"""Figures of ``hessprobe measure``: spectral density, eigenvalues, the share of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hessprobe.measures.table import TABLE, entry_of
from hessprobe.report.figures import density, eigenvalues, heat, layers
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import POSITIVE


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    rows = {row["measure"]: (row, f"results[{index}],") for index, row in enumerate(record["results"])}
    drawn = []
    drawn += [density.density(*found) for name, found in rows.items() if "density" in entry_of(name).drawn]
    first = next((rows[name] for name, entry in TABLE.items() if name in rows and "eigenvalues" in entry.drawn), None)
    # Every measure of an eigenvalue carries all of them.
    if first is not None and eigenvalues.has_several(*first):
        both = any("both ends" in entry_of(name).needs for name in rows) and str(first[0]["operator"]) not in POSITIVE
        drawn.append(eigenvalues.eigenvalues(*first, both))
    layered = [found for found in rows.values() if found[0].get("layers")]
    if layered:
        drawn.append(layers.bars(layered))
        drawn += [found for found in (heat.heat(layered),) if found is not None]
    return drawn
