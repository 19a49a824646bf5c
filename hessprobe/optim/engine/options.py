"""The options that every sharpness-aware optimizer takes."""

from __future__ import annotations

from typing import TypedDict

from torch import nn


class EngineOptions(TypedDict, total=False):
    """Options that every sharpness-aware optimizer takes, see ``SharpnessAware``."""

    model: nn.Module | None
    seed: int
    rng: str
    accumulate: str
    sync: str
    foreach: bool | None
    diagnostics: bool
    check_finite: bool | None
    eps: float
