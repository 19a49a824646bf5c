"""The interface of a loss on a flat parameter vector that is a weighted sum over batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError, UnsupportedError
from hessprobe.vectors import ParameterLayout


class BatchLoss(ABC):
    """The mean loss over one batch as a function of the flat parameters, twice differentiable.

    Attributes:
        weight: share of this batch in the objective; the weights of all batches sum to 1.
        size: number of examples (or counted tokens) in the batch.
    """

    weight: float = 1.0
    size: float = 1.0

    @abstractmethod
    def __call__(self, theta: Tensor) -> Tensor:
        """Return the mean loss, a scalar, at ``theta`` (d,)."""

    def outputs(self, theta: Tensor) -> Tensor:
        """Return the model outputs f, shape (B, ..., C), whose loss is ``loss_of_outputs(f)``.

        Raises:
            UnsupportedError: the loss is computed inside the model, so that there are no outputs to speak of.
        """
        raise UnsupportedError(
            "The Gauss-Newton matrix needs model outputs and a loss on them, but this objective computes its loss "
            "inside forward. Pass loss= to EmpiricalRisk, or measure with operator='hessian'."
        )

    def loss_of_outputs(self, outputs: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of model outputs as ``outputs(theta)`` gives them."""
        raise UnsupportedError("This objective has no loss on outputs. Pass loss= to EmpiricalRisk.")

    def tensors(self) -> list[Tensor]:
        """Return every tensor that differs from batch to batch (inputs, targets, counts), in a fixed order.

        Empty where the batch is opaque (a user's forward on a foreign batch).
        """
        return []

    @property
    def signature(self) -> Hashable:
        """What besides the shapes of ``tensors()`` a recording of this loss depends on."""
        return ()

    def constants(self) -> list[Tensor]:
        """Return the tensors that are the same for all batches of a risk but another's may differ in, in a fixed order.

        These are parameters outside theta and buffers, of floating point.
        """
        return []

    def makes(self) -> tuple[Any, ...] | None:
        """Return the objects that make this loss out of theta, ``tensors()``, ``constants()`` and ``signature``.

        A recording serves another risk where these are of one kind; None where that cannot be told.
        """
        return None

    def rebind(self, tensors: list[Tensor], constants: list[Tensor] | None = None) -> BatchLoss:
        """Return the same loss on other values of ``tensors()``, and of ``constants()`` where these are given.

        One recording thus serves many batches, and other risks of the same kind.
        """
        raise UnsupportedError("This batch is opaque: its tensors cannot be exchanged.")

    def slice(self, start: int, stop: int) -> BatchLoss:
        """Return the loss of examples ``start .. stop - 1`` of this batch alone, its weight their share.

        Raises:
            UnsupportedError: the batch cannot be cut (its loss is computed by a user's forward on a foreign batch).
        """
        raise UnsupportedError("This batch cannot be cut into examples. Pass smaller batches.")


class Objective(ABC):
    """L(theta) = sum_b weight_b * L_b(theta).

    Attributes:
        dim: d, length of theta.
        dtype, device: of theta.
        theta: the point at which curvature is measured, flat (d,), detached.
        layout: named tensors inside theta.
        n_terms: number of batches.
        caveats: what a reader of any number measured on it should know, in sentences.
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    theta: Tensor
    layout: ParameterLayout
    n_terms: int = 1
    caveats: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kind, terms = type(self).__name__, self.n_terms
        return f"{kind}(dim={self.dim}, batches={terms}, dtype={self.dtype}, device={self.device})"

    @abstractmethod
    def terms(self) -> Iterator[BatchLoss]:
        """Yield the batches, in the same order at every call. Use inside ``evaluating()``."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context in which losses may be evaluated; on leaving it, everything is as it was before."""
        return nullcontext()

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """Return L(theta), a detached fp64 scalar; at ``self.theta`` by default."""
        at = self.theta if theta is None else theta
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.evaluating(), torch.no_grad():
            for term in self.terms():
                total += term.weight * term(at).double()
        return total

    def require_finite_loss(self, theta: Tensor | None = None) -> None:
        """Evaluate every batch at ``theta`` and refuse the first whose loss is nan or infinite.

        Raises:
            NonFiniteError: names that batch.
        """
        at = self.theta if theta is None else theta.detach()
        with self.evaluating(), torch.no_grad():
            for index, term in enumerate(self.terms()):
                value = term(at)
                if not bool(torch.isfinite(value)):
                    raise NonFiniteError(f"loss must be finite; got {float(value)} on batch {index}. Check that batch.")

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return the gradient of L at ``theta`` (``self.theta`` by default), shape (d,)."""
        at = (self.theta if theta is None else theta).detach()
        total = torch.zeros_like(at)
        with self.evaluating(), torch.enable_grad():
            for term in self.terms():
                leaf = at.clone().requires_grad_()
                value = term(leaf)
                if value.requires_grad:
                    (slope,) = torch.autograd.grad(value, leaf)
                    total.add_(slope, alpha=term.weight)
        return total


def require_objective(name: str, value: Any) -> Objective:
    """Return ``value`` if it is an objective.

    Raises:
        TypeError: it is not; the message says how to make one of what it is.
    """
    if isinstance(value, Objective):
        return value
    mend = "Make one with EmpiricalRisk(model, loss, data)."
    if isinstance(value, torch.nn.Module):
        mend = "Pass EmpiricalRisk(model, loss, data) in its place."
    elif hasattr(value, "matvecs") or hasattr(value, "__matmul__"):
        mend = "Of a matrix or an operator take trace, frobenius_norm, eigsh, logdet, diagonal or spectral_density."
    raise TypeError(f"{name} must be an objective such as EmpiricalRisk; got {type(value).__name__}. {mend}")
