"""What an engine is: something that turns (loss, theta) into a function V -> HV.

Everything that depends on (loss, theta) alone is computed once, when the engine is called, and kept inside the
product; how many bytes that takes is reported, so that a pool can decide which products to keep.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hessprobe.objective.base import BatchLoss

LossFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """The curvature matrix of one loss at one point, as a function.

    Attributes:
        apply: maps V (k, d) to A V (k, d); holds no reference to the graph of V.
        nbytes: memory kept alive by the closure, in bytes, beyond theta; that of the batch counts, for a loader would
            let it go.
        forms: maps V (k, d) to v^T A v (k,) in fp64 where that is cheaper than a product (Gauss-Newton), or None.
        add: ``add(V, total, weight)`` adds weight * A V to ``total`` (k, d) in place where that is cheaper than forming
            A V, or None.
    """

    apply: Callable[[Tensor], Tensor]
    nbytes: int = 0
    forms: Callable[[Tensor], Tensor] | None = None
    add: Callable[[Tensor, Tensor, float], None] | None = None

    def __call__(self, V: Tensor) -> Tensor:
        """Return A V for the rows of ``V``."""
        return self.apply(V)

    def add_to(self, total: Tensor, V: Tensor, weight: float) -> None:
        """Add weight * A V to ``total`` (k, d) in place."""
        if self.add is not None:
            self.add(V, total, weight)
        else:
            total.add_(self.apply(V), alpha=weight)


class Engine(Protocol):
    """A way to make products."""

    @property
    def name(self) -> str:
        """What the record says."""
        ...

    @property
    def is_exact(self) -> bool:
        """False where products carry more than rounding error."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether products keep more than the batch, so that a batch may have to be cut to fit the memory."""
        ...

    @property
    def setup_seconds(self) -> float:
        """About how long it takes to prepare for all batches of one shape, whatever the model."""
        ...

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product of the Hessian of ``loss`` at ``theta`` (d,)."""
        ...


def storage_bytes(tensors: Iterable[Tensor], seen: set[int] | None = None) -> int:
    """Return the bytes held by distinct storages; storages whose address is in ``seen`` are not counted again."""
    known = set() if seen is None else seen
    total = 0
    for storage in _storages(tensors):
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _storages(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    """Yield what tensors keep their numbers in; a sparse one in several places, its indices and its values."""
    for tensor in tensors:
        if tensor.layout == torch.strided:
            yield tensor.untyped_storage()
        elif tensor.layout == torch.sparse_coo:
            yield from (part.untyped_storage() for part in (tensor._indices(), tensor._values()))
        elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            yield from (p.untyped_storage() for p in (tensor.crow_indices(), tensor.col_indices(), tensor.values()))
        else:
            yield from (p.untyped_storage() for p in (tensor.ccol_indices(), tensor.row_indices(), tensor.values()))


def batch_bytes(loss: LossFunction) -> int:
    """Return the bytes of the tensors in a batch, 0 for a plain function."""
    if not isinstance(loss, BatchLoss):
        return 0
    opaque = tree_leaves(getattr(loss, "batch", None))
    return storage_bytes(loss.tensors() or [leaf for leaf in opaque if isinstance(leaf, Tensor)])


def graph_bytes(*roots: Tensor, ignore: Iterable[Tensor] = ()) -> int:
    """Return the bytes that the autograd graph of ``roots`` saves for backward, each storage once.

    The graph is read, because ``saved_tensors_hooks``, which could count while it is built, keep parts of a graph
    that is differentiated again alive for ever (torch 2.13).

    Args:
        roots: tensors whose graph it is.
        ignore: tensors whose memory does not count.
    """
    seen = {storage.data_ptr() for storage in _storages(ignore)}
    total = 0
    for node in graph_nodes(*roots):
        names = _saved_names(type(node))  # type: ignore[arg-type]  # a class can be hashed
        saved = [getattr(node, name) for name in names]
        saved += getattr(node, "saved_tensors", ())
        tensors = [leaf for leaf in saved if isinstance(leaf, Tensor)]
        tensors += [t for group in saved if isinstance(group, list | tuple) for t in group if isinstance(t, Tensor)]
        total += storage_bytes(tensors, seen)
    return total


def graph_nodes(*roots: Tensor) -> list[Any]:
    """Return the nodes of the autograd graph of ``roots``, each once."""
    waiting: list[Any] = [root.grad_fn for root in roots]
    found: dict[Any, None] = {}
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = None
            waiting += [source for source, _ in node.next_functions]
    return list(found)


@functools.cache
def _saved_names(kind: Any) -> tuple[str, ...]:
    # A graph of a small network is walked for longer than it takes to build it, were they listed for every node.
    return tuple(name for name in dir(kind) if name.startswith("_saved_"))


def pulled_back(outputs: Tensor, leaf: Tensor, vector: Tensor) -> Tensor:
    """Return the derivative of <outputs, vector> in ``leaf``, both flat, with the graph kept; zero where there is none.

    Bit for bit ``torch.autograd.grad(outputs, leaf, vector)``, whose check of the shape of ``vector`` imports a
    computer algebra system in torch 2.13: a second, or 300 gradients of a small network, before the first product.
    """
    (column,) = torch.autograd.grad(torch.dot(outputs, vector), leaf, retain_graph=True, materialize_grads=True)
    return column


def fresh_gradient(loss: LossFunction, theta: Tensor) -> Tensor:
    """Return the gradient of ``loss`` at ``theta`` (d,), evaluated now; zero where the loss does not depend on it."""
    with torch.enable_grad():
        leaf = theta.detach().clone().requires_grad_()
        value = loss(leaf)
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    return gradient


def device_clock(device: torch.device) -> float:
    """Return the seconds at which the work given to ``device`` so far is completed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def by_rows(apply_one: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a block function that applies ``apply_one`` (d,) -> (d,) to each row; memory does not grow with k."""

    def apply(V: Tensor) -> Tensor:
        result = torch.empty_like(V)
        for row, vector in enumerate(V):
            result[row] = apply_one(vector)
        return result

    return apply
