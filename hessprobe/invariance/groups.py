"""Which tensors of a network share a scale, or an order of their units: classes of values, and who makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hessprobe.invariance.trace import Call, Graph, Value, is_elementwise, is_homogeneous

_WEIGHTED = {"linear": -1, "conv1d": 1, "conv2d": 1, "conv3d": 1}
_NORMS = {"batch_norm": 1, "layer_norm": -1, "rms_norm": -1, "group_norm": 1, "instance_norm": 1}
_SUMS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__isub__"})
_ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})

# Positions of the weight and the bias among the arguments.
_PLACES = {"batch_norm": (3, 4), "instance_norm": (3, 4), "rms_norm": (2, 99)}
# Reasons that go without saying: nothing is left out that could have been.
_OUTPUT = "the outputs of the model rest on it"
_MIXED = "attention mixes it (see qk-rescaling and vo-rescaling)"


@dataclass(frozen=True)
class Dense:
    """A call that computes x W + b: which argument is what, and along which axis of W its outputs lie.

    Attributes:
        input, weight, bias: the arguments.
        out_axis, in_axis: of the weight.
    """

    input: Any
    weight: Any
    bias: Any
    out_axis: int = 0
    in_axis: int = 1

    @classmethod
    def of(cls, call: Call) -> Dense:
        """Return the parts of a linear layer, a convolution, or ``addmm(b, x, W)`` (``transformers.Conv1D``)."""
        if call.name == "addmm":
            return cls(
                call.argument(1, "mat1"), call.argument(2, "mat2"), call.argument(0, "input"), out_axis=1, in_axis=0
            )
        return cls(call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias"))


def is_dense(call: Call) -> bool:
    """Return whether a call is x W + b for all units together; ``addmm`` with factors is not."""
    return call.name == "linear" or (call.name == "addmm" and not {"alpha", "beta"} & set(call.kwargs))


@dataclass(frozen=True)
class Part:
    """One tensor that follows the factor of a class.

    Attributes:
        name: of the tensor.
        power: see ``Touch``.
        axis: of its units, None where it has none.
        value: where the labels of the units are read.
        channel: axis of the units in that value.
        role: ``"makes"``, ``"takes"`` or ``"norm"`` (a statistic or the eps of a layer that takes it).
    """

    name: str
    power: int
    axis: int | None
    value: Value
    channel: int
    role: str


@dataclass
class Group:
    """Values with one common scale (or order), and the tensors that follow it.

    Attributes:
        values: in the order of the run.
        parts: the tensors.
        fixed: why the scale must stay, empty where it need not.
        uniform: why units cannot have factors of their own, empty where they can.
    """

    values: list[Value] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    uniform: list[str] = field(default_factory=list)

    @property
    def made(self) -> bool:
        """Whether parameters make values of the group."""
        return any(part.role == "makes" for part in self.parts)

    @property
    def taken(self) -> bool:
        """Whether parameters, or a layer that normalizes, take values of the group."""
        return any(part.role != "makes" for part in self.parts)

    @property
    def obstacles(self) -> list[str]:
        """Why the scale must stay, without the reasons that every network has: its outputs, mixed values."""
        return [reason for reason in self.fixed if reason not in (_OUTPUT, _MIXED)]


class Grouping:
    """Union-find over the values of a run.

    Args:
        graph: the run.
        module: the model, for the eps of its layers.
        order: group what shares the order of its units instead of what shares a scale.
    """

    def __init__(self, graph: Graph, module: nn.Module, *, order: bool = False) -> None:
        self._graph, self._module, self._order = graph, module, order
        self._parent: dict[Value, Value] = {}
        self._notes: list[tuple[Value, Callable[[Group], None]]] = []
        self._norm_runs: dict[str, int] = {}
        for call in graph.calls:
            if call.name in _NORMS:
                self._norm_runs[call.scope] = self._norm_runs.get(call.scope, 0) + 1
        for call in graph.calls:
            self._visit(call)
        for value in graph.results:
            self._fix(value, _OUTPUT)

    def groups(self) -> list[Group]:
        """Return the groups in the order of their first values."""
        found: dict[Value, Group] = {}
        for value in sorted(self._graph.shapes):
            found.setdefault(self._root(value), Group()).values.append(value)
        for value, note in self._notes:
            note(found[self._root(value)])
        return list(found.values())

    def _root(self, value: Value) -> Value:
        while self._parent.get(value, value) != value:
            value = self._parent[value]
        return value

    def _join(self, first: Value, second: Value) -> None:
        one, other = self._root(first), self._root(second)
        if one != other:
            self._parent[max(one, other)] = min(one, other)

    def _fix(self, value: Value, reason: str) -> None:
        self._notes.append((value, lambda group: group.fixed.append(reason)))

    def _whole(self, value: Value, reason: str) -> None:
        self._notes.append((value, lambda group: group.uniform.append(reason)))

    def _part(self, name: str, power: int, axis: int | None, value: Value, channel: int, role: str) -> None:
        part = Part(name, power, axis, value, channel, role)
        self._notes.append((value, lambda group: group.parts.append(part)))

    def _fix_all(self, call: Call, reason: str) -> None:
        for value in (*call.values, *((call.index, place) for place in range(len(call.outputs)))):
            self._fix(value, reason)

    def _visit(self, call: Call) -> None:
        shared = [name for name in call.parameters if self._graph.uses[name] > 1]
        if shared:
            # As a part, so that the group is seen and what was left out can be said.
            self._part(shared[0], 1, None, (call.index, 0), -1, "makes")
            self._fix_all(call, f"{shared[0]} is used more than once")
        elif call.name in _WEIGHTED or is_dense(call):
            self._weighted(call)
        elif call.name == "embedding":
            self._embedding(call)
        elif call.name in _NORMS:
            self._norm(call)
        elif call.name in _SUMS:
            self._sum(call)
        elif call.name in _ATTENTION:
            self._fix_all(call, _MIXED)
        else:
            self._other(call)

    def _weighted(self, call: Call) -> None:
        layer = Dense.of(call)
        source, weight, bias = call.source(layer.input), call.source(layer.weight), layer.bias
        out, channel = (call.index, 0), _WEIGHTED.get(call.name, -1)
        if not isinstance(weight, str) or (bias is not None and not isinstance(call.source(bias), str)):
            self._fix_all(call, f"the weight of {call.described} is computed, not a parameter")
            return
        self._part(weight, 1, layer.out_axis, out, channel, "makes")
        if bias is not None:
            self._part(str(call.source(bias)), 1, 0, out, channel, "makes")
        if isinstance(source, tuple):
            self._part(weight, -1, layer.in_axis, source, channel, "takes")
            groups = call.argument(6, "groups") or 1
            if call.name in _WEIGHTED and call.name != "linear" and groups != 1:
                self._whole(source, f"{call.described} is a grouped convolution")

    def _embedding(self, call: Call) -> None:
        weight = call.source(call.argument(1, "weight"))
        if isinstance(weight, str):
            self._part(weight, 1, 1, (call.index, 0), -1, "makes")
        else:
            self._fix_all(call, f"the weight of {call.described} is computed, not a parameter")

    def _norm(self, call: Call) -> None:
        source, out, channel = call.source(call.argument(0, "input")), (call.index, 0), _NORMS[call.name]
        places = _PLACES.get(call.name, (2, 3))
        affine = [call.argument(place, name) for place, name in zip(places, ("weight", "bias"), strict=True)]
        names = [str(call.source(tensor)) for tensor in affine if isinstance(tensor, Tensor)]
        flat = all(not isinstance(tensor, Tensor) or tensor.ndim == 1 for tensor in affine)
        axis = 0 if flat else None
        if self._order:
            self._norm_order(call, source, names if flat else None)
            return
        for name in names:
            self._part(name, 1, axis, out, channel, "makes")
        if not names:
            self._fix(out, f"{call.described} has no weight")
        if not flat:
            self._whole(out, f"{call.described} normalizes over several axes")
        if isinstance(source, tuple):
            self._norm_input(call, source)

    def _norm_order(self, call: Call, source: Any, names: list[str] | None) -> None:
        if call.name not in ("batch_norm", "layer_norm", "rms_norm") or names is None or not isinstance(source, tuple):
            self._fix_all(call, f"{call.described} treats its units in groups")
            return
        self._join(source, (call.index, 0))
        running = [f"{call.scope}.running_{which}" for which in ("mean", "var")] if call.name == "batch_norm" else []
        for name in (*names, *running):
            self._part(name, 1, 0, (call.index, 0), _NORMS[call.name], "norm")

    def _norm_input(self, call: Call, source: Value) -> None:
        layer = self._module.get_submodule(call.scope)
        if not isinstance(getattr(layer, "eps", None), float) or layer.eps != call.kwargs.get("eps", layer.eps):
            self._fix(source, f"the eps of {call.described} cannot be changed along")
            return
        if self._norm_runs[call.scope] > 1:
            self._fix(source, f"{call.described} runs more than once")
            return
        for name, power in (("eps", 2), ("running_mean", 1), ("running_var", 2)):
            if name == "eps" or call.name in ("batch_norm", "instance_norm"):
                self._part(f"{call.scope}.{name}", power, None, source, 1, "norm")

    def _sum(self, call: Call) -> None:
        out = (call.index, 0)
        for position, argument in enumerate(call.args[:2]):
            source = call.source(argument)
            if isinstance(source, tuple):
                self._join(source, out)
            elif isinstance(source, str):
                self._part(source, 1, None, out, -1, "makes")
                self._whole(out, f"{source} is added to it")
            elif isinstance(argument, Tensor) or argument != 0 or position == 0:
                self._fix(out, f"{call.described} adds a constant")

    def _other(self, call: Call) -> None:
        if call.name in ("cat", "concat", "stack", "concatenate"):
            self._joined(call)
            return
        values = list(dict.fromkeys(call.values))
        if len(values) != 1:
            self._fix_all(call, f"{call.described} takes several tensors" if values else _origin(call))
            return
        (value,) = values
        outs = [(call.index, place) for place, output in enumerate(call.outputs) if output.is_floating_point()]
        if is_homogeneous(call, value) or (self._order and not call.parameters and is_elementwise(call, value)):
            for out in outs:
                self._join(value, out)
        else:
            kind = "neither elementwise nor positively homogeneous" if self._order else "not positively homogeneous"
            self._fix_all(call, f"{call.described} is {kind}")

    def _joined(self, call: Call) -> None:
        out = (call.index, 0)
        for value in call.values:
            self._join(value, out)
        self._whole(out, f"{call.described} joins several layers")
        if call.parameters or len(call.values) < len(call.args[0]):
            self._fix(out, f"{call.described} joins in a constant")


def _origin(call: Call) -> str:
    name = next(iter(call.parameters), None)
    return "the inputs of the model are fixed" if name is None else f"{name} passes through {call.described}"
