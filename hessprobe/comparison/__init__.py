"""Comparison of checkpoints: differences with their own errors, and measures against the generalisation gap.

    found = compare({"sgd": risk, "sam": other}, measures=["trace", "frob"])
    for line in found.lines:
        print(line.measure, line.label, line.verdict, line.difference.estimate.interval())

The names of what can be compared are importable without torch; the rest comes on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hessprobe.comparison.names import DEFAULT_MEASURES, FEWEST, MEASURES

if TYPE_CHECKING:
    from hessprobe.comparison.comparing import Comparison, compare, measure_each
    from hessprobe.comparison.differences import Correlation, Line, compare_values, correlate
    from hessprobe.comparison.ranks import RankCorrelation, kendall
    from hessprobe.comparison.rescaling import Rescaling, rescaling_of

__all__ = [
    "DEFAULT_MEASURES",
    "FEWEST",
    "MEASURES",
    "Comparison",
    "Correlation",
    "Line",
    "RankCorrelation",
    "Rescaling",
    "compare",
    "compare_values",
    "correlate",
    "kendall",
    "measure_each",
    "rescaling_of",
]

_HOMES = {
    "Comparison": "comparing",
    "Correlation": "differences",
    "Line": "differences",
    "RankCorrelation": "ranks",
    "Rescaling": "rescaling",
    "compare": "comparing",
    "compare_values": "differences",
    "correlate": "differences",
    "kendall": "ranks",
    "measure_each": "comparing",
    "rescaling_of": "rescaling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
