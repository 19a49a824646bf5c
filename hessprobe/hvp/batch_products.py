"""Where an operator gets its products: one engine for all batches, within one memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from hessprobe import checks
from hessprobe.errors import UnsupportedError
from hessprobe.hvp import ranks, replay
from hessprobe.hvp.auto import Choice, choose
from hessprobe.hvp.by_groups import ByGroups
from hessprobe.hvp.chunked import Chunked
from hessprobe.hvp.engine import Engine, Product
from hessprobe.hvp.memory import MemoryBudget
from hessprobe.hvp.pool import ProductPool
from hessprobe.hvp.term import BatchOperator
from hessprobe.hvp.verification import require_own_gradient, require_own_product, require_symmetric
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.groups import GroupedObjective, by_groups
from hessprobe.operators.base import LinearOperator

_DIFFERENCES = "finite_difference"


class BatchProducts:
    """The products of a risk's batches with the engine that was asked for, or chosen on the first batch.

    Args:
        risk: the objective.
        engines: the engines there are, by name.
        engine: ``"auto"`` or one of their names.
        memory: bytes that may be kept between products, or a budget shared with others; None for half of what is free.
        expected_matvecs: about how many products will be asked for.

    Attributes:
        pool: the products.
        budget: their memory.
        choice: what ``"auto"`` decided, None before the first product or with another engine.

    Raises:
        ValueError: unknown engine, or ``memory`` or ``expected_matvecs`` not positive.
    """

    def __init__(
        self,
        risk: Objective,
        engines: Mapping[str, Callable[[], Engine]],
        engine: str,
        memory: int | MemoryBudget | None,
        expected_matvecs: int,
    ) -> None:
        checks.one_of("engine", engine, ("auto", *engines))
        self._risk, self._engines = risk, engines
        self.budget = memory if isinstance(memory, MemoryBudget) else MemoryBudget(memory, risk.device)
        self.expected_matvecs = checks.positive_int("expected_matvecs", expected_matvecs)
        self.choice: Choice | None = None
        self._engine: Engine | None = None
        if engine != "auto":
            self._engine = Chunked(engines[engine](), self.budget.total)
        self._verified = False
        self._groups: dict[int, GroupedObjective | None] = {}
        self.pool = ProductPool(risk, self._make, self.budget)

    @property
    def chosen(self) -> bool:
        """Whether the engine is known."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The engine in use; with ``"auto"`` the first access chooses it."""
        if self._engine is None:
            with self.pool.context():
                return self._choose(next(iter(self._risk.terms())))
        return self._engine

    @property
    def note(self) -> str:
        """Which engine runs, and with ``"auto"`` why the others do not."""
        return self.engine.name if self.choice is None else str(self.choice)

    def terms(self, parent: LinearOperator) -> Iterator[tuple[float, LinearOperator]]:
        """Yield each batch's weight and matrix, as a term of ``parent``."""
        for index, (weight, product) in enumerate(self.pool):
            yield weight, BatchOperator(product, self.pool, parent, index)

    def groups(self, count: int) -> GroupedObjective | None:
        """Return the risk as a sum over about ``count`` groups of examples, or None; see ``by_groups``."""
        if count not in self._groups:
            with self.pool.context():
                self._groups[count] = by_groups(self._risk, count)
        return self._groups[count]

    def grouped(self, parent: LinearOperator, count: int) -> LinearOperator:
        """Return ``parent`` with groups of examples as terms, itself where there are no finer ones."""
        objective = self.groups(count)
        if objective is None:
            return parent
        # Not kept: it holds its parent, whose memory must go when the parent goes.
        return ByGroups(parent, objective, count, self._engines, self._tried, self.budget.total)

    def _tried(self) -> Engine:
        """Return the engine once a product has been made: what that shows to be wrong holds for groups too."""
        if not self._verified:
            next(iter(self.pool))
        return self.engine

    def _make(self, batch: BatchLoss, theta: Tensor) -> Product:
        if not self._verified:
            require_own_gradient(batch, theta)
        engine = self._choose(batch) if self._engine is None else self._engine
        product = engine(batch, theta)
        if not self._verified and engine.is_exact:
            try:
                require_symmetric(product, theta)
                if _DIFFERENCES in self._engines:  # else it is no second derivative, but a Gauss-Newton matrix
                    require_own_product(product, batch, theta, self._risk.layout.slices)
            except UnsupportedError as error:
                return self._differences(batch, theta, error)
        self._verified = True
        return product

    def _differences(self, batch: BatchLoss, theta: Tensor, reason: UnsupportedError) -> Product:
        """Return the product by differences of gradients, where the engine was left open and there is one for them."""
        if self.choice is None or _DIFFERENCES not in self._engines:
            raise reason
        self._engines, self._verified = {_DIFFERENCES: self._engines[_DIFFERENCES]}, True
        self._decide(f"differences-{self.pool.place}", batch, {"exact engines": str(reason)})
        return self.engine(batch, theta)

    def _choose(self, batch: BatchLoss) -> Engine:
        # A run gone through again knows how the engine that it had to begin with has ended.
        if self.pool.place and replay.decided(f"differences-{self.pool.place}"):
            self._engines, self._verified = {_DIFFERENCES: self._engines[_DIFFERENCES]}, True
            return self._decide(f"differences-{self.pool.place}", batch, {})
        return self._decide(f"engine-{self.pool.place}", batch, None)

    def _decide(self, key: str, batch: BatchLoss, reasons: Mapping[str, str] | None) -> Engine:
        """Choose among the engines; two of them differ in the last digits, so that a run gone through again keeps its.

        Args:
            key: of the decision where the run is written down.
            batch: the first one.
            reasons: why others were not taken, where that is known.
        """
        terms, budget = self._risk.n_terms, self.budget.total
        made: list[Choice] = []

        def decide() -> dict[str, Any]:
            made.append(choose(self._engines, batch, self._risk.theta, budget, terms, self.expected_matvecs))
            why = made[0].reasons if reasons is None else reasons
            return {"engine": made[0].engine.name, "seconds": dict(made[0].seconds), "reasons": dict(why)}

        taken = replay.value(key, lambda: ranks.agreed(decide)) if self.pool.place else ranks.agreed(decide)
        self._engine = made[0].engine if made else Chunked(self._engines[taken["engine"]](), budget)
        self.choice = Choice(self._engine, taken["seconds"], taken["reasons"])
        return self._engine
