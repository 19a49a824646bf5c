"""How much the loss rises around a point: worst, ascent and average direction, adaptive or not, and SAM's diagnostics.

Everything is loaded on first use, so that the command line can list the names without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessprobe.sharpness.arc import Arc, arc_profile
    from hessprobe.sharpness.average import ascent_direction, average_direction
    from hessprobe.sharpness.diagnostics import Diagnostics, diagnose
    from hessprobe.sharpness.flatness import RelativeFlatness, fisher_rao_norm, relative_flatness
    from hessprobe.sharpness.neighborhood import Neighborhood, rescaled, scale_of
    from hessprobe.sharpness.result import Cost, Prediction, Sharpness
    from hessprobe.sharpness.subsets import m_sharpness
    from hessprobe.sharpness.worst import worst_direction

__all__ = [
    "Arc",
    "Cost",
    "Diagnostics",
    "Neighborhood",
    "Prediction",
    "RelativeFlatness",
    "Sharpness",
    "arc_profile",
    "ascent_direction",
    "average_direction",
    "diagnose",
    "fisher_rao_norm",
    "m_sharpness",
    "relative_flatness",
    "rescaled",
    "scale_of",
    "worst_direction",
]

_HOMES = {
    "Arc": "arc",
    "Cost": "result",
    "Diagnostics": "diagnostics",
    "Neighborhood": "neighborhood",
    "Prediction": "result",
    "RelativeFlatness": "flatness",
    "Sharpness": "result",
    "arc_profile": "arc",
    "ascent_direction": "average",
    "average_direction": "average",
    "diagnose": "diagnostics",
    "fisher_rao_norm": "flatness",
    "m_sharpness": "subsets",
    "relative_flatness": "flatness",
    "rescaled": "neighborhood",
    "scale_of": "neighborhood",
    "worst_direction": "worst",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
