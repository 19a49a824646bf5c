"""Groups of parameters whose diagonal blocks are measured: modules, layers, attention heads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.errors import UnsupportedError
from hessprobe.objective.base import Objective
from hessprobe.operators import BlockDiagonal, Grouped, LinearOperator

# Up to the first number of a dotted name: transformer.h.3, layer1.0.
_NUMBERED = re.compile(r"^(?:.*?\.)??\d+(?=\.)")

# What modules call the number of their heads, and the projections to and from them.
_COUNTS = ("n_heads", "num_heads", "num_attention_heads", "n_head", "heads")
_FUSED = ("qkv", "in_proj", "c_attn", "query_key_value", "Wqkv")
# Whose rows go by head first, and by query, key and value within it: GPT-NeoX, BLOOM, Falcon, Megatron.
_BY_HEAD = "query_key_value"
_SEPARATE = (
    *("q_proj", "k_proj", "v_proj", "query", "key", "value", "q_lin", "k_lin", "v_lin"),
    *("to_q", "to_k", "to_v", "q", "k", "v"),
)
_OUTPUT = ("out", "out_proj", "o_proj", "c_proj", "proj", "out_lin", "o", "dense")


def by_group(A: LinearOperator, risk: Objective, group: str) -> LinearOperator:
    """Return A with groups of parameters as its blocks, in an order in which each is contiguous.

    Args:
        A: over the parameters of ``risk``.
        risk: names them.
        group: ``"module"``: the parameters of one module; ``"layer"``: those with the same dotted name up to its first
            number (a block of a transformer, a residual block, an entry of ``nn.Sequential``), of the module where
            there is none; ``"head"``: rows of queries, keys and values and columns of the output of each attention
            head, and by module what belongs to no head.

    Raises:
        UnsupportedError: ``"head"`` for a model in which none is recognised.
    """
    # The block diagonal has the groups as its blocks already.
    if isinstance(A, BlockDiagonal):
        return A
    labels, names = _labels(risk, group)
    order = torch.argsort(labels, stable=True)
    edges = [0, *torch.bincount(labels, minlength=len(names)).cumsum(0).tolist()]
    blocks = {name: slice(edges[i], edges[i + 1]) for i, name in enumerate(names) if edges[i] < edges[i + 1]}
    return Grouped(A, order, blocks)


def _labels(risk: Objective, group: str) -> tuple[Tensor, list[str]]:
    """Return the group of each entry of theta (d,), and the names of the groups in the order of their first entry."""
    named = [(_module_of(name) if group != "layer" else _layer_of(name)) for name in risk.layout.names]
    names = list(dict.fromkeys(named))
    labels = torch.empty(risk.dim, dtype=torch.long)
    for own, where in zip(named, risk.layout.slices.values(), strict=True):
        labels[where] = names.index(own)
    if group == "head":
        _mark_heads(risk, labels, names)
    kept = [int(i) for i in dict.fromkeys(labels.tolist())]
    places = torch.empty(len(names), dtype=torch.long)
    places[kept] = torch.arange(len(kept))
    return places[labels], [names[i] for i in kept]


def _module_of(name: str) -> str:
    return name.rpartition(".")[0] or name


def _layer_of(name: str) -> str:
    found = _NUMBERED.match(name)
    return found.group() if found else _module_of(name)


def _mark_heads(risk: Objective, labels: Tensor, names: list[str]) -> None:
    module = getattr(risk, "module", None)
    found = False
    for prefix, part in module.named_modules() if isinstance(module, nn.Module) else ():
        count = _head_count(part)
        if count is None:
            continue
        for name, heads in _projections(prefix, part, count):
            if name not in risk.layout.names:
                continue
            where = risk.layout.slices[name]
            own = labels[where].view(heads.shape)
            for head in range(count):
                title = f"{prefix}.head{head}" if prefix else f"head{head}"
                if title not in names:
                    names.append(title)
                own[heads == head] = names.index(title)
            found = True
    if not found:
        raise UnsupportedError(
            f"group='head' needs attention whose heads are recognised; got {type(module).__name__}, without a module "
            "that has a number of heads and projections of known names. Group by module or layer."
        )


def _head_count(part: nn.Module) -> int | None:
    for holder in (part, getattr(part, "config", None)):
        for name in _COUNTS:
            count = getattr(holder, name, None)
            if isinstance(count, int) and not isinstance(count, bool) and count > 0:
                return count
    return None


def _projections(prefix: str, part: nn.Module, count: int) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter that has entries of heads, and the head of each entry, -1 for none, in its shape."""
    dot = f"{prefix}." if prefix else ""
    if isinstance(part, nn.MultiheadAttention):
        for name, own in part.named_parameters(recurse=False):
            parts = 3 if name.startswith("in_proj") else 1
            if name.startswith(("in_proj", "q_proj", "k_proj", "v_proj")):
                yield dot + name, _along(own, 0, parts, count)
        yield f"{dot}out_proj.weight", _along(part.out_proj.weight, 1, 1, count)
        return
    children = dict(part.named_children())
    rows = [(name, 3) for name in _FUSED if name in children] + [(name, 1) for name in _SEPARATE if name in children]
    widths: list[Any] = []
    taken = _taken(children)
    for name, parts in rows:
        weight, bias = getattr(children[name], "weight", None), getattr(children[name], "bias", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        axis = _output_axis(children[name])
        size = weight.shape[axis] // parts
        widths = widths or [size]
        # Keys and values that several queries share belong to no head alone.
        if weight.shape[axis] % (parts * count) or size != widths[0]:
            continue
        if parts > 1 and taken and size not in taken:
            continue
        turns = 1 if name == _BY_HEAD else parts
        yield f"{dot}{name}.weight", _along(weight, axis, turns, count)
        if isinstance(bias, Tensor):
            yield f"{dot}{name}.bias", _along(bias, 0, turns, count)
    for name in _OUTPUT if widths else ():
        weight = getattr(children.get(name), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            axis = 1 - _output_axis(children[name])
            if weight.shape[axis] == widths[0]:
                yield f"{dot}{name}.weight", _along(weight, axis, 1, count)


def _taken(children: dict[str, nn.Module]) -> set[int]:
    """Return how wide the inputs of the output projections are: as all heads together."""
    found = {}
    for name in _OUTPUT:
        weight = getattr(children.get(name), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            found[name] = weight.shape[1 - _output_axis(children[name])]
    return set(found.values())


def _output_axis(part: nn.Module) -> int:
    # Conv1D of transformers holds the transpose of what a linear layer does.
    return 1 if type(part).__name__ == "Conv1D" else 0


def _along(weight: Tensor, axis: int, parts: int, count: int) -> Tensor:
    """Return the head of each entry: ``parts`` times ``count`` equal stretches along an axis."""
    size = weight.shape[axis]
    heads = torch.arange(size) % (size // parts) // (size // parts // count)
    shape = [1] * weight.ndim
    shape[axis] = size
    return heads.view(shape).expand(weight.shape)
