"""The sharpness-aware optimizers: one engine, one small rule a variant.

Each class is named as in its paper and wraps any constructed ``torch.optim.Optimizer``.

Examples:
    >>> import torch, hessprobe as hp
    >>> model, criterion = torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss()
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> opt = hp.optim.SAM(base, rho=0.05, model=model)
    >>> def closure():
    ...     opt.zero_grad()
    ...     loss = criterion(model(x), y)
    ...     loss.backward()
    ...     return loss
    >>> before, loss = criterion(model(x), y).detach(), opt.step(closure)
    >>> torch.equal(loss, before), opt.last.evaluations
    (True, 2)
"""

from __future__ import annotations

from typing import Any

from hessprobe.optim.engine import SharpnessAware
from hessprobe.optim.registry import REGISTRY, available
from hessprobe.optim.schedules import Cosine, LikeLr, Linear

_CLASSES = {entry.class_name: entry for entry in REGISTRY.values()}

__all__ = ["Cosine", "LikeLr", "Linear", "SharpnessAware", "available", *sorted(_CLASSES)]


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name].load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
