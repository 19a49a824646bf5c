"""One run of a model on real inputs, recorded as a graph of the functions that were called.

How a recorded function behaves, found by calling it: positively homogeneous, elementwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

# A tensor that was computed: the call that made it, and its place among the results of that call.
Value = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a torch function.

    Attributes:
        index: position in the run.
        name: of the function, e.g. ``"linear"``.
        function: what was called.
        args, kwargs: as they were given.
        sources: of the tensors among the arguments, by ``id``: the value, or the name of the parameter.
        outputs: the tensors that came out.
        scope: dotted name of the innermost module that was running, "" for the model itself.
        kind: class name of that module.
        leaf: whether that module has no submodules, so that it stands for the call.
    """

    index: int
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: dict[int, Value | str]
    outputs: tuple[Tensor, ...]
    scope: str
    kind: str
    leaf: bool

    @property
    def values(self) -> list[Value]:
        """The computed tensors among the arguments."""
        return [source for source in self.sources.values() if not isinstance(source, str)]

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters among the arguments."""
        return [source for source in self.sources.values() if isinstance(source, str)]

    @property
    def described(self) -> str:
        """The call in words: ``"GELU mlp.1"``, or ``"gelu in blocks.0"``."""
        if self.leaf and self.scope:
            return f"{self.kind} {self.scope}"
        return f"{self.name} in {self.scope}" if self.scope else self.name

    def argument(self, position: int, name: str) -> Any:
        """Return one argument, given by position or by name; None where it was left out."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name)

    def source(self, tensor: Any) -> Value | str | None:
        """Return where an argument came from; None for a constant and for what is no tensor."""
        return self.sources.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def replay(self, replaced: dict[Value, Tensor]) -> Any:
        """Return what the function gives with other tensors in the place of some values."""

        def swap(leaf: Any) -> Any:
            source = self.source(leaf)
            other = None if source is None or isinstance(source, str) else replaced.get(source)
            # In-place functions must not write into what is kept.
            return leaf.clone() if other is None and isinstance(leaf, Tensor) else leaf if other is None else other

        args, kwargs = tree_map(swap, (self.args, self.kwargs))
        with torch.no_grad():
            return self.function(*args, **kwargs)

    def replay_one(self, replaced: dict[Value, Tensor], position: int = 0) -> Tensor | None:
        """Return one result of ``replay``; None where the function fails or gives no such tensor."""
        try:
            found = [leaf for leaf in tree_leaves(self.replay(replaced)) if isinstance(leaf, Tensor)]
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None
        return found[position] if position < len(found) else None


@dataclass
class Graph:
    """The calls of one run in order.

    Attributes:
        calls: in order.
        results: the values that the model returned.
        uses: how many calls took each parameter.
        shapes: shape of each value.
    """

    calls: list[Call] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)
    uses: dict[str, int] = field(default_factory=dict)
    shapes: dict[Value, torch.Size] = field(default_factory=dict)

    def made_by(self, value: Value) -> Call:
        """Return the call that made a value."""
        return self.calls[value[0]]

    def users(self, value: Value) -> Iterator[Call]:
        """Yield the calls that take a value."""
        return (call for call in self.calls if value in call.values)


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.graph = Graph()
        self.scopes: list[tuple[str, nn.Module]] = [("", module)]
        self._origin: dict[int, Value | str] = {id(p): name for name, p in module.named_parameters()}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        given = dict(kwargs or {})
        sources = {
            id(leaf): self._origin[id(leaf)]
            for leaf in tree_leaves((args, given))
            if isinstance(leaf, Tensor) and id(leaf) in self._origin
        }
        result = function(*args, **given)
        outputs = tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        if outputs:
            self._note(function, args, given, sources, outputs)
        return result

    def _note(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: dict[int, Value | str],
        outputs: tuple[Tensor, ...],
    ) -> None:
        graph, (scope, module) = self.graph, self.scopes[-1]
        index, name = len(graph.calls), getattr(function, "__name__", str(function))
        leaf = next(module.children(), None) is None
        # The call keeps its tensors, so that no identity is ever given twice.
        graph.calls.append(
            Call(index, name, function, args, kwargs, sources, outputs, scope, type(module).__name__, leaf)
        )
        for source in set(sources.values()):
            if isinstance(source, str):
                graph.uses[source] = graph.uses.get(source, 0) + 1
        for position, output in enumerate(outputs):
            self._origin[id(output)] = (index, position)
            graph.shapes[index, position] = output.shape

    def origin(self, tensor: Tensor) -> Value | None:
        """Return the value that a tensor is, None for what was not computed."""
        found = self._origin.get(id(tensor))
        return None if isinstance(found, str) else found


def record(module: nn.Module, run: Callable[[], Any]) -> Graph:
    """Return the graph of one run.

    Args:
        module: the model; names of parameters and scopes are its own. It is left as found.
        run: evaluates it; everything that it returns counts as an output.
    """
    recorder = _Recorder(module)
    with _scopes(module, recorder), torch.no_grad(), recorder:
        returned = run()
    found = [recorder.origin(leaf) for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
    recorder.graph.results = [value for value in found if value is not None]
    return recorder.graph


@contextmanager
def _scopes(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Let the recorder know which submodule is running."""
    handles = []
    for name, member in module.named_modules():
        if not name:
            continue

        def enter(member: nn.Module, _: Any, name: str = name) -> None:
            recorder.scopes.append((name, member))

        def leave(*_: Any) -> None:
            recorder.scopes.pop()

        handles += [member.register_forward_pre_hook(enter), member.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Powers of two multiply without rounding; far from 1 they show what only looks linear near the data (a clipped relu).
_FACTORS = (2.0**-10, 2.0**10)


def is_homogeneous(call: Call, value: Value) -> bool:
    """Return whether f(c x) = c f(x) for c > 0 in one argument, the others held.

    Tried on the recorded tensor and on random ones of its shape, for c = 2^-10 and 2^10, on every result that
    is floating point.
    """
    recorded = _argument(call, value)
    if recorded is None:
        return False
    trials = _trials(recorded)
    # Indices, which come beside sorted or pooled values, have no scale.
    places = [place for place, output in enumerate(call.outputs) if output.is_floating_point()]
    # On the data a layer may be dead; what is zero for random numbers too says nothing.
    answers = [call.replay_one({value: trials[-1]}, place) for place in places]
    if not answers or any(answer is None or not bool(answer.any()) for answer in answers):
        return False
    return all(_scales(call, value, x, place) for x in trials for place in places)


def is_elementwise(call: Call, value: Value) -> bool:
    """Return whether f acts on every entry of one argument alike and alone: it commutes with any reordering."""
    recorded = _argument(call, value)
    if recorded is None or len(call.outputs) != 1 or call.outputs[0].shape != recorded.shape:
        return False
    return all(_commutes(call, value, x) for x in _trials(recorded))


def _argument(call: Call, value: Value) -> Tensor | None:
    from torch.utils._pytree import tree_leaves

    leaves = tree_leaves((call.args, call.kwargs))
    found = next((leaf for leaf in leaves if call.source(leaf) == value), None)
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def _trials(recorded: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    drawn = torch.randn(recorded.shape, generator=generator, dtype=torch.float64).to(recorded)
    return recorded, drawn


def _scales(call: Call, value: Value, x: Tensor, place: int) -> bool:
    here = call.replay_one({value: x}, place)
    if here is None:
        return False
    for factor in _FACTORS:
        there = call.replay_one({value: x * factor}, place)
        if there is None or not _near(there / factor, here):
            return False
    return True


def _commutes(call: Call, value: Value, x: Tensor) -> bool:
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(12)).to(x.device)
    here = call.replay_one({value: x})
    there = call.replay_one({value: x.reshape(-1)[order].view(x.shape)})
    return here is not None and there is not None and _near(there.reshape(-1), here.reshape(-1)[order])


def _near(first: Tensor, second: Tensor) -> bool:
    gap, size = (first - second).abs().max(), second.abs().max()
    return bool(gap <= 100 * torch.finfo(second.dtype).eps * size)
