"""The mean loss over one batch of data as a function of the flat parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from hessprobe.errors import UnsupportedError
from hessprobe.objective.base import BatchLoss
from hessprobe.objective.batches import cut
from hessprobe.objective.model_loss import logits_of
from hessprobe.objective.second_order import SecondOrderLosses
from hessprobe.objective.weighting import LossRule
from hessprobe.vectors import ParameterLayout

# How torch answers a call of autograd.grad where nothing is recorded.
_NO_GRAPH = ("does not require grad", "does not have a grad_fn")

Context = Callable[[], AbstractContextManager[None]]


def wants_graph(error: Exception) -> bool:
    """Return whether ``autograd.grad`` was called where nothing was recorded."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_GRAPH)


def with_graph(work: Callable[[], Any]) -> Any:
    """Return what ``work`` computes, with gradients enabled where it differentiates inside itself.

    A network of physics, or a penalty on the gradient, calls ``torch.autograd.grad`` in its forward or its loss, which
    fails where nothing is recorded. The answer is then detached, as it would have been.
    """
    if torch.is_grad_enabled():
        return work()
    try:
        return work()
    except RuntimeError as error:
        if not wants_graph(error):
            raise
        with torch.enable_grad():
            answer = work()
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, answer)


@dataclass(frozen=True, eq=False)
class FunctionalModel:
    """A module as a function of the flat parameters, its other parameters and buffers held constant.

    Attributes:
        module: what is called.
        layout: the parameters inside theta.
        constants: detached tensors by dotted name.
        prefix: what stands before these names inside ``module``.
        extra: keyword arguments of every call.
        scratch: names of constants that the module writes (counters); every call gets its own copy of them.
    """

    module: nn.Module
    layout: ParameterLayout
    constants: dict[str, Tensor]
    prefix: str = ""
    extra: tuple[tuple[str, Any], ...] = ()
    scratch: tuple[str, ...] = ()

    def __call__(self, theta: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Return the module's outputs at ``theta`` (d,)."""
        return functional_call(self.module, self._named(theta), args, {**dict(self.extra), **(kwargs or {})})

    def run(self, theta: Tensor, work: Callable[[], Tensor]) -> Tensor:
        """Return what ``work`` computes while the module holds ``theta`` (d,): for a loss that reads parameters."""
        named = {f"module.{name}": tensor for name, tensor in self._named(theta).items()}
        result: Tensor = functional_call(_Holding(self.module, work), named, ())
        return result

    @property
    def varying(self) -> tuple[str, ...]:
        """The names of the constants that a recording takes as inputs: those a model decides on are part of it."""
        return tuple(name for name, tensor in self.constants.items() if tensor.is_floating_point() and tensor.dim() > 0)

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        tensors = {**self.constants, **self.layout.split(theta)}
        tensors |= {name: tensors[name].clone() for name in self.scratch}
        return {self.prefix + name: tensor for name, tensor in tensors.items()}

    def on(self, theta: Tensor, inputs: Any) -> Any:
        """Return the outputs on ``inputs``: a dict as keyword arguments, a list or tuple as arguments, else one."""
        if isinstance(inputs, dict):
            return with_graph(lambda: self(theta, (), inputs))
        # A named tuple is one thing: a packed sequence, an observation.
        if isinstance(inputs, list | tuple) and not hasattr(inputs, "_fields"):
            return with_graph(lambda: self(theta, tuple(inputs)))
        return with_graph(lambda: self(theta, (inputs,)))


class _Holding(nn.Module):
    """Holds a module while something that refers to it is computed."""

    def __init__(self, module: nn.Module, work: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self._work = work

    def forward(self) -> Tensor:
        """Return what is computed."""
        return self._work()


class ForwardCall(nn.Module):
    """Makes a user's ``forward(module, batch)`` callable with other parameters in the module."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def forward(self, batch: Any) -> Any:
        """Return ``function(module, batch)``."""
        return self._function(self.module, batch)


@dataclass(frozen=True, eq=False, kw_only=True)
class EmpiricalBatch(BatchLoss):
    """The mean loss over a batch of inputs and targets; works under ``torch.func`` and double backward.

    Attributes:
        model: the module as a function of theta.
        rule: the loss, and what it is a mean over.
        inputs: what the module takes, with the examples along the leading dimension.
        targets: what the loss takes beside the outputs.
        index: position of the batch in the data.
        examples: number of rows B.
        size: number of units of the mean (examples, or tokens); 0 where all targets are ignored.
        weight: share of the batch in the objective.
        context: state to evaluate in.
        separable: whether the examples do not see each other, so that the batch may be cut.
        reads_parameters: whether the loss looks at the parameters itself (a penalty on the weights), beside the
            outputs; it is then evaluated while the module holds theta.
    """

    model: FunctionalModel
    rule: LossRule
    inputs: Any
    targets: Any
    index: int
    examples: int
    size: float
    weight: float
    context: Context
    separable: bool = True
    reads_parameters: bool = False

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the mean loss, a scalar, at ``theta`` (d,)."""
        if self.size == 0:
            return (theta * 0).sum()
        with self.context():
            value: Tensor
            if self.reads_parameters:
                value = with_graph(lambda: self.model.run(theta, lambda: self._mean(theta)))
            else:
                value = with_graph(lambda: self._mean(theta))
            return value

    def _mean(self, theta: Tensor) -> Tensor:
        return self.rule.mean(logits_of(self.model.on(theta, self.inputs)), self.targets, self.size)

    def outputs(self, theta: Tensor) -> Tensor:
        """Return the outputs (the logits, where the model returns several things) at ``theta`` (d,).

        Raises:
            UnsupportedError: the outputs are not one tensor.
        """
        return self.outputs_of(theta, self.inputs)

    def outputs_of(self, theta: Tensor, inputs: Any) -> Tensor:
        """Return the outputs at ``theta`` (d,) on other inputs of the same form, e.g. one example under ``vmap``."""
        with self.context():
            outputs = logits_of(self.model.on(theta, inputs))
        if not isinstance(outputs, Tensor):
            raise UnsupportedError(
                f"The Gauss-Newton matrix needs outputs that are one tensor; the model returns a "
                f"{type(outputs).__name__}. Measure with operator='hessian', or wrap the model."
            )
        return outputs

    def loss_of_outputs(self, outputs: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of outputs as ``outputs(theta)`` gives them.

        Raises:
            UnsupportedError: the loss is not a function of the outputs alone.
        """
        if self.reads_parameters:
            raise UnsupportedError(
                f"The Gauss-Newton matrix needs a loss on the outputs alone; {self.rule.name} also reads the model's "
                "parameters. Measure with operator='hessian', or leave the penalty out of the loss."
            )
        return self.rule.mean(outputs, self.targets, self.size)

    def tensors(self) -> list[Tensor]:
        """Return the tensors of inputs and targets."""
        return [leaf for leaf in tree_leaves((self.inputs, self.targets)) if isinstance(leaf, Tensor)]

    @property
    def signature(self) -> Hashable:
        """What a recording takes as given: plain values among the inputs, and the size where the loss divides by it."""
        leaves, structure = tree_flatten((self.inputs, self.targets))
        plain = tuple(repr(leaf) for leaf in leaves if not isinstance(leaf, Tensor))
        return self.size == 0, None if self.rule.reduction == "mean" else self.size, str(structure), plain

    def constants(self) -> list[Tensor]:
        """Return the parameters outside theta and the buffers that are inputs of a recording."""
        return [self.model.constants[name] for name in self.model.varying]

    def makes(self) -> tuple[Any, ...]:
        """Return the module, the loss, and what else the loss is made of."""
        model = self.model
        fixed = [(name, tensor) for name, tensor in model.constants.items() if name not in model.varying]
        names = [*model.layout.slices.items(), model.prefix, model.extra, model.scratch, model.varying]
        plain = [str(name) for name in (*names, self.separable, self.reads_parameters)]
        return model.module, self.rule, plain, fixed

    def rebind(self, tensors: list[Tensor], constants: list[Tensor] | None = None) -> EmpiricalBatch:
        """Return the loss on other inputs and targets of the same shapes, and other constants."""
        model = self.model
        if constants is not None:
            model = replace(model, constants={**model.constants, **dict(zip(model.varying, constants, strict=True))})
        fresh = iter(tensors)
        inputs, targets = tree_map(
            lambda leaf: next(fresh) if isinstance(leaf, Tensor) else leaf, (self.inputs, self.targets)
        )
        return replace(self, model=model, inputs=inputs, targets=targets)

    def slice(self, start: int, stop: int) -> EmpiricalBatch:
        """Return the loss of examples ``start .. stop - 1`` alone; its weight is their share of the units.

        Raises:
            ValueError: not ``0 <= start < stop <= examples``.
            UnsupportedError: BatchNorm uses the statistics of the batch, which a cut would change.
        """
        if not 0 <= start < stop <= self.examples:
            raise ValueError(
                f"start and stop must satisfy 0 <= start < stop <= {self.examples}; got {start} and {stop}. "
                "Cut within the batch."
            )
        if not self.separable:
            raise UnsupportedError(
                "This batch cannot be cut: BatchNorm normalises by the statistics of the whole batch. "
                "Use batchnorm='eval' or 'recalibrate', or pass smaller batches."
            )
        inputs = cut(self.inputs, start, stop, self.examples)
        targets = cut(self.targets, start, stop, self.examples)
        size = self.rule.size(targets, stop - start)
        weight = self.weight * size / self.size if self.size else 0.0
        return replace(self, inputs=inputs, targets=targets, examples=stop - start, size=size, weight=weight)


@dataclass(frozen=True, eq=False, kw_only=True)
class ForwardBatch(BatchLoss):
    """The mean loss over a batch that a user's ``forward(module, batch) -> (loss_sum, weight)`` computes.

    Attributes:
        model: the user's function as a function of theta.
        batch: what it takes, on the device of the parameters.
        index: position of the batch in the data.
        examples: number of examples, where it could be counted, else 1.
        size: the weight that the function returned.
        weight: share of the batch in the objective.
        context: state to evaluate in.
    """

    model: FunctionalModel
    batch: Any
    index: int
    examples: int
    size: float
    weight: float
    context: Context

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the mean loss, a scalar, at ``theta`` (d,)."""
        if self.size == 0:
            return (theta * 0).sum()
        with self.context(), SecondOrderLosses():
            loss_sum: Tensor = with_graph(lambda: self.model(theta, (self.batch,))[0])
        return loss_sum / self.size


def forward_weight(model: FunctionalModel, theta: Tensor, batch: Any, index: int) -> float:
    """Return the weight that a user's ``forward(module, batch) -> (loss_sum, weight)`` gives a batch.

    Args:
        model: that function as a function of theta.
        theta: (d,) where to evaluate it.
        batch: what it takes.
        index: position of the batch in the data, for messages.

    Raises:
        TypeError: it returns something else.
        ValueError: a loss that is not scalar, or a weight that is not a finite number >= 0.
    """
    with torch.no_grad():
        answer = with_graph(lambda: model(theta, (batch,)))
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not isinstance(answer[0], Tensor):
        raise TypeError(f"forward must return (loss_sum, weight); got {type(answer).__name__}. Return a pair.")
    if answer[0].ndim != 0:
        raise ValueError(f"loss_sum must be a scalar; got shape {tuple(answer[0].shape)} from forward. Sum it.")
    weight = float(answer[1])
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be a finite number >= 0; got {weight} for batch {index}. Count the examples.")
    return weight
