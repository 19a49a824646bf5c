"""A curvature matrix whose terms are groups of examples, for the error that comes from the data being a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.chunked import Chunked
from hessprobe.hvp.engine import Engine, Product
from hessprobe.hvp.memory import MemoryBudget
from hessprobe.hvp.pool import ProductPool
from hessprobe.hvp.term import BatchOperator
from hessprobe.hvp.verification import require_own_product, require_symmetric
from hessprobe.objective.groups import GroupedObjective
from hessprobe.operators.base import LinearOperator
from hessprobe.operators.sampled import SampledTrace

# Engines tried in place of one that records each shape of a batch, which takes longer than a few products.
_DIFFERENCES = "finite_difference"
_UNRECORDED = {"linearized": ("double_backward", "forward_over_reverse")}


class ByGroups(LinearOperator):
    """The same matrix as ``parent``, and made by it; only ``terms`` are finer.

    Products of the groups are not kept: they serve one pass each.

    Args:
        parent: the matrix.
        objective: its groups of examples.
        count: groups that were asked for.
        engines: the engines of such a matrix, by name.
        engine: returns that of the parent, once its first product has shown that it is right.
        budget: bytes that a product may take.
    """

    def __init__(
        self,
        parent: LinearOperator,
        objective: GroupedObjective,
        count: int,
        engines: Mapping[str, Callable[[], Engine]],
        engine: Callable[[], Engine],
        budget: int,
    ) -> None:
        self._parent, self._count = parent, count
        self.dim, self.dtype, self.device = parent.dim, parent.dtype, parent.device
        self.psd, self.n_terms = parent.psd, objective.n_terms
        # Known traces need no product, and no engine.
        self._of_parent, self._names, self._verified = engine, list[str](), False
        self._engines, self._budget, self._layout = engines, budget, objective.layout
        self._chosen: Engine | None = None
        self._pool = ProductPool(objective, self._make, MemoryBudget(1, parent.device))

    @property
    def is_exact(self) -> bool:  # type: ignore[override]  # known once the engine is
        """That of the parent."""
        return self._parent.is_exact

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the parent."""
        return self._parent.blocks

    @property
    def surrogate(self) -> LinearOperator | None:
        """That of the parent by the same groups; None where it has others."""
        twin = self._parent.surrogate
        finer = None if twin is None else twin.grouped(self._count)
        return finer if finer is not None and finer.n_terms == self.n_terms else None

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._parent.matvecs(V)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v a row, as the parent makes them."""
        return self._parent.quadratic_forms(V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield each group's weight and matrix."""
        # Before the data are read: the first product of the parent reads them too.
        self._names = self._names or self._candidates()
        for index, (weight, product) in enumerate(self._pool):
            yield weight, BatchOperator(product, self._pool, self, index)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return that of the parent."""
        return self._parent.exact_diagonal()

    def exact_diagonal_cost(self) -> float:
        """Return that of the parent."""
        return self._parent.exact_diagonal_cost()

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return those of the parent."""
        return self._parent.group_traces()

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return that of the parent."""
        return self._parent.sampled_trace(draws, seed)

    def _candidates(self) -> list[str]:
        """Return the engines to try, that of the parent first."""
        own = self._of_parent().name
        self._verified = own not in _UNRECORDED
        found = [name for name in _UNRECORDED.get(own, (own,)) if name in self._engines]
        return [*found, _DIFFERENCES] if own in _UNRECORDED and _DIFFERENCES in self._engines else found

    def _make(self, batch: object, theta: Tensor) -> Product:
        while True:
            engine = self._chosen or Chunked(self._engines[self._names[0]](), self._budget)
            try:
                product = engine(batch, theta)  # type: ignore[arg-type]  # a batch loss
                if not self._verified and engine.is_exact:
                    require_symmetric(product, theta)
                    if _DIFFERENCES in self._engines:
                        require_own_product(product, batch, theta, self._layout.slices)  # type: ignore[arg-type]
            except UnsupportedError:
                if self._chosen is not None or len(self._names) == 1:
                    raise
                del self._names[0]
                continue
            self._chosen, self._verified = engine, True
            return product
