"""One batch's curvature as an operator of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessprobe.hvp import replay
from hessprobe.hvp.engine import Product, device_clock
from hessprobe.hvp.pool import ProductPool
from hessprobe.operators.base import LinearOperator
from hessprobe.vectors import ParameterLayout


class BatchOperator(LinearOperator):
    """The matrix of one batch; used while the pool that made it is being iterated.

    Args:
        product: of the batch.
        pool: where it comes from.
        parent: the operator that it is a term of.
        index: its position among the terms.
    """

    def __init__(self, product: Product, pool: ProductPool, parent: LinearOperator, index: int) -> None:
        self._product, self._pool, self._parent = product, pool, parent
        self._index = index
        self._place = pool.place and f"{pool.place}-{index}"
        self.dim, self.dtype, self.device = parent.dim, parent.dtype, parent.device
        self.psd, self.is_exact = parent.psd, parent.is_exact

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the whole operator."""
        return self._parent.blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the whole operator."""
        return self._parent.layout

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._counted("products", V, self._place, lambda: self._multiplied(V))

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v a row, by the cheaper way where the product has one."""
        forms = self._product.forms
        if forms is None:
            return super().quadratic_forms(V)

        def make() -> Tensor:
            with self._pool.context():
                return forms(V.detach()).to(torch.float64)

        return self._counted("forms", V, self._place and f"{self._place}-forms", make)

    def _counted(self, kind: str, V: Tensor, place: str, make: Callable[[], Tensor]) -> Tensor:
        pool = self._pool
        pool.made[kind] += len(V) / pool.risk.n_terms
        if self._index:
            return replay.product(place, V, make)
        # The first term stands for all.
        start = device_clock(V.device)
        result = replay.product(place, V, make)
        spent = (device_clock(V.device) - start) * pool.risk.n_terms
        if len(V):
            pool.took(kind, spent, len(V))
        if pool.watch is not None and len(V):
            pool.watch.took(spent, len(V))
            pool.watch.rows += len(V)
        return result

    def _multiplied(self, V: Tensor) -> Tensor:
        with self._pool.context():
            result = self._product(V.detach())
        self._pool.require_finite(result, V)
        return result
