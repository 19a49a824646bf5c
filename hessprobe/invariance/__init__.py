"""Invariance: function-preserving transforms found in a network, and what they do to every measure.

``TRANSFORMS`` and ``MEASURES`` are importable without torch; the rest comes on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hessprobe.invariance.names import (
    DEFAULT_MEASURES,
    DEFAULT_STRENGTHS,
    DENSE_LIMIT,
    MEASURES,
    TRANSFORMS,
    default_measures,
)

if TYPE_CHECKING:
    from hessprobe.invariance.attention import Skip
    from hessprobe.invariance.check import Applied, Line, check_invariance
    from hessprobe.invariance.sites import Found, find_sites

__all__ = [
    "DEFAULT_MEASURES",
    "DEFAULT_STRENGTHS",
    "DENSE_LIMIT",
    "MEASURES",
    "TRANSFORMS",
    "Applied",
    "Found",
    "Line",
    "Skip",
    "check_invariance",
    "default_measures",
    "find_sites",
]

_HOMES = {"Skip": "attention", "Found": "sites", "find_sites": "sites"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'check')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
