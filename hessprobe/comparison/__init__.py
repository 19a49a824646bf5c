"""Comparison of checkpoints: differences with their own errors, and measures against the generalisation gap.

    settings = MeasureSettings(probes=64)
    values = {
        label: {one.measure: one.estimate for one in measure_each(risk, ["trace", "frob"], settings)}
        for label, risk in risks.items()
    }
    for line in compare(values, baseline="sgd"):
        print(line.measure, line.label, line.verdict, line.difference.estimate.interval())

The names of what can be compared are importable without torch; the rest comes on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hessprobe.comparison.names import DEFAULT_MEASURES, FEWEST, MEASURES

if TYPE_CHECKING:
    from hessprobe.comparison.differences import Line, compare
    from hessprobe.comparison.gaps import Correlation, correlate
    from hessprobe.comparison.measuring import measure_each
    from hessprobe.comparison.ranks import RankCorrelation, kendall
    from hessprobe.comparison.rescaling import Rescaling, rescaling_of

__all__ = [
    "DEFAULT_MEASURES",
    "FEWEST",
    "MEASURES",
    "Correlation",
    "Line",
    "RankCorrelation",
    "Rescaling",
    "compare",
    "correlate",
    "kendall",
    "measure_each",
    "rescaling_of",
]

_HOMES = {
    "Correlation": "gaps",
    "Line": "differences",
    "RankCorrelation": "ranks",
    "Rescaling": "rescaling",
    "compare": "differences",
    "correlate": "gaps",
    "kendall": "ranks",
    "measure_each": "measuring",
    "rescaling_of": "rescaling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
