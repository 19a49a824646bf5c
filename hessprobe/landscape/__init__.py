"""Loss landscapes: lines and planes through parameter space, evaluated exactly.

The package is also the function ``landscape``: ``hessprobe.landscape(risk)``. Names are loaded on first use: the
command line reads ``names`` alone, without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hessprobe.callable_package import make_callable

if TYPE_CHECKING:
    from hessprobe.landscape.axes import axis, covering_axis, share_axis
    from hessprobe.landscape.compute import LandscapePlan, landscape, survey
    from hessprobe.landscape.directions import eigen_plane, gradient_plane, normalized, random_plane
    from hessprobe.landscape.grid import evaluate
    from hessprobe.landscape.interactive import write_html
    from hessprobe.landscape.matching import match
    from hessprobe.landscape.plane import Plane, line_plane, pca_plane
    from hessprobe.landscape.result import Landscape

_HOMES = {
    "Landscape": "result",
    "Plane": "plane",
    "LandscapePlan": "compute",
    "axis": "axes",
    "covering_axis": "axes",
    "eigen_plane": "directions",
    "evaluate": "grid",
    "gradient_plane": "directions",
    "landscape": "compute",
    "line_plane": "plane",
    "match": "matching",
    "normalized": "directions",
    "pca_plane": "plane",
    "random_plane": "directions",
    "share_axis": "axes",
    "survey": "compute",
    "write_html": "interactive",
}

__all__ = [
    "Landscape",
    "LandscapePlan",
    "Plane",
    "axis",
    "covering_axis",
    "eigen_plane",
    "evaluate",
    "gradient_plane",
    "landscape",
    "line_plane",
    "match",
    "normalized",
    "pca_plane",
    "random_plane",
    "share_axis",
    "survey",
    "write_html",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


make_callable(__name__)
