"""Curvature along training: saved checkpoints in order, and callbacks for a loop that runs.

Names are loaded on first use: the command line reads ``names`` alone, without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessprobe.tracking.point import Point, measure_point
    from hessprobe.tracking.snapshots import Snapshot, find_snapshots
    from hessprobe.tracking.stability import Edge, StepRule, edge, rule_of_optimizer, rule_of_recipe
    from hessprobe.tracking.tracker import SharpnessTracker

_HOMES = {
    "Edge": "stability",
    "Point": "point",
    "SharpnessTracker": "tracker",
    "Snapshot": "snapshots",
    "StepRule": "stability",
    "edge": "stability",
    "find_snapshots": "snapshots",
    "measure_point": "point",
    "rule_of_optimizer": "stability",
    "rule_of_recipe": "stability",
}

__all__ = [
    "Edge",
    "Point",
    "SharpnessTracker",
    "Snapshot",
    "StepRule",
    "edge",
    "find_snapshots",
    "measure_point",
    "rule_of_optimizer",
    "rule_of_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
