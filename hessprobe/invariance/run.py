"""The outputs of a model for other values of its tensors, and how far two sets of outputs are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hessprobe.invariance.actions import State
from hessprobe.invariance.trace import Graph, record
from hessprobe.objective import EmpiricalBatch, EmpiricalRisk, ForwardBatch, modes
from hessprobe.objective.batches import ForwardCall, FunctionalModel
from hessprobe.objective.copying import load, module_copy, state_of

# Outputs that are equal up to rounding, relative to the largest of them.
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
_COARSE = 1e-2
# Examples on which sites are looked for.
_FEW = 16
_NOISE = 0.1

_EPS = ".eps"


@dataclass(frozen=True, eq=False)
class Runner:
    """Evaluates a private copy of a risk's module.

    Attributes:
        risk: names data, loss and modes; never changed.
        module: the copy.
    """

    risk: EmpiricalRisk
    module: nn.Module

    @classmethod
    def of(cls, risk: EmpiricalRisk) -> Runner:
        """Return a runner on a fresh copy."""
        return cls(risk, module_copy(risk))

    @property
    def tolerance(self) -> float:
        """Relative distance within which outputs count as equal: 1e-10 in float64, 1e-5 in float32."""
        return _TOLERANCES.get(self.risk.dtype, _COARSE)

    def state(self) -> State:
        """Return parameters and buffers, and the eps of each layer that has one."""
        found = state_of(self.risk)
        for name, layer in self.module.named_modules():
            if isinstance(getattr(layer, "eps", None), float):
                found[f"{name}{_EPS}"] = torch.tensor(layer.eps, dtype=torch.float64)
        return found

    def disturbed(self, state: State, seed: int) -> State:
        """Return the state with noise on all parameters: what still holds there does not depend on these weights."""
        generator = torch.Generator().manual_seed(seed)
        moved = dict(state)
        for name, parameter in self.module.named_parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
                size = float(parameter.detach().double().square().mean().sqrt())
                moved[name] = state[name] + noise * _NOISE * (size or 1.0)
        return moved

    def eps_of(self, eps: State, others: State) -> State:
        """Return the state ``others`` with the eps of every layer from ``eps``."""
        return {name: eps[name] if name.endswith(_EPS) else tensor for name, tensor in others.items()}

    def outputs(self, state: State, *, few: bool = False) -> Iterator[list[Tensor]]:
        """Yield the floating-point outputs of each batch at ``state``; with ``few`` of some examples only."""
        with self._eps(state):
            for term in self._terms(few):
                yield _leaves(self._call(term, state))

    def distance(self, first: State, second: State, *, few: bool = False) -> float:
        """Return max |f - f'| / max |f| over all outputs; inf where one of them is not finite."""
        gap, size = 0.0, 0.0
        pairs = zip(list(self.outputs(first, few=few)), self.outputs(second, few=few), strict=True)
        for here, there in pairs:
            for one, other in zip(here, there, strict=True):
                if not bool(torch.isfinite(other).all()):
                    return float("inf")
                gap = max(gap, float((one.double() - other.double()).abs().max()))
                size = max(size, float(one.double().abs().max()))
        return gap / size if size else float(gap > 0)

    def graph(self) -> Graph:
        """Return the recorded run on a few examples."""
        term = next(iter(self._terms(few=True)))
        if isinstance(term, ForwardBatch):
            model = ForwardCall(self.module, term.model.module._function)  # type: ignore[arg-type]  # of a ForwardCall
            return self._recorded(lambda: model(term.batch))
        args, kwargs = _arguments(term.inputs)
        extra = {**dict(term.model.extra), **kwargs}
        return self._recorded(lambda: self.module(*args, **extra))

    def written(self, state: State) -> nn.Module:
        """Return a new copy of the module that holds ``state``, its eps included."""
        module = module_copy(self.risk)
        load(module, state)
        _set_eps(module, state)
        return module

    def _recorded(self, run: Callable[[], Any]) -> Graph:
        with self._evaluating():
            return record(self.module, run)

    def _evaluating(self) -> Any:
        return modes.evaluation(
            [self.module], device=self.risk.device, batchnorm=self.risk.batchnorm, tf32=self.risk.tf32
        )

    def _terms(self, few: bool) -> Iterator[EmpiricalBatch | ForwardBatch]:
        for term in islice(self.risk.terms(), 1 if few else None):
            small = few and isinstance(term, EmpiricalBatch) and term.separable and term.examples > _FEW
            yield term.slice(0, _FEW) if small and isinstance(term, EmpiricalBatch) else term

    def _call(self, term: EmpiricalBatch | ForwardBatch, state: State) -> Any:
        theta = self.risk.layout.join(state[name] for name in self.risk.layout.names)
        names = term.model.constants
        constants = {name: state.get(name, tensor) for name, tensor in names.items()}
        with self._evaluating(), torch.no_grad():
            model = replace(term.model, module=self._module(term.model), constants=constants)
            if isinstance(term, ForwardBatch):
                return replace(term, model=model)(theta)
            return model.on(theta, term.inputs)

    def _module(self, model: FunctionalModel) -> nn.Module:
        if isinstance(model.module, ForwardCall):
            return ForwardCall(self.module, model.module._function)
        return self.module

    def _eps(self, state: State) -> _EpsOf:
        return _EpsOf(self.module, state)


class _EpsOf:
    """Sets the eps of the layers of a module, and puts them back."""

    def __init__(self, module: nn.Module, state: State) -> None:
        self._module, self._state = module, state
        self._saved: State = {}

    def __enter__(self) -> None:
        for name, layer in self._module.named_modules():
            if f"{name}{_EPS}" in self._state:
                self._saved[f"{name}{_EPS}"] = torch.tensor(layer.eps, dtype=torch.float64)
        _set_eps(self._module, self._state)

    def __exit__(self, *_: object) -> None:
        _set_eps(self._module, self._saved)


def _set_eps(module: nn.Module, state: State) -> None:
    for name, layer in module.named_modules():
        if f"{name}{_EPS}" in state:
            layer.eps = float(state[f"{name}{_EPS}"])


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs), {}) if isinstance(inputs, list | tuple) else ((inputs,), {})


def _leaves(returned: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
