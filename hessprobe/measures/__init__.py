"""Named measures of a risk's curvature: one entry a name, products shared between them.

The table is importable without torch, so that the command line can check names at once; the rest comes on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hessprobe.measures.table import DEFAULT, NAMES, TABLE, UNIVERSAL, Entry, Layers, register, taking, unregister

if TYPE_CHECKING:
    from hessprobe.estimators.budget import Progress
    from hessprobe.measures.context import Context, MeasureSettings, Result
    from hessprobe.measures.registry import measure, measure_all

__all__ = [
    "DEFAULT",
    "NAMES",
    "TABLE",
    "UNIVERSAL",
    "Context",
    "Entry",
    "Layers",
    "MeasureSettings",
    "Progress",
    "Result",
    "measure",
    "measure_all",
    "register",
    "taking",
    "unregister",
]

_HOMES = {"Context": "context", "measure": "registry", "measure_all": "registry"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'context')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
