"""The loss as a function of inputs or activations, the parameters held fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.errors import UnsupportedError, about
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.batches import EmpiricalBatch
from hessprobe.objective.empirical import EmpiricalRisk
from hessprobe.vectors import ParameterLayout

INPUT = "input"
# Names that a message lists.
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class ActivationBatch(BatchLoss):
    """The mean loss of a batch as a function of what stands at one place of the network.

    Attributes:
        batch: the loss as a function of the parameters.
        parameters: their values (d,), held fixed.
        module: whose output is replaced; None for the input of the whole.
        where: of this batch within all activations.
        shape: (B, ...) of the activations of the batch.
        weight: share of the batch in the objective.
        size: number of units of the mean.
    """

    batch: EmpiricalBatch
    parameters: Tensor
    module: nn.Module | None
    where: slice
    shape: torch.Size
    weight: float
    size: float

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of the batch at activations ``theta`` (all of them, flat)."""
        return self._at(theta, lambda batch: batch(self.parameters))

    def outputs(self, theta: Tensor) -> Tensor:
        """Return the outputs of the network at activations ``theta``."""
        return self._at(theta, lambda batch: batch.outputs(self.parameters))

    def loss_of_outputs(self, outputs: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of outputs as ``outputs(theta)`` gives them."""
        return self.batch.loss_of_outputs(outputs)

    def _at(self, theta: Tensor, work: Callable[[EmpiricalBatch], Tensor]) -> Tensor:
        own = theta[self.where].view(self.shape)
        if self.module is None:
            return work(replace(self.batch, inputs=own))
        handle = self.module.register_forward_hook(lambda *_: own)
        try:
            return work(self.batch)
        finally:
            handle.remove()


class ActivationRisk(Objective):
    r"""L(a) = sum_b w_b L_b(a_b): the mean loss as a function of the activations of all examples, stacked.

    a_b (B, ...) is what a submodule returns for batch b, or the batch's input; the parameters are held fixed, and what
    is computed before the submodule does not matter. Where the loss is a mean over N examples that do not see each
    other, the Hessian is block diagonal,

        H = (1/N) diag(d^2 l_1 / d a_1^2, ..., d^2 l_N / d a_N^2),

    so that N times the block of example i is the curvature of that example's own loss, the "input curvature" for
    a = x. Each example is a block of its own, ``"example.0"``, ``"example.1"``, ...

    Args:
        risk: of a model, a loss on its outputs, and batches.
        wrt: ``"input"``, or the dotted name of a submodule that is called once in a pass and returns one tensor.

    Raises:
        TypeError: ``risk`` is no ``EmpiricalRisk``, or has a ``forward`` of its own.
        ValueError: no submodule of that name.
        UnsupportedError: inputs or outputs there that are not one floating tensor with the examples along its first
            dimension, or a submodule that is called several times, or not at all.

    References:
        Moosavi-Dezfooli, Fawzi, Uesato, Frossard (2019), "Robustness via curvature regularization, and vice versa".
    """

    def __init__(self, risk: Objective, wrt: str) -> None:
        if not isinstance(risk, EmpiricalRisk):
            raise TypeError(
                f"risk must be an EmpiricalRisk for curvature with respect to {wrt!r}; got {type(risk).__name__}."
            )
        self._risk, self.wrt, self.group = risk, wrt, risk.group
        self._module = None if wrt == INPUT else _submodule(risk.module, wrt)
        parts: list[Tensor] = []
        self._places: list[tuple[slice, torch.Size]] = []
        self._n_examples = 0
        with risk.evaluating(), torch.no_grad():
            for batch in risk.terms():
                if not isinstance(batch, EmpiricalBatch):
                    raise TypeError(about("wrt", f"must be None for a risk with forward= of its own; got {wrt!r}."))
                part = self._found(batch)
                start = self._places[-1][0].stop if self._places else 0
                self._places.append((slice(start, start + part.numel()), part.shape))
                parts.append(part.reshape(-1))
                self._n_examples += len(part)
        self.theta = torch.cat(parts)
        self.dim, self.dtype, self.device = len(self.theta), self.theta.dtype, self.theta.device
        self.n_terms, self.caveats = len(parts), risk.caveats
        shapes = [shape[1:] for _, shape in self._places for _ in range(shape[0])]
        self.layout = ParameterLayout(tuple(f"example.{i}" for i in range(len(shapes))), tuple(shapes))

    @property
    def n_examples(self) -> int:
        """N, of all batches."""
        return self._n_examples

    def require_alike(self) -> int:
        """Return N, where every example has the same size and the same share 1/N of the loss.

        Raises:
            ValueError: they differ, as with tokens that are left out.
        """
        shapes = {shape[1:] for _, shape in self._places}
        shares = [(batch.weight / shape[0]) for batch, (_, shape) in zip(self._risk.terms(), self._places, strict=True)]
        if len(shapes) > 1 or max(shares) - min(shares) > 1e-9 * max(shares):
            raise ValueError(
                f"wrt={self.wrt!r} must have examples of one size and weight for eigenvalues of each; got "
                f"{len(shapes)} shapes and shares {min(shares):.3g} to {max(shares):.3g}. Use H.block('example.0')."
            )
        return self._n_examples

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of the risk."""
        return self._risk.evaluating()

    def terms(self) -> Iterator[BatchLoss]:
        """Yield the batches, in the order of the data."""
        for (where, shape), batch in zip(self._places, self._risk.terms(), strict=True):
            if isinstance(batch, EmpiricalBatch):
                yield ActivationBatch(batch, self._risk.theta, self._module, where, shape, batch.weight, batch.size)

    def _found(self, batch: EmpiricalBatch) -> Tensor:
        if self._module is None:
            return self._required(batch.inputs, batch.examples)
        seen: list[Any] = []
        handle = self._module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            batch(self._risk.theta)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise UnsupportedError(
                f"wrt={self.wrt!r} must be a submodule that is called once in a pass; got {len(seen)} calls. "
                "Name another one."
            )
        return self._required(seen[0], batch.examples)

    def _required(self, value: Any, examples: int) -> Tensor:
        what = "the input" if self._module is None else f"what {self.wrt!r} returns"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise UnsupportedError(
                f"wrt={self.wrt!r} needs {what} to be one tensor of floats; got {kind}. Name a submodule that returns "
                "one, such as the embedding of tokens."
            )
        if value.ndim == 0 or value.shape[0] != examples:
            raise UnsupportedError(
                f"wrt={self.wrt!r} needs {what} to have the {examples} examples along its first dimension; got shape "
                f"{tuple(value.shape)}. Name another submodule."
            )
        return value.detach()


def _submodule(module: nn.Module, name: str) -> nn.Module:
    known: dict[str, nn.Module] = dict(module.named_modules())
    if not isinstance(name, str) or name not in known or not name:
        names = [each for each in known if each]
        listed = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        close = checks.nearest(str(name), names) or (f" These are {listed}." if names else " This module has none.")
        raise ValueError(about("wrt", f"must be 'input' or the name of a submodule; got {name!r}.{close}"))
    return known[name]
