"""What a rule reads off the loss, made the same on all ranks: gradients are averaged already, losses are not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hessprobe.operators import LinearOperator
from hessprobe.optim.engine.owner import Owner
from hessprobe.optim.engine.tensors import TensorList


def acts_locally(optimizer: Owner) -> bool:
    """Return whether every rank of several displaces along its own gradient."""
    if optimizer.sync != "local" or not torch.distributed.is_initialized():
        return False
    return bool(torch.distributed.get_world_size() > 1)


def require_wrapped(optimizer: Owner) -> None:
    """Refuse to act locally where averaging of the gradients cannot be held back.

    Raises:
        ValueError: ``model`` has no ``no_sync()``.
    """
    if acts_locally(optimizer) and not hasattr(optimizer.model, "no_sync"):
        got = "None" if optimizer.model is None else type(optimizer.model).__name__
        raise ValueError(
            f"model must be the DistributedDataParallel module for sync='local'; got {got}. Pass model=ddp_model, the "
            "one that the closure calls."
        )


def average_over_ranks(optimizer: Owner, vector: TensorList) -> TensorList:
    """Return the mean of ``vector`` over ranks that displace locally (``sync="local"``), else itself.

    What enters an update goes through this: ranks would drift apart otherwise.
    """
    if not acts_locally(optimizer):
        return vector
    averaged = vector.clone()
    for tensor in averaged.tensors:
        torch.distributed.all_reduce(tensor)
    return averaged.mul_(1.0 / torch.distributed.get_world_size())


def average_of_numbers(value: Tensor) -> Tensor:
    """Return the mean over all ranks, however they displace; a rule may ask for it in ``Update.lr`` only."""
    if not torch.distributed.is_initialized():
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def on_every_rank(optimizer: Owner, holds: bool) -> bool:
    """Return whether ``holds`` is True on all ranks that displace locally: a decision to stop is one of all of them."""
    if not acts_locally(optimizer):
        return holds
    count = torch.tensor(int(holds), device=optimizer.parameters()[0].device)
    torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MIN)
    return bool(count)


def mean_over_ranks(optimizer: Owner, value: Tensor) -> Tensor:
    """Return the mean of ``value`` over the ranks where they share one displacement (``sync="global"``), else itself.

    A rule that makes weights of losses, or takes a decision from one, must do so from this: its ranks would drift apart
    otherwise. All ranks must call it as often.
    """
    return average_of_numbers(value) if optimizer.sync == "global" else value


class MeanOverRanks(LinearOperator):
    """The mean of every rank's operator; all ranks must ask for the same products.

    Args:
        optimizer: its ``sync`` says whether the ranks work together.
        inner: this rank's operator.
    """

    def __init__(self, optimizer: Owner, inner: LinearOperator) -> None:
        self.dim, self.dtype, self.device = inner.dim, inner.dtype, inner.device
        self._optimizer, self._inner = optimizer, inner

    def _matvecs(self, V: Tensor) -> Tensor:
        with without_gradient_averaging(self._optimizer):
            products = self._inner.matvecs(V)
        return mean_over_ranks(self._optimizer, products)


def without_gradient_averaging(optimizer: Owner) -> AbstractContextManager[Any]:
    """Return the model's ``no_sync()``, for forward passes that no backward follows; nothing where it has none."""
    model = optimizer.model
    return model.no_sync() if hasattr(model, "no_sync") else nullcontext()  # type: ignore[union-attr,operator]  # DistributedDataParallel
