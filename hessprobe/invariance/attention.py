"""Query-key and value-output rescaling of attention: where the rows and columns of each head lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe.invariance.actions import Site, Touch
from hessprobe.invariance.groups import Dense, is_dense
from hessprobe.invariance.trace import Call, Graph, Value


@dataclass(frozen=True)
class Skip:
    """A place where a transform might have acted, and why it does not.

    Attributes:
        kind: of the transform.
        where: layers in words.
        reason: why.
    """

    kind: str
    where: str
    reason: str


class _NotFound(Exception):
    """A projection of attention cannot be found; the message says why."""


@dataclass(frozen=True)
class _Rows:
    """The projection behind one argument of attention: weight, bias, and the head of each row (-1 for none)."""

    weight: str
    bias: str | None
    heads: Tensor
    axis: int

    def touches(self, power: int) -> list[Touch]:
        bias = [] if self.bias is None else [Touch(self.bias, power, 0, self.heads)]
        return [Touch(self.weight, power, self.axis, self.heads), *bias]


def attention_sites(graph: Graph) -> tuple[list[Site], list[Skip]]:
    """Return where queries and keys, or values and outputs, can be rescaled, and where not."""
    sites: list[Site] = []
    skips: list[Skip] = []
    for call in graph.calls:
        if call.name == "scaled_dot_product_attention":
            for kind, find in (("qk-rescaling", _query_key), ("vo-rescaling", _value_output)):
                try:
                    sites.append(find(graph, call))
                except _NotFound as error:
                    skips.append(Skip(kind, call.described, str(error)))
        elif call.name == "multi_head_attention_forward":
            _packed(graph, call, sites, skips)
    return sites, skips


def _query_key(graph: Graph, call: Call) -> Site:
    query = _projection(graph, call, call.argument(0, "query"))
    key = _projection(graph, call, call.argument(1, "key"))
    if query.weight == key.weight and bool(((query.heads >= 0) & (key.heads >= 0)).any()):
        raise _NotFound("queries and keys are the same rows")
    return _site("qk-rescaling", call.scope, [*query.touches(1), *key.touches(-1)])


def _value_output(graph: Graph, call: Call) -> Site:
    rows = _projection(graph, call, call.argument(2, "value"))
    weight, axis, heads = _output(graph, call)
    if int(heads.max()) != int(rows.heads.max()):
        raise _NotFound("values and outputs have different numbers of heads")
    return _site("vo-rescaling", call.scope, [*rows.touches(1), Touch(weight, -1, axis, heads)])


def _site(kind: str, scope: str, touches: Sequence[Touch]) -> Site:
    heads = 1 + max(int(touch.labels.max()) for touch in touches if touch.labels is not None)
    if len({int(touch.labels.max()) for touch in touches if touch.labels is not None}) > 1:
        raise _NotFound("queries and keys have different numbers of heads")
    return Site(kind, scope or "the model", tuple(touches), heads)


def _projection(graph: Graph, attention: Call, argument: Any) -> _Rows:
    """Follow an argument of attention back to the linear layer that makes it, then send row numbers forward."""
    value = attention.source(argument)
    chain: list[tuple[Call, int]] = []
    while isinstance(value, tuple) and not is_dense(graph.made_by(value)):
        call = graph.made_by(value)
        # A cache of keys and values that holds nothing yet is joined to them.
        made = {each for each in call.values if graph.shapes[each].numel() > 0}
        if len(made) != 1 or call.parameters:
            raise _NotFound(f"{call.described} stands between its projection and attention")
        chain.append((call, value[1]))
        (value,) = made
    if not isinstance(value, tuple):
        raise _NotFound("no linear layer makes its queries, keys and values")
    linear = graph.made_by(value)
    layer = Dense.of(linear)
    weight, bias = linear.source(layer.weight), linear.source(layer.bias)
    if not isinstance(weight, str) or any(graph.uses[name] > 1 for name in linear.parameters):
        raise _NotFound(f"the weight of {linear.described} is shared or computed")
    numbers = _numbers(linear.outputs[0])
    for call, place in reversed(chain):
        numbers = _sent(call, value, numbers, place)
        value = (call.index, place)
    heads = _heads_of_rows(numbers, linear.outputs[0].shape[-1])
    return _Rows(weight, bias if isinstance(bias, str) else None, heads, layer.out_axis)


def _heads_of_rows(numbers: Tensor, count: int) -> Tensor:
    heads = torch.full((count,), -1, dtype=torch.long, device=numbers.device)
    parts = numbers.unbind(-3) if numbers.ndim >= 4 else [numbers]
    for head, part in enumerate(parts):
        rows = torch.unique(part).long() - 1
        if bool((heads[rows] >= 0).any()):
            # Rows serve several heads: all of the layer gets one factor.
            return torch.where(torch.isin(torch.arange(count).to(rows), torch.unique(numbers).long() - 1), 0, -1)
        heads[rows] = head
    return heads


def _output(graph: Graph, attention: Call) -> tuple[str, int, Tensor]:
    """Follow the result of attention to the linear layer that takes it; head numbers arrive at its columns."""
    value: Value = (attention.index, 0)
    result = attention.outputs[0]
    shape = [1] * result.ndim
    if result.ndim >= 4:
        shape[-3] = -1
    count = result.shape[-3] if result.ndim >= 4 else 1
    numbers = torch.arange(1, count + 1, dtype=result.dtype, device=result.device).view(shape).expand(result.shape)
    while True:
        users = list(graph.users(value))
        if len(users) != 1 or value in graph.results:
            raise _NotFound("its result goes to several places")
        call = users[0]
        if is_dense(call):
            break
        if len(set(call.values)) != 1 or call.parameters:
            raise _NotFound(f"{call.described} stands between attention and its output layer")
        numbers = _sent(call, value, numbers, 0)
        value = (call.index, 0)
    layer = Dense.of(call)
    weight = call.source(layer.weight)
    rows = numbers.reshape(-1, numbers.shape[-1])
    if not isinstance(weight, str) or graph.uses[weight] > 1 or not bool((rows == rows[0]).all()):
        raise _NotFound(f"the columns of {call.described} do not belong to heads")
    return weight, layer.in_axis, rows[0].long() - 1


def _numbers(like: Tensor) -> Tensor:
    return torch.arange(1, like.shape[-1] + 1, dtype=like.dtype, device=like.device).expand(like.shape).clone()


def _sent(call: Call, value: Value, numbers: Tensor, place: int) -> Tensor:
    sent = call.replay_one({value: numbers}, place)
    if sent is None or not torch.isin(sent, torch.unique(numbers)).all():
        raise _NotFound(f"{call.described} stands between attention and its layers")
    return sent


def _packed(graph: Graph, call: Call, sites: list[Site], skips: list[Skip]) -> None:
    """Add the sites of ``nn.MultiheadAttention``, which is one call."""
    heads, width = int(call.argument(4, "num_heads")), int(call.argument(3, "embed_dim_to_check"))
    by_head = torch.arange(width) // (width // heads)
    names = [call.source(call.argument(place, name)) for place, name in _PACKED]
    in_weight, in_bias, bias_k, out_weight = (name if isinstance(name, str) else None for name in names)
    separate = [call.source(call.kwargs.get(f"{which}_proj_weight")) for which in "qkv"]
    shared = next((name for name in call.parameters if graph.uses[name] > 1), None)
    reason = f"{shared} is used more than once" if shared else "it adds a key and a value of its own" if bias_k else ""
    if reason or out_weight is None or (in_weight is None and not all(isinstance(one, str) for one in separate)):
        found = reason or "its projections are not parameters"
        skips.extend(Skip(kind, call.described, found) for kind in ("qk-rescaling", "vo-rescaling"))
        return

    def rows(which: int, power: int) -> list[Touch]:
        packed = torch.full((3 * width,), -1, dtype=torch.long)
        packed[which * width : (which + 1) * width] = by_head
        one = Touch(in_weight, power, 0, packed) if in_weight else Touch(str(separate[which]), power, 0, by_head)
        return [one, *([Touch(in_bias, power, 0, packed)] if in_bias else [])]

    sites.append(Site("qk-rescaling", call.scope or "the model", (*rows(0, 1), *rows(1, -1)), heads))
    output = Touch(out_weight, -1, 1, by_head)
    sites.append(Site("vo-rescaling", call.scope or "the model", (*rows(2, 1), output), heads))


_PACKED = ((5, "in_proj_weight"), (6, "in_proj_bias"), (7, "bias_k"), (11, "out_proj_weight"))
