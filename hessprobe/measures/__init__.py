"""Named measures of a risk's curvature: one entry a name, products shared between them.

``NAMES`` is importable without torch, so that the command line can check names at once; the rest comes on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hessprobe.measures.names import NAMES, UNIVERSAL, Entry

if TYPE_CHECKING:
    from hessprobe.measures.registry import measure, measure_all
    from hessprobe.measures.settings import Event, MeasureSettings, Result

__all__ = ["NAMES", "UNIVERSAL", "Entry", "Event", "MeasureSettings", "Result", "measure", "measure_all"]

_HOMES = {"measure": "registry", "measure_all": "registry"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'settings')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
