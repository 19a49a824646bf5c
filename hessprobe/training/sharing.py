"""One training step shared out over ranks: every rank takes its part of the batch, and all get the batch's gradient.

The ranks begin with the same weights, data and seeds and go the way of one process up to rounding. A pass of a step
costs one all-reduce, of the gradients with the loss and the hits behind them; of a network with BatchNorm one more for
the mean and one for the variance of every such layer, forward and backward, as the statistics are those of the batch.

DistributedDataParallel is not used: it gives gradients of the mean over ranks of means over their parts, which is
another function where parts differ in size, hides the module that a checkpoint names behind another one, and leaves
BatchNorm's statistics to the part of each rank (torch's SyncBatchNorm knows no CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hessprobe.hvp.pool import Ranks


def part_of(ranks: Ranks, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the examples of this rank and their share of the batch, which has at least one for every rank."""
    own = labels.tensor_split(ranks.count)[ranks.rank]
    return inputs.tensor_split(ranks.count)[ranks.rank], own, len(own) / len(labels)


def parts(ranks: Ranks, examples: int) -> list[int]:
    """Return how many of so many examples each rank takes; all of them where there are fewer than ranks."""
    if examples < ranks.count:
        return [examples] * ranks.count
    return [len(part) for part in torch.arange(examples).tensor_split(ranks.count)]


def summed(ranks: Ranks, model: nn.Module, numbers: Sequence[Tensor]) -> list[Tensor]:
    """Add up the gradients of ``model`` over ranks, in place, and return the sums of scalars, with one all-reduce.

    A scalar travels in the dtype of the first gradient, in which integers up to 2^24 (float32) are exact.
    """
    slopes = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    like = slopes[0] if slopes else numbers[0]
    whole = torch.cat([each.reshape(-1).to(like) for each in (*slopes, *numbers)])
    ranks.summed(whole)
    rest = whole
    for each in slopes:
        own, rest = rest.split([each.numel(), rest.numel() - each.numel()])  # type: ignore[no-untyped-call]  # untyped in torch
        each.copy_(own.view_as(each))
    return [total.to(each).reshape(each.shape) for total, each in zip(rest.unbind(), numbers, strict=True)]


class SharedStatistics(TorchFunctionMode):
    """Inside, BatchNorm in training normalizes by the mean and variance over the examples of all ranks.

    Args:
        ranks: all of which must evaluate the same model, each on its part.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        given = dict(kwargs or {})
        if func is F.batch_norm:
            names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
            named = dict(zip(names, args, strict=False)) | given
            if named.get("training"):
                return _normalized(self._ranks, **named)
        return func(*args, **given)


def _normalized(
    ranks: Ranks,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,  # noqa: ARG001  # the signature of F.batch_norm
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    over = [0, *range(2, input.ndim)]
    shape = [1, -1, *[1] * (input.ndim - 2)]
    # Under autocast statistics are taken in float32, as torch does.
    x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    count = ranks.summed(torch.tensor(float(x.numel() // x.shape[1]), dtype=torch.float64, device=x.device))
    n = float(count)
    mean = _summed(ranks, x.sum(over)) / n
    centered = x - mean.view(shape)
    variance = _summed(ranks, centered.square().sum(over)) / n
    with torch.no_grad():
        for running, now in ((running_mean, mean), (running_var, variance * (n / max(n - 1, 1)))):
            if running is not None:
                running.lerp_(now.to(running), momentum)
    result = centered * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        result = result * weight.view(shape)
    if bias is not None:
        result = result + bias.view(shape)
    return result.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over ranks, whose derivative is the sum of the derivatives of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, part: Tensor) -> Tensor:
        ctx.ranks = ranks
        return ranks.summed(part.clone())

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor]:
        return None, _summed(ctx.ranks, slope)


def _summed(ranks: Ranks, part: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(ranks, part)  # type: ignore[no-untyped-call]  # untyped in torch
    return total
