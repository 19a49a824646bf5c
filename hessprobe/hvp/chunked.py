"""An engine within a memory budget: long blocks of probes, and large batches, are taken in pieces."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from hessprobe.errors import MemoryBudgetError, UnsupportedError
from hessprobe.hvp.engine import Engine, LossFunction, Product
from hessprobe.hvp.memory import words
from hessprobe.objective.base import BatchLoss

# Rows of a block handled at once; more gains nothing (2 + 1/k gradients a probe) and costs k times the activations.
MAX_ROWS = 16


class Chunked:
    """Takes an engine and a budget in bytes; is an engine that respects it.

    A block of probes is cut so that its tangents fit beside what the product keeps. A batch whose product alone is
    larger than the budget is cut into slices, whose products are made one after the other at every call.
    """

    def __init__(self, engine: Engine, budget: int) -> None:
        self._engine, self._budget = engine, budget
        self.name, self.is_exact = engine.name, engine.is_exact

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product.

        Raises:
            MemoryBudgetError: the batch does not fit and cannot be cut.
        """
        product = self._engine(loss, theta)
        if product.nbytes <= self._budget:
            return limit_rows(product, self._rows(product.nbytes))
        pieces = math.ceil(product.nbytes / self._budget)
        return self._sliced(loss, theta, pieces, product.nbytes)

    def _rows(self, nbytes: int) -> int:
        # The tangents of one probe take no more than what is kept of the primal.
        return min(MAX_ROWS, max(1, (self._budget - nbytes) // nbytes)) if nbytes else MAX_ROWS

    def _sliced(self, loss: LossFunction, theta: Tensor, pieces: int, nbytes: int) -> Product:
        slices = _cut(loss, pieces, nbytes, self._budget)
        whole = sum(part.weight for part in slices)
        with torch.no_grad():
            together = float(loss(theta))
            apart = sum(part.weight / whole * float(part(theta)) for part in slices)
        if abs(together - apart) > torch.finfo(theta.dtype).eps ** 0.5 * (abs(together) + abs(apart)):
            raise MemoryBudgetError(
                f"A curvature product of one batch keeps {words(nbytes)}, more than the budget of "
                f"{words(self._budget)}, and cannot be cut: its examples see each other. "
                "Use smaller batches or more memory."
            )

        def apply(V: Tensor) -> Tensor:
            total = torch.zeros_like(V)
            for part in slices:
                total.add_(limit_rows(self._engine(part, theta), 1)(V), alpha=part.weight / whole)
            return total

        return Product(apply)


def limit_rows(product: Product, rows: int) -> Product:
    """Return the product, with blocks of more than ``rows`` probes done ``rows`` at a time."""

    def apply(V: Tensor) -> Tensor:
        if V.shape[0] <= rows:
            return product.apply(V)
        return torch.cat([product.apply(part) for part in V.split(rows)])  # type: ignore[no-untyped-call]

    def forms(V: Tensor) -> Tensor:
        parts = V.split(rows)  # type: ignore[no-untyped-call]
        return torch.cat([product.forms(part) for part in parts])  # type: ignore[misc]  # asked for below

    return replace(product, apply=apply, forms=None if product.forms is None else forms)


def _cut(loss: LossFunction, pieces: int, nbytes: int, budget: int) -> list[BatchLoss]:
    examples = getattr(loss, "examples", 0)
    needs = f"A curvature product of one batch keeps {words(nbytes)}, more than the budget of {words(budget)}"
    if not isinstance(loss, BatchLoss) or examples < pieces:
        raise MemoryBudgetError(
            f"{needs}. Use smaller batches, a larger memory budget, or engine='forward_over_reverse'."
        )
    edges = [round(examples * number / pieces) for number in range(pieces + 1)]
    try:
        return [loss.slice(start, stop) for start, stop in itertools.pairwise(edges)]
    except UnsupportedError as error:
        raise MemoryBudgetError(f"{needs}, and it cannot be cut: {error}") from error
