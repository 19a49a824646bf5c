"""Rewrites of a tangent program that change no value beyond rounding: aliases removed, sums accumulated in place.

Curvature products of small networks are bound by memory traffic, not arithmetic; each rewrite removes a pass over an
activation-sized tensor. The program must be run without autograd.
"""

from __future__ import annotations

import torch
from torch import fx

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
    _aten.addmm_.default,
    _aten.baddbmm_.default,
    _aten.convolution.default,
    _aten.threshold_backward.default,
    _aten.gelu_backward.default,
}
_ACCUMULATING = {_aten.mm.default: _aten.addmm_.default, _aten.bmm.default: _aten.baddbmm_.default}
_IN_PLACE = {_aten.add.Tensor: _aten.add_.Tensor, _aten.mul.Tensor: _aten.mul_.Tensor}


def simplify(graph: fx.Graph, *, accumulate: bool) -> None:
    """Rewrite ``graph`` in place; ``accumulate`` also reuses memory, which has no batching rule under vmap."""
    for node in list(graph.nodes):
        # A recorded view holds for the recorded strides; under vmap they differ, and reshape copies where it must.
        if node.target in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default
        elif _is_alias(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    if accumulate:
        _accumulate_products(graph)
        _reuse_memory(graph)


def _is_alias(node: fx.Node) -> bool:
    """True for an expansion to the same shape and for a conversion to the same dtype on the same device."""
    if node.target not in (_aten.expand.default, _aten._to_copy.default):
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and _kind(source) is not None and _kind(source) == _kind(node)


def _kind(node: fx.Node) -> tuple[torch.Size, torch.dtype, torch.device] | None:
    value = node.meta.get("val")
    return (value.shape, value.dtype, value.device) if isinstance(value, torch.Tensor) else None


def _accumulate_products(graph: fx.Graph) -> None:
    """Turn a @ b + c @ d into one product that accumulates into the other."""
    position = {node: number for number, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is not _aten.add.Tensor or node.kwargs:
            continue
        pair = [term for term in node.args if isinstance(term, fx.Node) and len(term.users) == 1]
        if len(pair) != 2 or pair[0].target is not pair[1].target or pair[0].target not in _ACCUMULATING:
            continue
        if pair[0] is pair[1] or _kind(pair[0]) != _kind(pair[1]):
            continue
        first, second = sorted(pair, key=position.__getitem__)
        with graph.inserting_before(node):
            total = graph.call_function(_ACCUMULATING[first.target], (first, *second.args))  # type: ignore[index]
        total.meta = dict(node.meta)
        node.replace_all_uses_with(total)
        graph.erase_node(node)
        graph.erase_node(second)
        position[total] = position[node]


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
