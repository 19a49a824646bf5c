"""An operator in other coordinates of the same entries: P^T A P for a permutation P."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hessprobe.operators.base import LinearOperator


class Reordered(LinearOperator):
    """P^T A P with (P v)_i = v_{order[i]}: where theta' = P theta are permuted parameters, A' in the order of theta.

    Args:
        inner: A.
        order: (d,) integers, each of 0 .. d-1 once.

    Raises:
        ValueError: another shape, or no permutation.
    """

    def __init__(self, inner: LinearOperator, order: Tensor) -> None:
        if order.shape != (inner.dim,) or not torch.equal(order.sort().values.cpu(), torch.arange(inner.dim)):
            raise ValueError(
                f"order must hold each of 0 .. {inner.dim - 1} once; got shape {tuple(order.shape)}. "
                "Use torch.randperm."
            )
        self._inner, self._order = inner, order.to(inner.device)
        self.dim, self.dtype, self.device = inner.dim, inner.dtype, inner.device
        self.psd, self.n_terms, self.is_exact = inner.psd, inner.n_terms, inner.is_exact
        self.draws = tuple(Reordered(drawn, order) for drawn in inner.draws)

    def _matvecs(self, V: Tensor) -> Tensor:
        products = torch.empty_like(V)
        products[:, self._order] = self._inner.matvecs(V[:, self._order])
        return products

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T P^T A P v a row."""
        return self._inner.quadratic_forms(V[:, self._order])

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, reordered."""
        inner = self._inner.grouped(count)
        return self if inner is self._inner else Reordered(inner, self._order)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the inner terms, each reordered."""
        for weight, term in self._inner.terms():
            yield weight, Reordered(term, self._order)
