"""The products of all batches of an objective, kept while the memory budget lasts and made anew beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hessprobe.errors import DataError, NonFiniteError
from hessprobe.hvp import ranks, replay
from hessprobe.hvp.engine import Product, device_clock, fresh_gradient
from hessprobe.hvp.memory import MemoryBudget
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.groups import parts_of
from hessprobe.vectors import row_dots

Maker = Callable[[BatchLoss, Tensor], Product]


@dataclass
class Watch:
    """How many products were asked for, and what they take.

    Attributes:
        look: called before a pass once there have been ``due`` products more than at the last look, at twice as many
            each time.
        rows: vectors multiplied so far.
        seconds: the least time of the products of all batches with one vector, without making them ready.
    """

    look: Callable[[], None] = field(repr=False)
    rows: int = 0
    seconds: float = math.inf
    due: int = 1

    def asked(self) -> None:
        """Look, where that is due."""
        if self.rows >= self.due:
            self.due = 2 * self.rows
            self.look()

    def took(self, seconds: float, rows: int) -> None:
        """Note the time of the products with so many vectors; noise only ever adds."""
        self.seconds = min(self.seconds, seconds / rows)


class ProductPool:
    """Iterates (weight, product) over the batches of a risk, in order.

    Args:
        risk: the objective; its ``theta`` is where curvature is taken.
        make: turns (batch, theta) into a product.
        budget: of the bytes that kept products may hold, perhaps shared with other pools. Products of the leading
            batches are kept until it is spent; once all are kept, the data are not read again.

    Attributes:
        place: what a run that is written down knows the pool by.
        passes: how many passes are under way.
        watch: told of every product, and when one is asked for; None where nobody waits for that.
        made: products and forms so far, with all batches; those of one batch count as its share of their number.
        seconds: the least time of either with one vector and all batches; what was never made is not in it.
    """

    def __init__(self, risk: Objective, make: Maker, budget: MemoryBudget) -> None:
        self.risk = risk
        self.budget = budget
        self._make = make
        self.place = replay.place("pool")
        self._kept: list[tuple[float, Product]] = []
        self._full = False
        # What this rank keeps where several make products together, by the index of the batch: of whole batches for a
        # pass over all, and of its examples of every batch where each is a matrix of its own.
        self._own: dict[int, tuple[float, Product]] = {}
        self._parts: dict[int, tuple[float, Product]] = {}
        self._tried = self._has_forms = False
        self.passes = 0
        self.watch: Watch | None = None
        self.made = {"products": 0.0, "forms": 0.0}
        self.seconds: dict[str, float] = {}

    @property
    def kept(self) -> int:
        """Number of batches whose products are kept."""
        return len(self._kept)

    def took(self, kind: str, seconds: float, rows: int) -> None:
        """Note the time of a pass over all batches with so many vectors; noise only ever adds."""
        self.seconds[kind] = min(self.seconds.get(kind, math.inf), seconds / rows)

    def clear(self) -> None:
        """Keep nothing of what was made; not while a pass is under way."""
        kept = [*self._kept, *self._own.values(), *self._parts.values()]
        self.budget.give_back(sum(product.nbytes for _, product in kept))
        self._kept, self._own, self._parts, self._full = [], {}, {}, False

    def __iter__(self) -> Iterator[tuple[float, Product]]:
        """Yield every batch's weight and product."""
        self.passes += 1
        try:
            yield from self._pass()
        finally:
            self.passes -= 1

    def _pass(self) -> Iterator[tuple[float, Product]]:
        shared = ranks.current()
        if shared is not None:
            with self.context():
                yield from self._parts_of(shared)
            return
        # What another pass keeps meanwhile must not change what this one skips.
        served = list(self._kept)
        yield from served
        if len(served) == self.risk.n_terms:
            return
        with self.context():
            seen = 0
            for index, batch in enumerate(self.risk.terms()):
                seen += 1
                if index < len(served):
                    continue
                if index < len(self._kept):
                    yield self._kept[index]
                    continue
                product = self._make(batch, self.risk.theta)
                if not self._full and index == len(self._kept) and self.budget.take(product.nbytes):
                    self._kept.append((batch.weight, product))
                else:
                    self._full = True
                yield batch.weight, product
            if seen != self.risk.n_terms:
                raise DataError(
                    f"data must give the same batches at every pass; got {seen} after {self.risk.n_terms}. "
                    "Pass a list of batches, or a loader without shuffling."
                )

    def _own_of(self, shared: ranks.Ranks) -> Iterator[tuple[float, Product]]:
        """Yield weight and product of this rank's batches.

        The first batch is made by all before the first pass: there the engine is agreed on and tried.
        """
        for index, batch in enumerate(self.risk.terms()):
            known = self._own.get(index)
            if known is None and (shared.owns(index) or not self._tried):
                known = (batch.weight, self._make(batch, self.risk.theta))
                if shared.owns(index) and self.budget.take(known[1].nbytes):
                    self._own[index] = known
            self._tried = True
            shared.note(index, [getattr(batch, "examples", 1) * shared.owns(index, rank) for rank in shared.all])
            if shared.owns(index) and known is not None:
                yield known

    def _parts_of(self, shared: ranks.Ranks) -> Iterator[tuple[float, Product]]:
        """Yield every batch's weight and product, of which each rank makes the part of its own examples."""
        for index, batch in enumerate(self.risk.terms()):
            if not self._tried:
                # Whole, and by all: there the engine is agreed on and tried.
                self._has_forms = self._make(batch, self.risk.theta).forms is not None
                self._tried = True
            known = self._parts.get(index)
            if known is None:
                known = (batch.weight, self._part(index, batch, shared))
                if self.budget.take(known[1].nbytes):
                    self._parts[index] = known
            yield known

    def _part(self, index: int, batch: BatchLoss, shared: ranks.Ranks) -> Product:
        """Return the product of ``batch``, summed over ranks that cut it between them.

        Where it cannot be cut, as where its examples see each other, every rank makes all of it.
        """
        theta = self.risk.theta
        # Ranks that disagreed would wait for each other.
        edges = shared.agreed(lambda: parts_of(batch, shared.count, theta))
        if not edges:
            return self._make(batch, theta)
        shared.note(index, [stop - start for start, stop in edges] + [0] * (shared.count - len(edges)))
        part = batch.slice(*edges[shared.rank]) if shared.rank < len(edges) else None
        share = part.weight / batch.weight if part is not None and batch.weight else 0.0
        own = self._make(part, theta) if part is not None and share else None

        def apply(V: Tensor) -> Tensor:
            total = torch.zeros_like(V)
            if own is not None:
                own.add_to(total, V, share)
            return shared.summed(total)

        def forms(V: Tensor) -> Tensor:
            found = torch.zeros(len(V), dtype=torch.float64, device=V.device)
            if own is not None:
                found += share * (row_dots(V, own(V)) if own.forms is None else own.forms(V))
            return shared.summed(found)

        return Product(apply, 0 if own is None else own.nbytes, forms if self._has_forms else None)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Evaluate losses and products in here, whatever the caller's grad mode."""
        with torch.inference_mode(False), torch.enable_grad(), self.risk.evaluating():
            yield

    def total(self, V: Tensor) -> Tensor:
        """Return the weighted sum of all products with the rows of ``V``.

        Raises:
            NonFiniteError: the result has nan or inf.
        """
        result = replay.product(self.place, V, lambda: self._sum(V))
        self.made["products"] += len(V)
        if self.watch is not None:
            self.watch.rows += len(V)
        return result

    def _sum(self, V: Tensor) -> Tensor:
        shared, began = ranks.current(), device_clock(V.device)
        with self.context():
            if self.watch is not None:
                self.watch.asked()
            total, spent = torch.zeros_like(V), 0.0
            for weight, product in self if shared is None else self._own_of(shared):
                # Asked for anew: the first product of all decides whether somebody watches.
                start = 0.0 if self.watch is None else device_clock(V.device)
                product.add_to(total, V.detach(), weight)
                spent += 0.0 if self.watch is None else device_clock(V.device) - start
            if self.watch is not None:
                self.watch.took(spent, len(V))
            if shared is not None:
                shared.summed(total)
        self.require_finite(total, V)
        self.took("products", device_clock(V.device) - began, len(V))
        return total

    def require_finite(self, result: Tensor, V: Tensor) -> None:
        """Refuse a product with finite vectors ``V`` that is not finite; the culprit is looked for only then.

        Raises:
            NonFiniteError: names the batch, and the module or the parameter where it starts.
        """
        if bool(torch.isfinite(result).all()) or not bool(torch.isfinite(V).all()):
            return
        self.risk.require_finite_loss()
        look = "Look" if self.risk.dtype == torch.float64 else "Measure in float64, or look"
        raise NonFiniteError(
            f"The curvature product is nan or inf at finite parameters{self._first_gradient()}. "
            f"{look} for sqrt(0), log(0) or 0/0 in the model."
        )

    def _first_gradient(self) -> str:
        """Return where the first gradient that is not finite is, in words; nothing where all are finite."""
        with self.context():
            for index, batch in enumerate(self.risk.terms()):
                gradient = fresh_gradient(batch, self.risk.theta)
                for name, tensor in self.risk.layout.split(gradient).items():
                    if not bool(torch.isfinite(tensor).all()):
                        return f": the gradient of batch {index} is so already in parameter {name!r}"
        return "; the gradients of all batches are finite"
