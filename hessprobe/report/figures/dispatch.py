"""Which module draws the record of which command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hessprobe.report.figures.drawn import Drawn

# Each module has figures_of(record, folder); a command that is not here has nothing to draw.
_MODULES = {
    "compare": "compare",
    "invariance": "invariance",
    "landscape": "landscape",
    "measure": "measure",
    "sharpness": "sharpness",
    "track": "track",
    "validate": "validate",
}


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:
    """Return the figures of a record, none where there is nothing to draw.

    Args:
        record: as ``report.read_record`` returns it.
        folder: where it lies, for files that it names; None where it lies nowhere.

    Raises:
        RecordError: the record lacks an entry that a figure needs; the message names it.
    """
    name = _MODULES.get(str(record["command"]))
    if name is None:
        return []
    drawn: list[Drawn] = import_module(f"hessprobe.report.figures.{name}").figures_of(record, folder)
    return drawn


def figures_across(records: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Return the figures that put records side by side: one network under several operators, checkpoints over rho.

    Raises:
        RecordError: a record lacks an entry that a figure needs; the message names it.
    """
    from hessprobe.report.figures import operators, sharpness, track

    return [*operators.figures_across(records), *sharpness.across(records), *track.across(records)]
