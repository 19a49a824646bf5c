"""Parameters that ``fully_shard`` has spread over ranks: full tensors from them, and their like from full tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether ``tensor`` is a DTensor."""
    if not torch.distributed.is_available() or type(tensor) in (Tensor, torch.nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def any_sharded(tensors: Sequence[Tensor]) -> bool:
    """Return whether some of the tensors are."""
    return any(map(is_sharded, tensors))


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor, on every rank; a collective where it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # DTensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot product of two tensors of one layout, whole, on every rank."""
    return whole((a * b).sum())


def beside(factor: float | Tensor, tensor: Tensor) -> float | Tensor:
    """Return a number, the same on every rank, that ``tensor`` can be multiplied by."""
    if not isinstance(factor, Tensor) or not is_sharded(tensor) or is_sharded(factor):
        return factor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = tensor.device_mesh  # type: ignore[attr-defined]  # DTensor
    return DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Return ``full``, the same on every rank, laid out over the ranks as ``like`` is; nothing is sent."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    spec: DTensor = like  # type: ignore[assignment]
    return distribute_tensor(full, spec.device_mesh, spec.placements, src_data_rank=None)
