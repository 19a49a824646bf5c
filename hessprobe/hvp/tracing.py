"""Tracing a map that is linear in v into two programs: what depends on v, and everything else.

``trace_linear`` runs ``function(v, theta, *tensors)`` once and records the tensor operations. Operations that do not
depend on v form the *primal* program, run once a batch; the values that cross over are its *residuals*. The rest is
the *tangent* program, run once a product: the derivative of a gradient costs the arithmetic of 2 gradients there,
with nothing recomputed. This is what ``torch.func.linearize`` does for one input; here the recording is made once and
serves every batch of the same shapes, which takes the cost of recording out of a pass over many batches.

A recording fixes every Python-level decision that the model takes (branches on values, ``.item()``). The caller
compares the gradient that the primal program gives with a fresh one on every new batch, and does not use the
recording where they differ.
"""

from __future__ import annotations

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
from hessprobe.hvp.simplify import accumulating, simplify

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
