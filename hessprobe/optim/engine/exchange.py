"""Giving a parameter other memory for a while: displacing and restoring then cost no copy of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Below this size the calls cost more than the copies that they save.
SMALLEST = 4_096

_count_of_references = getattr(torch._C, "_storage_Use_Count", None)


def may_exchange(parameter: Tensor, memory: Tensor) -> bool:
    """Return whether the parameter is of a kind that can be given this other memory, see ``is_alone`` for the rest.

    Not on a GPU, where a captured graph knows addresses. Not for small tensors, where it does not pay. Not where the
    parameter is a part of its memory, or lies in it in another order than ``memory`` would.
    """
    if _count_of_references is None or torch.compiler.is_compiling():
        return False
    if parameter.numel() < SMALLEST or parameter.device.type != "cpu" or type(parameter) not in (Tensor, nn.Parameter):
        return False
    return parameter.stride() == memory.stride() and parameter.untyped_storage().nbytes() == parameter.nbytes


def is_alone(parameter: Tensor) -> bool:
    """Return whether no other tensor reads the memory of the parameter.

    A view into a flat buffer, weights tied by memory, a NumPy array, a state dict that is held: they have to see the
    displaced weights too.
    """
    # Two: the parameter, and the object that is asked.
    return _count_of_references is not None and bool(_count_of_references(parameter.untyped_storage()._cdata) == 2)


def exchange(parameters: Sequence[Tensor], memories: Sequence[Tensor]) -> None:
    """Give every parameter the memory of its partner, of the same layout."""
    for parameter, memory in zip(parameters, memories, strict=True):
        parameter.data = memory
    # As a write in place would: a graph that saved the weights must not be differentiated with others.
    torch.autograd.graph.increment_version(list(parameters))
