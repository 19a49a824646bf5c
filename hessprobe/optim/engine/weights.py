"""The live weights of a step: moved to where a rule evaluates, and put back bit for bit.

Giving a parameter other memory for a while: displacing and restoring then cost no copy of the weights.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hessprobe.optim.engine.requests import Displacement
from hessprobe.optim.engine.tensors import TensorList

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


_Item = TypeVar("_Item")


class Weights:
    """Displaces parameters and restores them, at the same addresses.

    A large tensor on a CPU that is alone in its memory is given a second memory, which takes w + e in one pass, and
    then its own again, which nothing has written to. All others are moved in place and copied back from a snapshot:
    subtracting what was added would drift (bfloat16: 7e-3 in 2,000 steps). Second memories and snapshots are kept from
    step to step.
    """

    def __init__(self) -> None:
        self._live: list[Tensor] = []
        # For each parameter: its snapshot, or the memory that it is exchanged for.
        self._spare: list[Tensor] = []
        self._home: list[Tensor] = []
        self._layout: list[Any] | None = None
        self._candidates: list[int] = []
        self._exchanged: list[int] = []
        self._copied: list[int] = []
        self._foreach = False
        self.displaced = False

    def bind(self, parameters: list[Tensor], foreach: bool) -> None:
        """Say which parameters the step is about; nothing is displaced then."""
        if len(parameters) != len(self._live) or not all(map(operator.is_, parameters, self._live)):
            self._live, self._layout = parameters, None
        self._foreach = foreach

    def original(self) -> TensorList:
        """Return w, wherever the live weights are; it stands for as long as the step's weights do."""
        return TensorList(self._home if self.displaced else self._live, self._foreach)

    def displace(self, displacement: Displacement | TensorList | None) -> None:
        """Move the live weights to w + displacement, w being where they were when the step began."""
        if displacement is None:
            self.restore()
            return
        fresh = not self.displaced
        if fresh:
            self._leave_home()
        elif self._copied:
            self._copy_back()
        if isinstance(displacement, TensorList):
            displacement = Displacement(displacement, [1.0] * len(displacement), is_uniform=True)
        self._move_in_place(displacement)
        self._move_elsewhere(displacement, fresh)

    def restore(self) -> None:
        """Put the live weights back to w."""
        if not self.displaced:
            return
        with torch.no_grad():
            if self._exchanged:
                exchange(_pick(self._live, self._exchanged), _pick(self._home, self._exchanged))
            if self._copied:
                self._copy_back()
        self.displaced, self._home = False, []

    def _leave_home(self) -> None:
        layout = None if torch.compiler.is_compiling() else _layout(self._live)
        if layout is None or layout != self._layout:
            self._spare = [torch.empty_like(p) for p in self._live]
            pairs = zip(self._live, self._spare, strict=True)
            self._candidates = [i for i, (p, s) in enumerate(pairs) if may_exchange(p, s)]
            self._layout = layout
        self._exchanged = [i for i in self._candidates if is_alone(self._live[i])]
        chosen = set(self._exchanged)
        self._copied = [i for i in range(len(self._live)) if i not in chosen]
        if self._copied:
            self._list(self._spare).copy_(self._list(self._live))
        home = list(self._spare)
        for index in self._exchanged:
            home[index] = self._live[index].data
        self._home = home
        # Last: whatever interrupts before this line finds nothing displaced.
        self.displaced = True

    def _copy_back(self) -> None:
        self._list(self._live).copy_(self._list(self._home))

    def _move_in_place(self, displacement: Displacement) -> None:
        vectors, factors = displacement.direction.tensors, displacement.factors
        if self._copied and displacement.is_uniform:
            self._list(self._live).add_(self._list(vectors), alpha=factors[0])
            return
        for index in self._copied:
            TensorList([self._live[index]]).add_(TensorList([vectors[index]]), alpha=factors[index])

    def _move_elsewhere(self, displacement: Displacement, fresh: bool) -> None:
        vectors, factors = displacement.direction.tensors, displacement.factors
        for index in self._exchanged:
            torch.add(self._home[index], vectors[index], alpha=float(factors[index]), out=self._spare[index])
        if fresh and self._exchanged:
            exchange(_pick(self._live, self._exchanged), _pick(self._spare, self._exchanged))

    def _list(self, tensors: list[Tensor]) -> TensorList:
        return TensorList(_pick(tensors, self._copied), self._foreach)


def _pick(items: list[_Item], indices: list[int]) -> list[_Item]:
    return items if len(indices) == len(items) else [items[i] for i in indices]


def _layout(tensors: list[Tensor]) -> list[Any]:
    # Quick to make and to compare. What else could change (device, strides) changes the address.
    return [[t.data_ptr() for t in tensors], [t.dtype for t in tensors], [t.shape for t in tensors]]
