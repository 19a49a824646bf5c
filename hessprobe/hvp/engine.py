"""What an engine is: something that turns (loss, theta) into a function V -> HV.

Everything that depends on (loss, theta) alone is computed once, when the engine is called, and kept inside the
product; how many bytes that takes is reported, so that a pool can decide which products to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LossFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """The curvature matrix of one loss at one point, as a function.

    Attributes:
        apply: maps V (k, d) to A V (k, d); holds no reference to the graph of V.
        nbytes: memory kept alive by the closure, in bytes, beyond theta and the data.
        forms: maps V (k, d) to v^T A v (k,) in fp64 where that is cheaper than a product (Gauss-Newton), or None.
        add_one: ``add_one(v, total, weight)`` adds weight * A v to ``total`` (d,) in place where that is cheaper than
            forming A v, or None.
    """

    apply: Callable[[Tensor], Tensor]
    nbytes: int = 0
    forms: Callable[[Tensor], Tensor] | None = None
    add_one: Callable[[Tensor, Tensor, float], object] | None = None

    def __call__(self, V: Tensor) -> Tensor:
        """Return A V for the rows of ``V``."""
        return self.apply(V)

    def add_to(self, total: Tensor, V: Tensor, weight: float) -> None:
        """Add weight * A V to ``total`` (k, d) in place."""
        if self.add_one is not None and V.shape[0] == 1:
            self.add_one(V[0], total[0], weight)
        else:
            total.add_(self.apply(V), alpha=weight)


class Engine(Protocol):
    """A way to make products; ``is_exact`` is False for finite differences."""

    @property
    def name(self) -> str:
        """What the record says."""
        ...

    @property
    def is_exact(self) -> bool:
        """False where products carry more than rounding error."""
        ...

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product of the Hessian of ``loss`` at ``theta`` (d,)."""
        ...


def storage_bytes(tensors: Iterable[Tensor], seen: set[int] | None = None) -> int:
    """Return the bytes held by distinct storages; storages whose address is in ``seen`` are not counted again."""
    known = set() if seen is None else seen
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total += storage.nbytes()
    return total


@dataclass
class SavedBytes:
    """Counter filled by ``saved_bytes``."""

    total: int = 0


@contextmanager
def saved_bytes(*ignore: Tensor) -> Iterator[SavedBytes]:
    """Count the bytes that autograd saves for backward in this context, each storage once, ``ignore`` excepted."""
    counter = SavedBytes()
    seen = {tensor.untyped_storage().data_ptr() for tensor in ignore}

    def pack(tensor: Tensor) -> Tensor:
        counter.total += storage_bytes([tensor], seen)
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield counter


def fresh_gradient(loss: LossFunction, theta: Tensor) -> Tensor:
    """Return the gradient of ``loss`` at ``theta`` (d,), evaluated now; zero where the loss does not depend on it."""
    with torch.enable_grad():
        leaf = theta.detach().clone().requires_grad_()
        value = loss(leaf)
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    return gradient


def by_rows(apply_one: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a block function that applies ``apply_one`` (d,) -> (d,) to each row; memory does not grow with k."""

    def apply(V: Tensor) -> Tensor:
        result = torch.empty_like(V)
        for row, vector in enumerate(V):
            result[row] = apply_one(vector)
        return result

    return apply
