"""Tracing a map that is linear in v into two programs: what depends on v, and everything else.

``trace_linear`` runs ``function(v, theta, *tensors)`` once and records the tensor operations. Operations that do not
depend on v form the *primal* program, run once a batch; the values that cross over are its *residuals*. The rest is
the *tangent* program, run once a product: the derivative of a gradient costs the arithmetic of 2 gradients there,
with nothing recomputed. This is what ``torch.func.linearize`` does for one input; here the recording is made once and
serves every batch of the same shapes, which takes the cost of recording out of a pass over many batches.

A recording fixes every Python-level decision that the model takes (branches on values, ``.item()``). The caller
compares the gradient that the primal program gives with a fresh one on every new batch, and does not use the
recording where they differ.

Rewrites of a tangent program that change no value beyond rounding: aliases removed, sums accumulated in place.

Curvature products of small networks are bound by memory traffic, not arithmetic; each rewrite removes a pass over an
activation-sized or parameter-sized tensor. The program must be run without autograd.
"""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from hessprobe.errors import UnsupportedError

_aten = torch.ops.aten

# Operations whose result is always new memory, never a view of an input.
_FRESH = {
    _aten.add.Tensor,
    _aten.add_.Tensor,
    _aten.mul.Tensor,
    _aten.mul_.Tensor,
    _aten.mul.Scalar,
    _aten.sub.Tensor,
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten.addmm_.default,
    _aten.baddbmm_.default,
    _aten.convolution.default,
    _aten.threshold_backward.default,
    _aten.gelu_backward.default,
}
_ACCUMULATING = {_aten.mm.default: _aten.addmm_.default, _aten.bmm.default: _aten.baddbmm_.default}
_IN_PLACE = {_aten.add.Tensor: _aten.add_.Tensor, _aten.mul.Tensor: _aten.mul_.Tensor}

_VIEWS = {
    operator.getitem,
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten.t.default,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.expand.default,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.default,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.unbind.int,
    _aten.diagonal.default,
    _aten.as_strided.default,
    _aten.alias.default,
    _aten.detach.default,
}

_Kind = tuple[torch.Size, torch.dtype, torch.device]


def simplify(graph: fx.Graph, *, accumulate: bool) -> None:
    """Rewrite ``graph`` in place; ``accumulate`` also reuses memory, which has no batching rule under vmap."""
    written = _written(graph)
    for node in list(graph.nodes):
        # A recorded view holds for the recorded strides; under vmap they differ, and reshape copies where it must.
        if node.target in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default
        same = _equal_to(node)
        if same is not None and not (written & {node, same}):
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    if accumulate:
        _fuse_biases(graph)
        _accumulate_products(graph)
        _reuse_memory(graph)


def accumulating(graph: fx.Graph) -> fx.Graph | None:
    """Return a program that adds weight times the result to a flat vector, or None where the result is not flat parts.

    The result of a product is the concatenation of one piece a parameter tensor. Added piece by piece to the sum over
    batches, by matrix products that accumulate there themselves where a piece is one, it is never formed. The inputs
    are the vector, total, weight, and the residuals; the result is total.

    Args:
        graph: simplified with ``accumulate``.
    """
    whole = _result(graph)
    if whole.target is not _aten.cat.default or len(whole.args) > 1:
        return None
    pieces: list[fx.Node] = list(whole.args[0])  # type: ignore[arg-type]  # a list of nodes
    kinds = [_kind(piece) for piece in pieces]
    if any(kind is None or len(kind[0]) != 1 for kind in kinds):
        return None
    result = fx.Graph()
    vector = next(iter(graph.nodes))
    copies = {vector: result.node_copy(vector)}
    total, weight = result.placeholder("total"), result.placeholder("weight")
    for node in graph.nodes:
        if node not in (vector, whole) and node.op != "output":
            copies[node] = result.node_copy(node, copies.__getitem__)
    start = 0
    for piece, kind in zip(pieces, kinds, strict=True):
        stop = start + kind[0].numel()  # type: ignore[index]  # checked above
        _add_piece(result, copies[piece], total, weight, slice(start, stop))
        start = stop
    result.output(total)
    result.eliminate_dead_code()
    return result


def _add_piece(graph: fx.Graph, piece: fx.Node, total: fx.Node, weight: fx.Node, where: slice) -> None:
    """Add weight * piece to a slice of total."""
    matrix = piece.args[0] if piece.target is _aten.reshape.default and not piece.users else None
    factors = _factors(matrix) if isinstance(matrix, fx.Node) else []
    if not factors or not isinstance(matrix, fx.Node):
        part = graph.call_function(_aten.slice.Tensor, (total, 0, where.start, where.stop))
        graph.call_function(_aten.add_.Tensor, (part, piece), {"alpha": weight})
        return
    first = matrix.args[0]
    with graph.inserting_before(matrix):
        part = graph.call_function(_aten.slice.Tensor, (total, 0, where.start, where.stop))
        part = graph.call_function(_aten.view.default, (part, list(matrix.meta["val"].shape)))
        for left, right in factors:
            graph.call_function(_aten.addmm_.default, (part, left, right), {"beta": 1, "alpha": weight})
    graph.erase_node(piece)
    graph.erase_node(matrix)
    if len(factors) == 2 and isinstance(first, fx.Node):
        graph.erase_node(first)


def _factors(matrix: fx.Node) -> list[tuple[Any, Any]]:
    """Return the factors of a matrix product, or of a sum of two, that nothing else reads; else nothing."""
    if len(matrix.users) != 1 or matrix.kwargs:
        return []
    if matrix.target is _aten.mm.default:
        return [(matrix.args[0], matrix.args[1])]
    first = matrix.args[0] if matrix.args else None
    once = isinstance(first, fx.Node) and first.target is _aten.mm.default and len(first.users) == 1
    if matrix.target is _aten.addmm_.default and once:
        return [(first.args[0], first.args[1]), (matrix.args[1], matrix.args[2])]  # type: ignore[union-attr]  # a node
    return []


def _result(graph: fx.Graph) -> fx.Node:
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(result, fx.Node):
        raise TypeError(f"graph must return one tensor; got {result!r}. Make one program an output.")
    return result


def _written(graph: fx.Graph) -> set[fx.Node]:
    """Return the values that a recorded operation writes into, with everything that shares their memory."""
    written = {
        node.args[0]
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable and node.args
    }
    shared: set[fx.Node] = {node for node in written if isinstance(node, fx.Node)}
    for node in [*reversed(list(graph.nodes)), *graph.nodes]:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source is None or node.target not in _VIEWS:
            continue
        if node in shared or source in shared:
            shared |= {node, source}
    return shared


def _equal_to(node: fx.Node) -> fx.Node | None:
    """Return a node of the same value that makes this one needless, or None."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if node.target in (_aten.expand.default, _aten._to_copy.default):
        # To the same shape, dtype and device.
        return source if _kind(source) is not None and _kind(source) == _kind(node) else None
    if node.target is _aten.t.default and source.target is _aten.t.default:
        return source.args[0]  # type: ignore[return-value]  # a node
    if node.target is _aten.add.Tensor and not node.kwargs:
        for term, other in (node.args, node.args[::-1]):
            # Read once: nothing can have written into the zeros before.
            zero = isinstance(other, fx.Node) and other.target is _aten.zeros_like.default and len(other.users) == 1
            if zero and isinstance(term, fx.Node) and _kind(term) == _kind(node):
                return term
    return None


def _kind(node: fx.Node) -> _Kind | None:
    value = node.meta.get("val")
    return (value.shape, value.dtype, value.device) if isinstance(value, torch.Tensor) else None


def _fuse_biases(graph: fx.Graph) -> None:
    """Turn a @ b + bias into one product that starts from the bias."""
    for node in list(graph.nodes):
        if node.target is not _aten.add.Tensor or node.kwargs:
            continue
        for product, bias in (node.args, node.args[::-1]):
            if not (isinstance(product, fx.Node) and isinstance(bias, fx.Node)):
                continue
            kind, other = _kind(product), _kind(bias)
            if product.target is not _aten.mm.default or len(product.users) > 1 or kind is None or other is None:
                continue
            if len(other[0]) == 1 and other[0][0] == kind[0][1] and other[1:] == kind[1:]:
                node.target, node.args = _aten.addmm.default, (bias, *product.args)
                graph.erase_node(product)
                break


def _accumulate_products(graph: fx.Graph) -> None:
    """Turn u + a @ b into a product that accumulates into u, where nothing else reads u or the product."""
    position = {node: number for number, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is not _aten.add.Tensor or node.kwargs:
            continue
        terms = [term for term in node.args if isinstance(term, fx.Node) and len(term.users) == 1]
        if len(terms) != 2 or terms[0] is terms[1] or not all(_kind(term) == _kind(node) for term in terms):
            continue
        # Of two products, the later one accumulates.
        for product in sorted(terms, key=position.__getitem__, reverse=True):
            base = terms[0] if product is terms[1] else terms[1]
            if product.target in _ACCUMULATING and base.target in _FRESH:
                node.target = _ACCUMULATING[product.target]
                node.args = (base, *product.args)
                graph.erase_node(product)
                break


def _reuse_memory(graph: fx.Graph) -> None:
    """Write sums and products over an operand that nothing else reads."""
    for node in graph.nodes:
        if node.target not in _IN_PLACE or node.kwargs:
            continue
        for place, operand in enumerate(node.args):
            if (
                isinstance(operand, fx.Node)
                and operand.target in _FRESH
                and len(operand.users) == 1
                and _kind(operand) is not None
                and _kind(operand) == _kind(node)
                and operand is not node.args[1 - place]
            ):
                node.args = (operand, node.args[1 - place])
                node.target = _IN_PLACE[node.target]
                break


LinearFunction = Callable[..., tuple[tuple[Tensor, ...], Tensor]]


@dataclass(frozen=True)
class LinearProgram:
    """A recorded map that is linear in v.

    Attributes:
        primal: maps (theta, *tensors) to (check, *residuals).
        tangents: one program an output of the map, from (v, *residuals) to that output alone, so that asking for a
            cheap output (J v) does not pay for a dear one (J^T H J v).
        batchable: the same programs without writing in place, for ``vmap`` over v.
        accumulate: from (v, total, weight, *residuals), adds weight times the first output to ``total`` (d,) in place;
            None where that output is not made of flat parts.
    """

    primal: Callable[..., tuple[Tensor, ...]]
    tangents: tuple[Callable[..., Tensor], ...]
    batchable: tuple[Callable[..., Tensor], ...]
    accumulate: Callable[..., Tensor] | None


def trace_linear(function: LinearFunction, theta: Tensor, tensors: Sequence[Tensor]) -> LinearProgram:
    """Record ``function(v, theta, *tensors) -> (outputs linear in v, check)``; ``check`` does not depend on v.

    Args:
        function: each of its outputs is linear in its first argument.
        theta: (d,) point at which to record.
        tensors: the batch; a recording holds for all batches with the same shapes and dtypes.

    Raises:
        UnsupportedError: the function cannot be recorded (it leaves torch, or its shapes depend on values).
    """
    try:
        with warnings.catch_warnings(), _compiled_eagerly(), _one_fake_mode():
            # Recording real tensors warns about constants it lifts; they are buffers and frozen parameters here.
            warnings.simplefilter("ignore")
            recorded = make_fx(_reading_values(function))(torch.ones_like(theta), theta, *tensors)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise UnsupportedError(f"The product could not be recorded: {str(error).splitlines()[0]}") from error
    varying = _varying(recorded.graph)
    _require_residuals_untouched(varying)
    linear, check = next(node for node in recorded.graph.nodes if node.op == "output").args[0]
    boundary = [node for node in recorded.graph.nodes if _crosses(node, varying, linear)]
    primal = _module(recorded, _primal(recorded.graph, varying, [check, *boundary]))

    def tangents(accumulate: bool) -> list[fx.Graph]:
        graphs = [_tangent(recorded.graph, varying, boundary, output) for output in linear]
        for graph in graphs:
            simplify(graph, accumulate=accumulate)
        return graphs

    single, block = tangents(True), tangents(False)
    added = accumulating(single[0])
    return LinearProgram(
        primal=primal,
        tangents=tuple(_module(recorded, graph) for graph in single),
        batchable=tuple(_module(recorded, graph) for graph in block),
        accumulate=None if added is None else _module(recorded, added),
    )


class _ReadValues(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is untyped
    """Lets a model read a number from a tensor (is this mask all ones?) while it is recorded.

    What the model decides on it is part of the recording, as all of Python is; the check of every batch's gradient
    finds a batch that decides otherwise.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            with disable_proxy_modes_tracing():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _reading_values(function: LinearFunction) -> LinearFunction:
    def reading(*tensors: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        with _ReadValues():  # type: ignore[no-untyped-call]  # torch's class is untyped
            return function(*tensors)

    return reading


def _compiled_eagerly() -> AbstractContextManager[object]:
    # What was compiled runs eagerly, but by default torch refuses to record it even so.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    from torch._dynamo import config

    return config.patch(error_on_nested_fx_trace=False)  # type: ignore[no-any-return]  # added by torch


def _one_fake_mode() -> AbstractContextManager[object]:
    # Recording real tensors notes the shape of each as a fake one, and makes a new mode for each unless there is one
    # in the context: that was 40 % of the time of recording a ResNet-20.
    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


def _module(recorded: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(recorded, graph)


def _varying(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on the first placeholder, v, itself included."""
    varying = {next(iter(graph.nodes))}
    for node in graph.nodes:
        if node.op != "output" and any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    return varying


def _require_residuals_untouched(varying: set[fx.Node]) -> None:
    """Refuse a recording whose tangent writes into a value that it shares with other products.

    Raises:
        UnsupportedError: it does.
    """
    for node in varying:
        mutates = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if mutates and isinstance(node.args[0], fx.Node) and node.args[0] not in varying:
            raise UnsupportedError(f"The product could not be recorded: {node.target} writes into a kept value.")


def _crosses(node: fx.Node, varying: set[fx.Node], linear: Sequence[fx.Node]) -> bool:
    """True for a value that does not depend on v and that something which does, or an output, reads."""
    if node in varying or node.op == "output":
        return False
    return node in linear or any(user in varying for user in node.users)


def _primal(graph: fx.Graph, varying: set[fx.Node], results: Sequence[fx.Node]) -> fx.Graph:
    primal = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "output" and node not in varying:
            copies[node] = primal.node_copy(node, copies.__getitem__)
    primal.output(tuple(copies[node] for node in results))
    return primal


def _tangent(graph: fx.Graph, varying: set[fx.Node], boundary: Sequence[fx.Node], output: fx.Node) -> fx.Graph:
    tangent = fx.Graph()
    vector = next(iter(graph.nodes))
    copies = {vector: tangent.node_copy(vector)}
    for number, node in enumerate(boundary):
        copies[node] = tangent.placeholder(f"residual_{number}")
        copies[node].meta = dict(node.meta)
    for node in graph.nodes:
        if node in varying and node is not vector:
            copies[node] = tangent.node_copy(node, copies.__getitem__)
    tangent.output(copies[output])
    tangent.eliminate_dead_code()
    return tangent
