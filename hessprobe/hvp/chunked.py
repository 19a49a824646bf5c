"""An engine within a memory budget: long blocks of probes, and large batches, are taken in pieces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hessprobe.errors import MemoryBudgetError, UnsupportedError
from hessprobe.hvp.engine import Engine, LossFunction, Product, batch_bytes, graph_bytes
from hessprobe.hvp.engines import DoubleBackward
from hessprobe.hvp.memory import words
from hessprobe.objective.base import BatchLoss

# Rows of a block handled at once; more gains nothing (2 + 1/k gradients a probe) and costs k times the activations.
MAX_ROWS = 16

# Live bytes of forward over reverse, for the primal and for each probe, in units of what a forward pass saves: forward
# and backward values and a temporary of each.
_WORKING = 4

# Live bytes while a gradient's derivative is recorded, in units of what the graph of the gradient keeps.
_RECORDING = 3

# A budget this many times what a batch takes at most is no reason to measure a second slice.
_AMPLE = 4


class Chunked:
    """Takes an engine and a budget in bytes; is an engine that respects it.

    A block of probes is cut so that its tangents fit beside the rest. A batch whose product alone is larger than the
    budget is cut into slices, whose products are made one after the other at every call. How large a product will be
    is estimated from two small slices of the first batch before any product is made; a batch that cannot be cut is
    known too large in advance where already its forward pass is. An engine that keeps nothing is the last resort: it
    goes down to single examples, and refuses a budget that does not hold the forward pass of one; what cannot be cut
    is taken whole, one probe at a time.
    """

    def __init__(self, engine: Engine, budget: int) -> None:
        self._engine, self._budget = engine, budget
        self.name, self.is_exact = engine.name, engine.is_exact
        self.keeps, self.setup_seconds = engine.keeps, engine.setup_seconds
        # Bytes that a product of n examples takes: fixed + slope * n; None before the first, zeros where unknown.
        self._line: tuple[float, float] | None = None

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product.

        Raises:
            MemoryBudgetError: the batch does not fit and cannot be cut.
        """
        expected = self._expected_bytes(loss, theta)
        if not self.keeps:
            return self._unkept(loss, theta, expected)
        if expected > self._budget:
            return self._sliced(loss, theta, expected)
        product = self._engine(loss, theta)
        nbytes = product.nbytes
        if nbytes <= self._budget:
            # The tangents of one probe take no more than what is kept of the primal.
            return limit_rows(product, lambda: self._rows(nbytes, nbytes))
        self._line = (0.0, nbytes / max(getattr(loss, "examples", 1), 1))
        del product
        return self._sliced(loss, theta, nbytes)

    def _unkept(self, loss: LossFunction, theta: Tensor, expected: int) -> Product:
        if expected > self._budget:
            examples = getattr(loss, "examples", 0)
            if expected > examples * self._budget:
                self._require_one(loss, theta)
            try:
                return self._sliced(loss, theta, min(expected, examples * self._budget) or expected)
            except MemoryBudgetError:
                # Nothing smaller is left to try.
                return limit_rows(self._engine(loss, theta), lambda: 1)

        def rows() -> int:
            one = _WORKING * forward_bytes(loss, theta)
            return self._rows(one, one)

        return limit_rows(self._engine(loss, theta), rows)

    def _require_one(self, loss: LossFunction, theta: Tensor) -> None:
        """Refuse a budget below the forward pass of one example, which every product holds several times."""
        try:
            least = forward_bytes(loss.slice(0, 1), theta) if isinstance(loss, BatchLoss) else 0
        except UnsupportedError:
            return
        if least > self._budget:
            raise MemoryBudgetError(
                f"A curvature product of a single example needs at least {words(least)}, more than the budget of "
                f"{words(self._budget)}. Use a larger memory budget."
            )

    def _rows(self, kept: int, a_row: int) -> int:
        return min(MAX_ROWS, max(1, (self._budget - kept) // a_row)) if a_row else MAX_ROWS

    def _expected_bytes(self, loss: LossFunction, theta: Tensor) -> int:
        """Return about how much a product of ``loss`` takes, a lower bound where the batch cannot be cut."""
        examples = getattr(loss, "examples", 0)
        if self._line is None:
            try:
                self._line = self._measured_line(loss, theta, examples)
            except (UnsupportedError, RuntimeError, ValueError, IndexError, TypeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                # What is wrong with the model is said when the engine meets it.
                self._line = (0.0, 0.0)
        if self._line != (0.0, 0.0):
            return int(self._line[0] + self._line[1] * examples)
        return forward_bytes(loss, theta) if self.keeps else 0

    def _measured_line(self, loss: LossFunction, theta: Tensor, examples: int) -> tuple[float, float]:
        if not isinstance(loss, BatchLoss) or examples < 4:
            return 0.0, 0.0
        one = max(examples // 16, 1)
        small = self._bytes_of(loss.slice(0, one), theta)
        if _AMPLE * small * examples <= one * self._budget:
            # Nothing that does not grow with the examples has to be told apart.
            return 0.0, small / one
        large = self._bytes_of(loss.slice(0, 2 * one), theta)
        slope = max(large - small, 0) / one
        return max(small - slope * one, 0.0), slope

    def _bytes_of(self, part: LossFunction, theta: Tensor) -> int:
        if not self.keeps:
            return 2 * _WORKING * forward_bytes(part, theta)
        if self.setup_seconds:
            # Recording takes seconds, so that it is not tried on slices.
            return _RECORDING * DoubleBackward()(part, theta).nbytes
        return self._engine(part, theta).nbytes

    def _sliced(self, loss: LossFunction, theta: Tensor, nbytes: int) -> Product:
        slices = _cut(loss, math.ceil(nbytes / self._budget), nbytes, self._budget)
        whole = sum(part.weight for part in slices)
        with torch.no_grad():
            together = float(loss(theta))
            apart = sum(part.weight / whole * float(part(theta)) for part in slices)
        if abs(together - apart) > torch.finfo(theta.dtype).eps ** 0.5 * (abs(together) + abs(apart)):
            raise MemoryBudgetError(
                f"A curvature product of one batch keeps {words(nbytes)}, more than the budget of "
                f"{words(self._budget)}, and cannot be cut: its examples see each other. "
                "Use smaller batches, more memory, or engine='forward_over_reverse'."
            )

        def apply(V: Tensor) -> Tensor:
            total = torch.zeros_like(V)
            for part in slices:
                total.add_(limit_rows(self._engine(part, theta), lambda: 1)(V), alpha=part.weight / whole)
            return total

        return Product(apply, batch_bytes(loss))


def forward_bytes(loss: LossFunction, theta: Tensor) -> int:
    """Return the bytes that one forward pass keeps for a gradient, without data and parameters."""
    data = loss.tensors() if isinstance(loss, BatchLoss) else []
    leaf = theta.detach().clone().requires_grad_()
    with torch.enable_grad():
        return graph_bytes(loss(leaf), ignore=[theta, leaf, *data])


def limit_rows(product: Product, rows: Callable[[], int]) -> Product:
    """Return the product, with blocks of more than ``rows()`` probes done that many at a time.

    ``rows`` is asked at the first block of several probes.
    """
    known: list[int] = []

    def parts(V: Tensor) -> tuple[Tensor, ...]:
        if V.shape[0] == 1:
            return (V,)
        if not known:
            known.append(rows())
        return V.split(known[0])  # type: ignore[no-untyped-call, no-any-return]  # untyped in torch

    def apply(V: Tensor) -> Tensor:
        pieces = parts(V)
        return product.apply(V) if len(pieces) == 1 else torch.cat([product.apply(part) for part in pieces])

    def forms(V: Tensor) -> Tensor:
        return torch.cat([product.forms(part) for part in parts(V)])  # type: ignore[misc]  # asked for below

    def add(V: Tensor, total: Tensor, weight: float) -> None:
        pieces = parts(V)
        for part, rows in zip(pieces, total.split([len(piece) for piece in pieces]), strict=True):  # type: ignore[no-untyped-call]  # untyped in torch
            product.add(part, rows, weight)  # type: ignore[misc]  # asked for below

    return replace(
        product,
        apply=apply,
        forms=None if product.forms is None else forms,
        add=None if product.add is None else add,
    )


def _cut(loss: LossFunction, pieces: int, nbytes: int, budget: int) -> list[BatchLoss]:
    examples = getattr(loss, "examples", 0)
    needs = f"A curvature product of one batch keeps {words(nbytes)}, more than the budget of {words(budget)}"
    advice = "Use smaller batches, a larger memory budget, or engine='forward_over_reverse'."
    if not isinstance(loss, BatchLoss) or examples < pieces:
        raise MemoryBudgetError(f"{needs}. {advice}")
    edges = [round(examples * number / pieces) for number in range(pieces + 1)]
    try:
        return [loss.slice(start, stop) for start, stop in itertools.pairwise(edges)]
    except UnsupportedError as error:
        raise MemoryBudgetError(f"{needs}, and it cannot be cut: {error} {advice}") from error
