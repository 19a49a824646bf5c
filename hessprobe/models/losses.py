"""Losses by name, and targets in the form that each of them takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hessprobe.objective.weighting import token_cross_entropy

Loss = Callable[[Any, Any], Tensor]

_BY_NAME: dict[str, Loss] = {
    "cross-entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "mse": F.mse_loss,
    "bce-logits": F.binary_cross_entropy_with_logits,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}
_ELEMENTWISE = ("mse", "bce-logits", "l1", "huber")


def loss_for(name: str, outputs: Tensor) -> Loss:
    """Return a mean loss by name for outputs of this shape.

    Args:
        name: of ``LOSSES`` but ``"model"``.
        outputs: of the network on a batch; with (n, T, C) the cross-entropy is that of every token.
    """
    return token_cross_entropy if name == "cross-entropy" and outputs.ndim == 3 else _BY_NAME[name]


def default_name(targets: Tensor) -> str:
    """Return the loss that targets stand for by themselves: cross-entropy for class labels.

    Raises:
        ValueError: numbers, which several losses take.
    """
    if not targets.is_floating_point():
        return "cross-entropy"
    raise ValueError("--loss must be given for targets that are no class labels. Choose mse, l1, huber or bce-logits.")


def fit_targets(name: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return targets in the dtype and shape that a loss takes, and what was changed.

    Losses of two equal shapes get floating-point targets, and (n,) becomes (n, 1) beside outputs (n, 1): broadcast
    against each other they would be another loss.

    Args:
        name: of ``LOSSES``.
        outputs: of the network on a batch.
        targets: all of them.
    """
    if name not in _ELEMENTWISE:
        return targets, ()
    targets = targets.to(outputs.dtype)
    if outputs.shape[1:] == (*targets.shape[1:], 1):
        return targets.unsqueeze(-1), ("targets made (n, 1) like the outputs",)
    return targets, ()
