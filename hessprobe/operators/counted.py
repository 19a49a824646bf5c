"""Counting products where they happen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from hessprobe.operators.base import LinearOperator, SampledTrace
from hessprobe.vectors import ParameterLayout


@dataclass
class Tally:
    """A running number of products; ``products`` may be fractional after passes over part of the terms."""

    products: float = 0.0


@dataclass
class Counted(LinearOperator):
    """An operator that counts: one for each vector multiplied by all of A, 1/n_terms for each by one term.

    Products with the surrogate and the cost of its exact diagonal go to the same tally.

    Attributes:
        inner: the operator that does the work.
        tally: where products are counted; shared with everything derived from this operator.
        share: what one product counts.
    """

    inner: LinearOperator
    tally: Tally = field(default_factory=Tally)
    share: float = 1.0

    def __post_init__(self) -> None:
        self.dim, self.dtype, self.device = self.inner.dim, self.inner.dtype, self.inner.device
        self.psd, self.n_terms, self.is_exact = self.inner.psd, self.inner.n_terms, self.inner.is_exact
        self.cheap_forms = self.inner.cheap_forms

    @property
    def matvec_count(self) -> float:
        """Products so far."""
        return self.tally.products

    @property
    def surrogate(self) -> LinearOperator | None:
        """The inner surrogate, counted in the same tally."""
        surrogate = self.inner.surrogate
        return None if surrogate is None else Counted(surrogate, self.tally, self.share)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self.inner.blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the inner operator."""
        return self.inner.layout

    def _matvecs(self, V: Tensor) -> Tensor:
        self.tally.products += self.share * V.shape[0]
        return self.inner.matvecs(V)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v a row; each counts as one product."""
        self.tally.products += self.share * V.shape[0]
        return self.inner.quadratic_forms(V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the inner terms, counted in the same tally."""
        for weight, term in self.inner.terms():
            yield weight, Counted(term, self.tally, self.share / self.n_terms)

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, counted in the same tally."""
        inner = self.inner.grouped(count)
        return self if inner is self.inner else Counted(inner, self.tally, self.share)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the inner exact diagonal; its cost goes to the tally."""
        known = self.inner.exact_diagonal()
        if known is not None:
            self.tally.products += known[1] * self.share
        return known

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return those of the inner operator."""
        return self.inner.group_traces()

    def exact_diagonal_cost(self) -> float:
        """Return the inner cost, in the products counted here."""
        return self.inner.exact_diagonal_cost() * self.share

    def cost_of(self, work: str) -> float:
        """Return that of the inner operator."""
        return self.inner.cost_of(work)

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return the inner estimate; its cost goes to the tally."""
        found = self.inner.sampled_trace(draws, seed)
        if found is not None:
            self.tally.products += found.cost * self.share
        return found
