"""Buffers of a module that a forward pass changes (BatchNorm statistics): updated once a step, whatever the passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@dataclass(frozen=True)
class _Saved:
    owner: nn.Module
    name: str
    tensor: Tensor
    value: Tensor


class BufferGuard:
    """Keeps what the first pass over each shard made of the buffers, and puts it back after the displaced passes.

    Every module whose forward pass writes to a buffer is covered (BatchNorm with any momentum, SyncBatchNorm,
    InstanceNorm with running statistics, an exponential average of one's own). A buffer counts when the first pass has
    written to it or replaced it, or when a norm layer owns it; constant ones (attention masks) cost nothing.

    Args:
        module: the model, or None to guard nothing.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._owners = [] if module is None else [owner for owner in module.modules() if owner._buffers]
        self._before: list[tuple[nn.Module, str, Tensor, int]] = []
        self._saved: list[_Saved] | None = None

    def before(self) -> None:
        """Note the state before the first pass of a step."""
        self._saved = None
        self._before = [
            (owner, name, buffer, buffer._version)
            for owner in self._owners
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def keep(self) -> None:
        """Keep the buffers as they are now, those that a pass has changed."""
        self._saved = []
        for owner, name, before, version in self._before:
            now = owner._buffers[name]
            # The kernels of norm layers write to running statistics without counting up their version.
            if now is not None and (now is not before or now._version != version or isinstance(owner, _NormBase)):
                self._saved.append(_Saved(owner, name, now, now.detach().clone()))

    def keep_all(self) -> None:
        """Keep every buffer as it is now, before a pass that must leave no trace."""
        self._saved = [
            _Saved(owner, name, buffer, buffer.detach().clone())
            for owner in self._owners
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def restore(self) -> None:
        """Put them back, at their addresses."""
        with torch.no_grad():
            for saved in self._saved or []:
                saved.tensor.copy_(saved.value)
                saved.owner._buffers[saved.name] = saved.tensor
