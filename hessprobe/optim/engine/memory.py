"""What a rule remembers between steps, kept in the base optimizer's own state so that one state_dict holds all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hessprobe.optim.engine.tensors import TensorList

PREFIX = "sam_"


class Memory:
    """Named vectors and numbers of a rule, stored with the parameters they belong to.

    A vector ``name`` lives in ``state[p]["sam_<name>"]``, a number in ``param_groups[0]["sam_<name>"]``. Both are set
    only when a step has gone through: until then they wait, and a step that fails leaves the memory as it was.

    Args:
        base: the wrapped optimizer.
    """

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self._base = base
        self._vectors: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self._numbers: dict[str, Any] = {}

    def vector(self, name: str, parameters: list[Tensor], foreach: bool) -> TensorList | None:
        """Return the vector, zeros for parameters added since, or None before it was first remembered."""
        if not self.number(f"has_{name}", False):
            return None
        stored = [self._base.state[p].get(PREFIX + name) for p in parameters]
        return TensorList(
            [torch.zeros_like(p) if s is None else s for s, p in zip(stored, parameters, strict=True)], foreach
        )

    def number(self, name: str, default: Any = None) -> Any:
        """Return the number; its first value (or ``default``) before it was first remembered."""
        return self._base.param_groups[0].get(PREFIX + name, default)

    def remember_vector(self, name: str, value: TensorList, parameters: list[Tensor]) -> None:
        """Set a vector when the step has gone through; the tensors are kept, not copied."""
        self._vectors[name] = (parameters, value.tensors)
        self._numbers[f"has_{name}"] = True

    def forget_vector(self, name: str) -> None:
        """Have no such vector when the step has gone through."""
        self._vectors.pop(name, None)
        self._numbers[f"has_{name}"] = False

    def remember_number(self, name: str, value: Any) -> None:
        """Set a number (or a 0-dimensional tensor) when the step has gone through."""
        self._numbers[name] = value

    def commit(self) -> None:
        """Keep what was remembered in this step."""
        for name, (parameters, tensors) in self._vectors.items():
            for parameter, tensor in zip(parameters, tensors, strict=True):
                own = tensor.detach()
                # A gradient that stays in .grad would be zeroed or overwritten by the next step.
                shared = parameter.grad is not None and _share_memory(own, parameter.grad)
                self._base.state[parameter][PREFIX + name] = own.clone() if shared else own
        self._base.param_groups[0].update({PREFIX + name: value for name, value in self._numbers.items()})
        self.discard()

    def discard(self) -> None:
        """Forget what was remembered in a step that did not go through."""
        self._vectors.clear()
        self._numbers.clear()

    def reserve_numbers(self, first: Mapping[str, Any]) -> None:
        """Enter the first value of every number that is not there yet."""
        group = self._base.param_groups[0]
        for name, value in first.items():
            group.setdefault(PREFIX + name, value)

    def reserve_vectors(self, names: tuple[str, ...], parameters: list[Tensor]) -> None:
        """Make room for vectors that are not there yet, so that a loader finds every entry that it may have to fill."""
        for name in names:
            if not self.number(f"has_{name}"):
                for parameter in parameters:
                    self._base.state[parameter].setdefault(PREFIX + name, torch.zeros_like(parameter))


def _share_memory(one: Tensor, other: Tensor) -> bool:
    # What is sparse has memory of its own.
    return other.layout is torch.strided and one.data_ptr() == other.data_ptr()
