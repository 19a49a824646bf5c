"""Batch normalisation with fixed statistics, rewritten so that curvature products skip its elementwise passes.

In evaluation mode BN(conv(x, W)) = conv(x, s W) + t with s = gamma / sqrt(var + eps), t = beta - s mean: the same
function of (W, gamma, beta), so the same Hessian to rounding, but the normalisation acts on the small weight tensor
instead of on every activation. Applied while a product is traced; the unused convolution is dropped with dead code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}


class _Convolution(NamedTuple):
    output: Tensor  # held, so that its id stays its own
    version: int
    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class FoldBatchNorm(TorchFunctionMode):
    """Within this context, evaluation-mode batch normalisation is folded into the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, _Convolution] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept convolutions (remembered) and batch normalisations (rewritten)."""
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            output = func(*args, **kwargs)
            self._made[id(output)] = _Convolution(output, output._version, func, args, kwargs)
            return output
        if func is F.batch_norm:
            folded = self._fold(*args, **kwargs)
            if folded is not None:
                return folded
        return func(*args, **kwargs)

    def _fold(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        if training or running_mean is None or running_var is None:
            return None
        scale = torch.rsqrt(running_var + eps)
        scale = scale if weight is None else scale * weight
        offset = -running_mean * scale
        offset = offset if bias is None else offset + bias
        made = self._made.get(id(input))
        if made is None or made.version != input._version:
            channels = (1, -1) + (1,) * (input.dim() - 2)
            return input * scale.view(channels) + offset.view(channels)
        return _scaled_convolution(made.function, scale, offset, *made.args, **made.kwargs)


def _scaled_convolution(
    function: Callable[..., Tensor],
    scale: Tensor,
    offset: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *settings: Any,
    **named: Any,
) -> Tensor:
    offset = offset if bias is None else offset + bias * scale
    return function(input, weight * scale.view((-1,) + (1,) * (weight.dim() - 1)), offset, *settings, **named)
