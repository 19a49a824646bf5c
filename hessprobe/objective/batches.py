"""Batches of data, and the mean loss over one of them as a function of the flat parameters.

- nested batches: moving, counting rows, cutting, hashing, and the check that data can be read again;
- ``EmpiricalBatch``, the loss of one of them;
- tensors that are referred to, not copied, and must stay as they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from hessprobe.errors import DataError, UnsupportedError
from hessprobe.objective.base import BatchLoss, LossRule, SecondOrderLosses, logits_of
from hessprobe.objective.outputs import OutputForm
from hessprobe.objective.vocabulary import ChunkedLogits
from hessprobe.vectors import ParameterLayout

TARGET_KEYS = ("labels", "label", "targets", "target")


class Hash(Protocol):
    """What ``digest`` writes to; any ``hashlib`` object."""

    def update(self, data: bytes | memoryview[int], /) -> None:
        """Add bytes."""
        ...


def require_reiterable(data: Any) -> None:
    """Refuse data that cannot be read again and again.

    Raises:
        TypeError: a one-shot iterator, a function, a map-style ``Dataset`` of single examples, a bare pair of
            tensors, or something that is not iterable.
    """
    hint = "Pass a list of batches or a DataLoader: curvature reads the data many times."
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"data must yield batches; got the {type(data).__name__} of single examples. Wrap it in DataLoader."
        )
    if isinstance(data, Tensor | Mapping | str) or (
        isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)
    ):
        got = "a pair of tensors" if isinstance(data, tuple) else f"a {type(data).__name__}"
        raise TypeError(
            f"data must be an iterable of batches; got {got}. Pass [(inputs, targets)], a list of one batch."
        )
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise TypeError(f"data must be an iterable of batches; got {type(data).__name__}. {hint}")
    if isinstance(data, Iterator) or iter_is_itself(data):
        raise TypeError(f"data must be re-iterable; got a one-shot {type(data).__name__}. {hint}")


def iter_is_itself(data: Any) -> bool:
    """Return whether ``iter(data)`` is ``data``, asked without starting the workers or generator of a loader."""
    return not isinstance(data, DataLoader | list | tuple) and iter(data) is data


def is_shuffled(data: Any) -> bool:
    """Return whether ``data`` is a DataLoader that draws its order at random."""
    return isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler)


def generators_of(data: Any) -> list[torch.Generator]:
    """Return the random generators that reading ``data`` may advance, each once."""
    sampler = getattr(data, "sampler", None)
    batch_sampler = getattr(data, "batch_sampler", None)
    owners = (data, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def seeded_by(data: Any, generator: torch.Generator) -> Iterator[None]:
    """Let a DataLoader without a generator of its own draw from ``generator`` inside, where it begins a pass.

    It draws a seed for its workers even where it has none; from the global generator this would be seen by all threads.
    """
    if not isinstance(data, DataLoader) or data.generator is not None:
        yield
        return
    data.generator = generator
    try:
        yield
    finally:
        data.generator = None


def to_device(tree: Any, device: torch.device) -> Any:
    """Return ``tree`` with every tensor on ``device``; tensors already there are shared, arrays become tensors.

    Tensors of inference mode, which autograd cannot save, are copied.
    """
    if isinstance(tree, Tensor):
        moved = tree.to(device, non_blocking=True)
        return moved.clone() if moved.is_inference() else moved
    if isinstance(tree, np.ndarray):
        return as_tensors(tree).to(device)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device) for key, value in tree.items()}
    if hasattr(tree, "to") and callable(tree.to):
        return tree.to(device)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(to_device(item, device) for item in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(to_device(item, device) for item in tree)
    return tree


def as_tensors(tree: Any) -> Any:
    """Return ``tree`` with NumPy arrays of numbers as tensors, which share their memory where it may be written."""
    if isinstance(tree, np.ndarray):
        if tree.dtype.kind not in "biufc":
            raise TypeError(f"arrays in data must hold numbers; got dtype {tree.dtype}. Convert them to numbers.")
        return torch.as_tensor(tree if tree.flags.writeable and all(s >= 0 for s in tree.strides) else tree.copy())
    if isinstance(tree, np.generic):
        return torch.as_tensor(tree)
    if isinstance(tree, Mapping) and any(isinstance(value, np.ndarray) for value in tree.values()):
        return {key: as_tensors(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(as_tensors(item) for item in tree)
    return tree


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree of mappings and sequences in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves(item)


def listed(targets: Any, inputs: Any = None) -> bool:
    """Return whether the targets are a list with a dict an example, as of the objects in every image.

    Not so where the inputs are tensors of another length: these are several kinds of targets, each of all examples.
    """
    if not isinstance(targets, list | tuple) or not targets or not all(isinstance(item, Mapping) for item in targets):
        return False
    beside = [inputs] if isinstance(inputs, Tensor) else list(inputs.values()) if isinstance(inputs, Mapping) else []
    return all(len(each) == len(targets) for each in beside if isinstance(each, Tensor) and each.ndim > 0)


def rows(targets: Any, inputs: Any = None) -> int:
    """Return the number of examples: that of dicts in a list, else the length of the first tensor that has one.

    Raises:
        DataError: no tensor has a leading dimension.
    """
    if isinstance(targets, list | tuple) and listed(targets, inputs):
        return len(targets)
    for leaf in leaves((targets, inputs)):
        if leaf.ndim > 0:
            return len(leaf)
    raise DataError(
        "A batch holds no tensor with a leading dimension, so its examples cannot be counted. Pass forward=."
    )


def require_dtype(inputs: Any, dtype: torch.dtype, error: Exception) -> None:
    """Say that floating-point inputs of another dtype than the parameters are the likely cause of ``error``.

    Raises:
        TypeError: where there are such inputs.
    """
    other = next((leaf.dtype for leaf in leaves(inputs) if leaf.is_floating_point() and leaf.dtype != dtype), None)
    if other is not None:
        raise TypeError(f"inputs must have the dtype of the parameters, {dtype}; got {other}. Convert one.") from error


def cut(tree: Any, start: int, stop: int, length: int, *, lists: bool = False) -> Any:
    """Return rows ``start .. stop - 1`` of every tensor whose leading dimension is ``length``; others are shared.

    With ``lists`` those of every list of that length instead, what is in it uncut, and of tensors outside lists.
    """
    if lists and isinstance(tree, list | tuple):
        return tree[start:stop] if len(tree) == length else tree
    if lists and isinstance(tree, Mapping):
        return {key: cut(value, start, stop, length, lists=True) for key, value in tree.items()}
    return _mapped(tree, lambda leaf: leaf[start:stop] if leaf.ndim > 0 and len(leaf) == length else leaf)


def picked(tree: Any, rows: Tensor, length: int) -> Any:
    """Return some rows, by their numbers, of every tensor whose leading dimension is ``length``; others are shared."""
    return _mapped(tree, lambda leaf: leaf[rows] if leaf.ndim > 0 and len(leaf) == length else leaf)


def _mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(item, function) for item in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(item, function) for item in tree)
    return tree


def digest(tree: Any, into: Hash) -> None:
    """Add the content of ``tree`` (keys, dtypes, shapes, values, in order) to a hash."""
    if isinstance(tree, np.ndarray):
        tree = torch.as_tensor(tree)
    if isinstance(tree, Tensor) and tree.is_nested:
        tree = list(tree.unbind())
    if isinstance(tree, Tensor):
        into.update(f"{tree.dtype}{tuple(tree.shape)}".encode())
        flat = tree.detach().to_dense() if tree.layout != torch.strided else tree.detach()
        into.update(flat.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            into.update(f"{key}:".encode())
            digest(value, into)
    elif isinstance(tree, list | tuple):
        into.update(f"[{len(tree)}".encode())
        for item in tree:
            digest(item, into)
    elif tree is None or isinstance(tree, bool | int | float | complex | str | bytes):
        into.update(repr(tree).encode())
    else:
        # A foreign batch object (a graph) is known by its tensors; other attributes may point anywhere.
        into.update(type(tree).__name__.encode())
        held = getattr(tree, "__dict__", {})
        digest({key: value for key, value in held.items() if isinstance(value, Tensor | np.ndarray)}, into)


def content_hash(tree: Any) -> str:
    """Return the sha256 of the content of ``tree`` as hexadecimal digits."""
    hasher = hashlib.sha256()
    digest(tree, hasher)
    return hasher.hexdigest()


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return ``(inputs, targets)`` of a batch; of a dict, its other entries and its labels (None without labels).

    Raises:
        TypeError: a batch of another form.
    """
    if isinstance(batch, Mapping):
        key = target_key(batch)
        return {k: v for k, v in batch.items() if k != key}, None if key is None else batch[key]
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, list | tuple) else type(batch).__name__
    raise TypeError(
        f"data must yield (inputs, targets) pairs or dicts; got a {got}. "
        "Pass forward=function(module, batch) -> (loss_sum, weight) for batches of another form."
    )


def examples_of(batch: Any) -> int:
    """Return how many examples a batch of any form seems to hold; 1 where nothing says it."""
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    if pair and listed(batch[1], batch[0]):
        return len(batch[1])
    return max((len(leaf) for leaf in leaves(batch) if leaf.ndim), default=1)


def unlabelled(batch: Mapping[str, Any], key: str | None) -> str:
    """Return the sentence on a dict batch without labels that a loss on outputs takes.

    Args:
        batch: the batch.
        key: that of its labels, None where there is none.
    """
    if key is None:
        keys = ", ".join(map(str, batch))
        return (
            f"dict batches must hold labels under one of {', '.join(TARGET_KEYS)}; got the keys {keys}. "
            "Rename them or pass forward=."
        )
    return (
        f"dict batches must hold labels that are a tensor; got a {type(batch[key]).__name__} under {key!r}. Pass "
        f"forward=, for a model that returns its loss lambda m, b: (m(**b).loss * len(b[{key!r}]), len(b[{key!r}]))."
    )


def target_key(batch: Mapping[str, Any]) -> str | None:
    """Return the key that holds the targets of a dict batch, or None."""
    return next((key for key in TARGET_KEYS if key in batch), None)


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
        pairs: names of complex parameters, which theta holds as real and imaginary parts, (..., 2).
        copied: whether each parameter is a tensor of its own and no view of theta: numbers that are read as pairs
            (``torch.view_as_complex``) must begin at an even place.
    """

    module: nn.Module
    layout: ParameterLayout
    constants: dict[str, Tensor]
    prefix: str = ""
    extra: tuple[tuple[str, Any], ...] = ()
    scratch: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    copied: bool = True

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
        chosen = self.layout.split(theta)
        if self.copied:
            # A clone would hand the derivatives on as they come, views again.
            chosen = {name: piece * 1.0 for name, piece in chosen.items()}
        chosen |= {name: torch.view_as_complex(chosen[name]) for name in self.pairs}
        tensors = {**self.constants, **chosen}
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
        form: how several outputs become one tensor; the same for all batches of a risk.
        chunked: how the loss of a language model is computed without all its logits, where that is known.
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
    form: OutputForm = field(default_factory=OutputForm)
    chunked: ChunkedLogits | None = None

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
        ours, model = self.chunked, self.model
        if ours is not None and ours.pays(model.module, self.targets):
            inputs = {**dict(model.extra), **self.inputs}
            return model.run(theta, lambda: ours.mean(model.module, inputs, self.targets))
        return self.rule.mean(logits_of(self.model.on(theta, self.inputs)), self.targets, self.size)

    def outputs(self, theta: Tensor) -> Tensor:
        """Return the outputs at ``theta`` (d,): the logits, where there are such, else all as one, see ``OutputForm``.

        Raises:
            UnsupportedError: the outputs are no floating-point tensors.
        """
        return self.outputs_of(theta, self.inputs)

    def outputs_of(self, theta: Tensor, inputs: Any) -> Tensor:
        """Return the outputs at ``theta`` (d,) on other inputs of the same form, e.g. one example under ``vmap``."""
        with self.context():
            return self.form.join(logits_of(self.model.on(theta, inputs)))

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
        if self.size == 0:
            return (outputs * 0).sum()
        return self.rule.mean(self.form.part(outputs), self.targets, self.size)

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
        names += [model.pairs, str(model.copied)]
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
        lists = isinstance(self.targets, list | tuple) and listed(self.targets, self.inputs)
        targets = cut(self.targets, start, stop, self.examples, lists=lists)
        if lists and isinstance(self.inputs, list | tuple):
            # Arguments of the model, each with an entry an example.
            inputs = tuple(cut(each, start, stop, self.examples, lists=True) for each in self.inputs)
        else:
            inputs = cut(self.inputs, start, stop, self.examples, lists=lists)
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

    def outputs(self, theta: Tensor) -> Tensor:
        """Return what the function says that its loss is a function of, one vector, at ``theta`` (d,).

        Raises:
            UnsupportedError: it says nothing.
        """
        if not self.through_logits:
            return super().outputs(theta)
        with self.context():
            found: Tensor = self._called("outputs", theta)
        return found

    def loss_of_outputs(self, outputs: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of outputs as ``outputs(theta)`` gives them."""
        if not self.through_logits:
            return super().loss_of_outputs(outputs)
        if self.size == 0:
            return (outputs * 0).sum()
        loss_sum: Tensor = self._function.loss_of_outputs(self._call.module, self.batch, outputs)
        return loss_sum / self.size

    @property
    def through_logits(self) -> bool:  # type: ignore[override]  # as the function has it
        """Whether the function says what its logits are made of."""
        return hasattr(self._function, "loss_of_outputs")

    @property
    def _call(self) -> Any:
        return self.model.module

    @property
    def _function(self) -> Any:
        return getattr(self._call, "_function", None)

    def _called(self, name: str, theta: Tensor) -> Any:
        """Return what another function of the same object makes of the module and the batch."""
        other = ForwardCall(self._call.module, getattr(self._function, name))
        return with_graph(lambda: replace(self.model, module=other)(theta, (self.batch,)))


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


class KeptBatches:
    """The batches of a list, whose tensors are the same at every pass and may be edited between two.

    Of what a loader makes anew each time nothing is kept.
    """

    def __init__(self, data: Any) -> None:
        self._keeps = isinstance(data, list | tuple)
        self._stamps: list[tuple[int, Tensor, int]] = []

    def see(self, index: int, batch: Any) -> None:
        """Remember the state of batch ``index``."""
        if self._keeps:
            # A tensor of inference mode counts no edits.
            tensors = [leaf for leaf in leaves(batch) if not leaf.is_inference()]
            self._stamps += [(index, tensor, tensor._version) for tensor in tensors]

    def require_unchanged(self) -> None:
        """Refuse to go on after an edit.

        Raises:
            DataError: a tensor was written to since it was seen; names the batch.
        """
        for index, tensor, version in self._stamps:
            if tensor._version != version:
                raise DataError(
                    f"data must stay as they were when the risk was made; got batch {index} edited in place. "
                    "Make a new EmpiricalRisk, or edit a clone."
                )
