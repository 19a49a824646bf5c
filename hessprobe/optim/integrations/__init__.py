"""Sharpness-aware training inside other programs' loops: the ``Trainer`` of transformers, accelerate, Lightning."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"SAMTrainer": "transformers", "AcceleratedBackward": "accelerate", "SAMModule": "lightning"}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # The libraries are imported when one of them is asked for.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
