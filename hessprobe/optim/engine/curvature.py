"""The Hessian of a step's own loss at the live weights, for rules that follow eigenvectors or diagonals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.operators import LinearOperator
from hessprobe.optim.engine.randomness import GlobalState
from hessprobe.optim.engine.tensors import any_sharded, part_of, whole


class ParameterOperator(LinearOperator):
    """An operator on the parameters of a step, flattened one after the other.

    Args:
        parameters: p tensors.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters, self.products = parameters, 0
        self.dim = sum(p.numel() for p in parameters)
        self.dtype, self.device = parameters[0].dtype, parameters[0].device

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return a flat (d,) vector as one tensor a parameter, over the ranks as the parameter is."""
        pieces = torch.split(vector, [p.numel() for p in self._parameters])
        return [part_of(piece.view(p.shape), p) for piece, p in zip(pieces, self._parameters, strict=True)]


def hessian_of(loss: Callable[[], Tensor], parameters: list[Tensor]) -> ParameterOperator:
    """Return the Hessian of ``loss()`` at the live weights, in the form that these parameters allow."""
    return DifferencedHessian(loss, parameters) if any_sharded(parameters) else ClosureHessian(loss, parameters)


class DifferencedHessian(ParameterOperator):
    """H v by a central difference of gradients, (g(w + h v) - g(w - h v))/(2 h), where parameters are sharded.

    ``fully_shard`` gathers them anew in every forward pass and hands out gradients by backward only, so that nothing
    can be differentiated twice. Two gradients a product; vectors are whole, on every rank. norm(h v) is eps^(1/3)
    (1 + norm(w)), for an error of about eps^(2/3) times a third derivative. Every gradient is taken with the same
    random numbers.

    Args:
        loss: forward only, returns the loss with its graph.
        parameters: p tensors; vectors are these, flattened one after the other.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
        super().__init__(parameters)
        self._loss, self._random = loss, GlobalState({p.device for p in parameters})
        size = torch.stack([whole(torch.linalg.vector_norm(p.detach())) for p in parameters]).norm()
        self._length = torch.finfo(self.dtype).eps ** (1 / 3) * (1.0 + float(size))

    def _matvecs(self, V: Tensor) -> Tensor:
        return torch.stack([self._product(v) for v in V]) if len(V) else V.clone()

    def _product(self, vector: Tensor) -> Tensor:
        self.products += 1
        norm = float(vector.norm())
        if norm == 0:
            return torch.zeros_like(vector)
        width = self._length / norm
        with torch.no_grad():
            start, pieces = [p.detach().clone() for p in self._parameters], self.split(vector)
        try:
            ahead, behind = (self._gradient(start, pieces, side) for side in (width, -width))
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, start, strict=True):
                    parameter.copy_(value)
        product: Tensor = (ahead - behind) / (2 * width)
        return product

    def _gradient(self, start: list[Tensor], pieces: list[Tensor], width: float) -> Tensor:
        with torch.no_grad():
            for parameter, value, piece in zip(self._parameters, start, pieces, strict=True):
                parameter.copy_(value.add(piece, alpha=width))
                parameter.grad = None
        self._random.restore()
        with torch.enable_grad():
            torch.autograd.backward(self._loss())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return torch.cat([whole(g.detach()).reshape(-1) for g in grads])


class ClosureHessian(ParameterOperator):
    """H v = grad (g . v) for g = grad of ``loss()`` at the live weights, by differentiating twice.

    The graph of g is built once, at the first product, and kept for as long as the operator lives.

    Args:
        loss: forward only, returns the loss with its graph.
        parameters: p tensors; vectors are these, flattened one after the other.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
        super().__init__(parameters)
        self._loss = loss
        self._slope: list[Tensor] | None = None

    def _matvecs(self, V: Tensor) -> Tensor:
        with torch.enable_grad():
            slope = self._gradient()
            return torch.stack([self._product(slope, v) for v in V]) if len(V) else V.clone()

    def _gradient(self) -> list[Tensor]:
        if self._slope is None:
            value = self._loss()
            if not isinstance(value, Tensor) or not value.requires_grad:
                raise TypeError("loss must return the loss with its graph, without calling backward; it has none.")
            grads = torch.autograd.grad(value, self._parameters, create_graph=True, allow_unused=True)
            if any(g is not None and g.layout is not torch.strided for g in grads):
                raise TypeError(
                    "gradients must be dense where a rule differentiates twice; got sparse ones. Use sparse=False in "
                    "the embedding."
                )
            self._slope = [
                torch.zeros_like(p) if g is None else g for g, p in zip(grads, self._parameters, strict=True)
            ]
        return self._slope

    def _product(self, slope: list[Tensor], vector: Tensor) -> Tensor:
        self.products += 1
        live = [(s, v) for s, v in zip(slope, self.split(vector), strict=True) if s.requires_grad]
        if not live:
            return torch.zeros_like(vector)
        outputs, cotangents = zip(*live, strict=True)
        try:
            columns = torch.autograd.grad(outputs, self._parameters, cotangents, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise UnsupportedError(
                f"The loss has no second derivative here: {error} Use operations that have one (math attention)."
            ) from error
        parts = [torch.zeros_like(p) if c is None else c for c, p in zip(columns, self._parameters, strict=True)]
        return torch.cat([part.reshape(-1) for part in parts])
