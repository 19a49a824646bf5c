"""Losses whose torch kernels lack a forward derivative of their gradient, written out of operations that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, where
from torch.overrides import TorchFunctionMode


class SecondOrderLosses(TorchFunctionMode):
    """Inside, ``mse_loss``, ``huber_loss`` and ``soft_margin_loss`` are twice differentiable in every mode.

    Torch's own kernels fail under ``jvp`` of ``grad``: the first with an error about immutable zero tensors, and with a
    crash of the process under ``linearize``; the others for want of a formula. Values agree to rounding. Calls with
    outputs and targets of different shapes, weights or deprecated arguments go to torch's own function.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = kwargs or {}
        substitute = _SUBSTITUTES.get(func)
        if substitute is None or not _plain(args, kwargs):
            return func(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if value is not None}
        reduction = options.pop("reduction", "mean")
        values = substitute(*args, **options)
        if reduction == "none":
            return values
        return values.sum() if reduction == "sum" else values.mean()


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = {"input": args[0] if args else None, "target": args[1] if len(args) == 2 else None, **kwargs}
    known = {"input", "target", "reduction", "delta"}
    unusual = [key for key, value in given.items() if key not in known and value is not None]
    both = [given["input"], given["target"]]
    standard = given.get("reduction", "mean") in ("mean", "sum", "none")
    return standard and not unusual and all(isinstance(t, Tensor) for t in both) and both[0].shape == both[1].shape


def _squared(input: Tensor, target: Tensor) -> Tensor:
    return (input - target).square()


def _huber(input: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    size = (input - target).abs()
    return where(size <= delta, size.square() / 2, delta * (size - delta / 2))


def _soft_margin(input: Tensor, target: Tensor) -> Tensor:
    return F.softplus(-target * input)


_SUBSTITUTES: dict[Any, Callable[..., Tensor]] = {
    F.mse_loss: _squared,
    F.huber_loss: _huber,
    F.soft_margin_loss: _soft_margin,
}
