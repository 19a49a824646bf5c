"""Reverse over reverse: the derivative of <gradient, v>, with the graph of the gradient kept.

H v = d/dtheta <g(theta), v>. The graph of g is built once; each product is one more backward pass through it, about
2 gradients of arithmetic (3 when the graph is new), with memory independent of the number of probes.

References:
    Pearlmutter (1994), "Fast exact multiplication by the Hessian".

Forward over reverse: the directional derivative of the gradient, g(theta + t v) at t = 0.

Nothing but the batch is kept between products: memory is that of one gradient and its tangents; about 3 gradients of
arithmetic for one probe, 2 + 1/k for each of a block of k (one shared primal under vmap).

References:
    Pearlmutter (1994), "Fast exact multiplication by the Hessian".

What an engine is: something that turns (loss, theta) into a function V -> HV.

Everything that depends on (loss, theta) alone is computed once, when the engine is called, and kept inside the
product; how many bytes that takes is reported, so that a pool can decide which products to keep.

Products that are written down as they are made, and read back where a stopped run is gone through again.

Everything else of a run (probes, bases, sums) follows from the products and the seed, so that a run which finds its
first n products written down comes to the same state, bit for bit, without making them.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_leaves

from hessprobe.errors import UnsupportedError
from hessprobe.objective.base import BatchLoss, SecondOrderLosses
from hessprobe.objective.batches import digest

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
        gradient_seconds: what the gradient took that was made on the way, 0 where none was or nobody looked.
    """

    apply: Callable[[Tensor], Tensor]
    nbytes: int = 0
    forms: Callable[[Tensor], Tensor] | None = None
    add: Callable[[Tensor, Tensor, float], None] | None = None
    gradient_seconds: float = 0.0

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
        # Zeros that forward mode has not written out (a model that runs torch.func inside) take no memory.
        if torch._is_zerotensor(tensor):
            continue
        if tensor.is_nested and tensor.layout == torch.jagged:
            tensor = tensor.values()
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


# Bytes that torch's allocators align to.
_ALIGNED = 64


def leaf_at(theta: Tensor) -> Tensor:
    """Return ``theta`` as a leaf of a new graph, in the same memory: losses are evaluated at it and leave it alone."""
    return (theta.clone() if theta.is_inference() else aligned(theta).detach()).requires_grad_()


def aligned(vector: Tensor) -> Tensor:
    """Return the vector, or a copy where it begins elsewhere than allocations do, as rows of a block may.

    Kernels round differently there, and a product would depend on its place among others.
    """
    return vector.clone() if vector.data_ptr() % _ALIGNED else vector


def fresh_gradient(loss: LossFunction, theta: Tensor) -> Tensor:
    """Return the gradient of ``loss`` at ``theta`` (d,), evaluated now; zero where the loss does not depend on it."""
    with torch.enable_grad():
        leaf = leaf_at(theta)
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
        if len(V) == 1:
            return apply_one(V[0])[None]
        result = torch.empty_like(V)
        for row, vector in enumerate(V):
            result[row] = apply_one(vector)
        return result

    return apply


class _Given(torch.autograd.Function):
    """A number whose derivative in ``outputs`` is the vector that ``given`` holds when it is asked for.

    Of <outputs, vector> the graph would keep both: of a gradient its values, which no product reads.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, given: list[Tensor]) -> Tensor:
        ctx.given = given
        return outputs.new_zeros(())

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:  # scale is 1
        return ctx.given[0], None


# Gradients that are timed as they are made: the least of a few tells what one takes on a machine that is busy.
_TIMED = 8


class DoubleBackward:
    """Engine ``double_backward``; see the module."""

    name = "double_backward"
    is_exact = True
    keeps = True
    setup_seconds = 0.0

    def __init__(self) -> None:
        # Reading a graph takes as long as building that of a small network: batches of one shape keep the same.
        self._bytes: dict[tuple[Any, ...], int] = {}
        self._timed = 0

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product, its graph built here."""
        given: list[Tensor] = []
        tensors = loss.tensors() if isinstance(loss, BatchLoss) else []
        # A nested tensor has no shape.
        known = not any(tensor.is_nested for tensor in tensors)
        shape = tuple((tensor.shape, tensor.dtype) for tensor in tensors) if known else ()
        nbytes = self._bytes.get(shape) if shape else None
        # A look at the clock waits for the device: those at the first batches tell enough.
        timed = nbytes is None or self._timed < _TIMED
        self._timed += timed
        start = device_clock(theta.device) if timed else 0.0
        with torch.enable_grad():
            leaf = leaf_at(theta)
            gradient = _gradient(loss(leaf), leaf)
            seconds = device_clock(theta.device) - start if timed else 0.0
            require_differentiable(gradient)
            root = _Given.apply(gradient, given) if gradient.requires_grad else None  # type: ignore[no-untyped-call]  # untyped in torch
        if nbytes is None:
            nbytes = self._bytes[shape] = graph_bytes(gradient, ignore=[theta, leaf])

        def apply_one(vector: Tensor) -> Tensor:
            if root is None:
                return torch.zeros_like(vector)
            given[:] = [aligned(vector)]
            try:
                (column,) = torch.autograd.grad(root, leaf, retain_graph=True, materialize_grads=True)
            finally:
                given.clear()
            return column

        def add(V: Tensor, total: Tensor, weight: float) -> None:
            for vector, row in zip(V, total, strict=True):
                row.add_(apply_one(vector), alpha=weight)

        return Product(by_rows(apply_one), nbytes, add=add, gradient_seconds=seconds)

    def nodes(self, loss: LossFunction, theta: Tensor) -> int:
        """Return the number of operations in the graph of the gradient, 0 where that is constant."""
        with torch.enable_grad():
            leaf = leaf_at(theta)
            gradient = _gradient(loss(leaf), leaf)
            require_differentiable(gradient)
            return len(graph_nodes(gradient))


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)
    return gradient


def require_differentiable(gradient: Tensor) -> None:
    """Refuse a gradient whose graph ends in a node that cannot be differentiated.

    Such a node is cut off from the parameters, so that autograd would take the second derivative to be zero there
    without a word.

    Raises:
        UnsupportedError: part of the model can be differentiated once only.
    """
    waiting, seen = [gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().rpartition("::")[2] in ("Error", "NotImplemented", "DelayedError"):
            raise UnsupportedError("A part of the model can be differentiated only once.")
        waiting += [source for source, _ in node.next_functions]


class ForwardOverReverse:
    """Engine ``forward_over_reverse``; see the module."""

    name = "forward_over_reverse"
    is_exact = True
    keeps = False
    setup_seconds = 0.0

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product; the gradient is evaluated anew at each call."""

        def apply_one(vector: Tensor) -> Tensor:
            # Torch's own squared error has no forward derivative of its gradient, wherever a model calls it.
            with SecondOrderLosses():
                column: Tensor = jvp(grad(loss), (theta,), (vector,))[1]
            return column

        def apply(V: Tensor) -> Tensor:
            if V.shape[0] == 1:
                return apply_one(V[0])[None]
            columns: Tensor = vmap(apply_one)(V)
            return columns

        return Product(apply, batch_bytes(loss))


class Ledger(Protocol):
    """Where products and decisions are written down."""

    def product(self, key: str) -> Tensor | None:
        """Return what is written under ``key``, on the CPU, or None."""
        ...

    def keep_product(self, key: str, value: Tensor) -> None:
        """Write a product down."""
        ...

    def value(self, key: str) -> Any:
        """Return the plain value written under ``key``, or None."""
        ...

    def keep_value(self, key: str, value: Any) -> None:
        """Write a value that JSON can hold down."""
        ...


class _Replay:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.counts: dict[str, int] = {}

    def numbered(self, name: str) -> str:
        self.counts[name] = self.counts.get(name, -1) + 1
        return f"{name}-{self.counts[name]}"


@dataclass(frozen=True)
class _Named:
    """A ledger of one part of a run, in that of the whole."""

    whole: Ledger
    name: str

    def product(self, key: str) -> Tensor | None:
        return self.whole.product(f"{self.name}/{key}")

    def keep_product(self, key: str, value: Tensor) -> None:
        self.whole.keep_product(f"{self.name}/{key}", value)

    def value(self, key: str) -> Any:
        return self.whole.value(f"{self.name}/{key}")

    def keep_value(self, key: str, value: Any) -> None:
        self.whole.keep_value(f"{self.name}/{key}", value)


_active: ContextVar[_Replay | None] = ContextVar("replay", default=None)


@contextmanager
def replayed(ledger: Ledger) -> Iterator[None]:
    """Take from ``ledger`` inside the block what it holds, and write down what it lacks."""
    token = _active.set(_Replay(ledger))
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Name sources and decisions inside the block by it, from the first on: what came before it may be left out then.

    Args:
        name: of the part, no other has it.
    """
    replay = _active.get()
    if replay is None:
        yield
        return
    token = _active.set(_Replay(_Named(replay.ledger, name)))
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def unwritten() -> Iterator[None]:
    """Write nothing down inside the block: where the time of products is what is measured."""
    token = _active.set(None)
    try:
        yield
    finally:
        _active.reset(token)


def place(name: str) -> str:
    """Return a name for the next source of products, the same in every run that makes them in this order.

    It is empty where nothing is written down; products of such a source never are.
    """
    replay = _active.get()
    return "" if replay is None else replay.numbered(name)


def product(source: str, V: Tensor | Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
    """Return ``make()``, or what it gave in the run that is gone through again.

    Args:
        source: of ``place``, with what else tells its products apart.
        V: what is multiplied, or the points at which something is evaluated.
        make: makes the product, on the device of ``V``; its shape and dtype do not matter here.
    """
    replay = _active.get()
    if replay is None or not source:
        return make()
    hasher = hashlib.sha256()
    digest(list(V) if not isinstance(V, Tensor) else V, hasher)
    key = f"{source}:{hasher.hexdigest()[:24]}"
    known = replay.ledger.product(key)
    if known is not None:
        return aligned(known).to(V.device if isinstance(V, Tensor) else V[0].device)
    made = make()
    replay.ledger.keep_product(key, made)
    return made


def value(key: str, make: Callable[[], Any]) -> Any:
    """Return ``make()``, a decision that JSON can hold, or what it was in the run that is gone through again.

    Args:
        key: of the decision, no other has it.
        make: decides, perhaps by the time of the day.
    """
    replay = _active.get()
    if replay is None:
        return make()
    known = replay.ledger.value(key)
    if known is None:
        known = make()
        replay.ledger.keep_value(key, known)
    return known


def decided(key: str) -> bool:
    """Return whether the run that is gone through again came to this decision."""
    replay = _active.get()
    return replay is not None and replay.ledger.value(key) is not None
