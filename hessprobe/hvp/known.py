"""What this process knows from models that it has measured: recordings, and which engine was the fastest.

Two Hessians of one risk, or of the checkpoints of one training run, differ in parameters and buffers only. What does
not depend on these is remembered by the kind of the model (``kind_of``), the shapes of a batch, and what was made.
"""

from __future__ import annotations

import functools
import hashlib
import types
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Recordings hold constants of the model, so that only the latest are kept.
_LATEST = 8
# Tensors up to this many entries are told apart by their content, larger ones by being the same object.
_READ = 1 << 16
# Attributes of attributes are followed this far.
_DEPTH = 8
# Of every module, and told apart elsewhere (parameters, buffers, submodules), or without meaning (mode, guards).
_ELSEWHERE = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"})
_HOOKS = "_forward_pre_hooks"


class Known:
    """A few values by key; the one that was not asked for longest goes first."""

    def __init__(self, latest: int = _LATEST) -> None:
        self._latest = latest
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """Return the value, None where there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: Hashable, value: Any) -> None:
        """Remember a value."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._latest:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._values)

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()


RECORDINGS = Known()
ENGINES_TAKEN = Known(64)


class _Same:
    """Equal to another of the same living object; keeps it alive only where it cannot be referred to weakly."""

    def __init__(self, thing: Any) -> None:
        self._hash = id(thing)
        try:
            self._get: Any = weakref.ref(thing)
        except TypeError:
            self._get = lambda: thing

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return False
        mine = self._get()
        return mine is not None and mine is other._get()


def kind_of(module: nn.Module, *others: Any) -> Hashable:
    """Return what ``module`` and ``others`` are but for the values of the parameters and buffers of ``module``.

    Equal for two modules built by the same code with the same settings. Plain values and the attributes of objects
    are compared by value, functions by their code and the values that they close over, tensors of up to 65,536 entries
    by content, and everything else is equal to itself only.
    """
    given = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return tuple(_Kinds(given).of(thing, _DEPTH, ()) for thing in (module, *others))


class _Kinds:
    """Tells kinds; ``given`` tensors, by id, count by shape alone."""

    def __init__(self, given: set[int]) -> None:
        self._given = given

    def of(self, thing: Any, depth: int, above: tuple[int, ...]) -> Hashable:
        """Return the kind of ``thing``, attributes followed ``depth`` far; ``above`` are the ids of what holds it."""
        if thing is None or isinstance(thing, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
            return type(thing).__name__, repr(thing)
        if isinstance(thing, type):
            return _Same(thing)
        if isinstance(thing, Tensor):
            return _tensor(thing)
        if depth == 0 or id(thing) in above:
            return _Same(thing)
        above = (*above, id(thing))
        if isinstance(thing, nn.Module):
            return self._module(thing, depth, above)
        if isinstance(thing, dict):
            return type(thing).__name__, tuple(
                (self.of(k, depth - 1, above), self.of(v, depth - 1, above)) for k, v in thing.items()
            )
        if isinstance(thing, list | tuple):
            return type(thing).__name__, tuple(self.of(each, depth - 1, above) for each in thing)
        if isinstance(thing, set | frozenset) and all(isinstance(each, str) for each in thing):
            return type(thing).__name__, tuple(sorted(thing))
        if isinstance(thing, functools.partial):
            return "partial", self.of((thing.func, thing.args, thing.keywords), depth - 1, above)
        if isinstance(thing, types.MethodType):
            return "method", self.of((thing.__func__, thing.__self__), depth - 1, above)
        if isinstance(thing, types.FunctionType):
            return self._function(thing, depth, above)
        # What computes, or holds what its attributes do not show, is compared by being the same.
        if callable(thing) or not hasattr(thing, "__dict__") or hasattr(type(thing), "__slots__"):
            return _Same(thing)
        return _Same(type(thing)), self._attributes(vars(thing).items(), depth, above)

    def _module(self, module: nn.Module, depth: int, above: tuple[int, ...]) -> Hashable:
        own: dict[int, int] = {}
        found: list[Hashable] = [_Same(type(module))]
        for tables in (module._parameters, module._buffers):
            for name, tensor in tables.items():
                # Tied tensors have one number.
                number = None if tensor is None else own.setdefault(id(tensor), len(own))
                found.append((name, number, None if tensor is None else self._held(tensor)))
        items = [(name, value) for name, value in module.__dict__.items() if name not in _ELSEWHERE]
        # Hooks with negative numbers are the guards of an evaluation under way.
        items = [
            (name, {n: hook for n, hook in value.items() if n >= 0}) if name == _HOOKS else (name, value)
            for name, value in items
        ]
        found.append(self._attributes(items, depth, above))
        found += [
            (name, None if child is None else self.of(child, depth, above)) for name, child in module._modules.items()
        ]
        return tuple(found)

    def _function(self, function: types.FunctionType, depth: int, above: tuple[int, ...]) -> Hashable:
        """Return the kind of a function: two closures of one factory have the same code, and values of their own."""
        try:
            values = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError:  # a cell that nothing has been put in yet
            return _Same(function)
        values += [function.__defaults__, function.__kwdefaults__, vars(function)]
        return _Same(function.__code__), self.of(values, depth - 1, above)

    def _attributes(self, items: Iterable[tuple[str, Any]], depth: int, above: tuple[int, ...]) -> Hashable:
        return tuple((name, self.of(value, depth - 1, above)) for name, value in items)

    def _held(self, tensor: Tensor) -> Hashable:
        if id(tensor) not in self._given:
            return _tensor(tensor)
        return tensor.shape, tensor.dtype, tensor.requires_grad


def _tensor(tensor: Tensor) -> Hashable:
    if tensor.layout != torch.strided or tensor.numel() > _READ or tensor.device.type == "meta":
        return _Same(tensor)
    content = (
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )
    return tensor.shape, str(tensor.dtype), str(tensor.device), hashlib.sha256(content).hexdigest()
