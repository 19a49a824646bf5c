"""Operators made of one operator: shifts, projections, block diagonals, congruences.

An operator in other coordinates of the same entries: P^T A P for a permutation P.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.operators.base import LinearOperator, SampledTrace, Wrapper
from hessprobe.vectors import ParameterLayout, combine, gram, row_dots


class Shifted(Wrapper):
    """A + s I for a finite real s; a sum over the same terms as A, whose weights add up to 1."""

    def __init__(self, inner: LinearOperator, shift: float) -> None:
        self._inner, self.shift = inner, checks.real("shift", shift)
        self.dim, self.dtype, self.device = inner.dim, inner.dtype, inner.device
        self.psd = inner.psd and self.shift >= 0
        self.cheap_forms, self.n_terms = inner.cheap_forms, inner.n_terms
        self.draws = tuple(Shifted(drawn, shift) for drawn in inner.draws)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self._inner.blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the inner operator."""
        return self._inner.layout

    @property
    def surrogate(self) -> LinearOperator | None:
        """The inner surrogate, shifted."""
        surrogate = self._inner.surrogate
        return None if surrogate is None else Shifted(surrogate, self.shift)

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._inner.matvecs(V).add(V, alpha=self.shift)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v + s v^T v a row, through the inner forms."""
        return self._inner.quadratic_forms(V) + self.shift * row_dots(V, V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the inner terms, each shifted."""
        for weight, term in self._inner.terms():
            yield weight, Shifted(term, self.shift)

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, shifted."""
        inner = self._inner.grouped(count)
        return self if inner is self._inner else Shifted(inner, self.shift)

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return those of the inner operator, shifted."""
        known = self._inner.group_traces()
        return None if known is None else (known[0], known[1] + self.shift * self.dim)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the inner diagonal, shifted."""
        known = self._inner.exact_diagonal()
        return None if known is None else (known[0] + self.shift, known[1])

    def exact_diagonal_cost(self) -> float:
        """Return that of the inner diagonal."""
        return self._inner.exact_diagonal_cost()

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return the inner estimate, shifted by s d."""
        found = self._inner.sampled_trace(draws, seed)
        return None if found is None else replace(found, value=found.value + self.shift * self.dim)


class Deflated(Wrapper):
    """P A P with P = I - Q^T Q, for orthonormal rows Q (k, d), 0 <= k < d.

    Raises:
        ValueError: rows that are not orthonormal to 1e-3, or as many as the dimension.
    """

    def __init__(self, inner: LinearOperator, basis: Tensor) -> None:
        if basis.ndim != 2 or basis.shape[1] != inner.dim or basis.shape[0] >= inner.dim:
            raise ValueError(
                f"basis must have shape (k, {inner.dim}) with k < {inner.dim}; got {tuple(basis.shape)}. "
                "One vector a row."
            )
        defect = float(
            (gram(basis, basis) - torch.eye(len(basis), dtype=torch.float64, device=basis.device)).abs().sum()
        )
        if not defect < 1e-3:
            raise ValueError(f"basis must have orthonormal rows; got |Q Q^T - I| = {defect:g}. Use orthonormal_rows.")
        self._inner, self.basis = inner, basis
        self.dim, self.dtype, self.device = inner.dim, inner.dtype, inner.device
        self.psd, self.n_terms = inner.psd, inner.n_terms
        self.draws = tuple(Deflated(drawn, basis) for drawn in inner.draws)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self._inner.blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the inner operator."""
        return self._inner.layout

    def project(self, V: Tensor) -> Tensor:
        """Return P v for every row v of ``V`` (k, d)."""
        return V - combine(gram(V, self.basis), self.basis)

    def _matvecs(self, V: Tensor) -> Tensor:
        return self.project(self._inner.matvecs(self.project(V)))

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T P A P v a row."""
        return self._inner.quadratic_forms(self.project(V))

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, deflated."""
        inner = self._inner.grouped(count)
        return self if inner is self._inner else Deflated(inner, self.basis)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the inner terms, each deflated."""
        for weight, term in self._inner.terms():
            yield weight, Deflated(term, self.basis)


class BlockDiagonal(Wrapper):
    """The block diagonal of A: sum_g E_g A E_g, E_g the projection on group g of coordinates.

    Trace and diagonal are those of A; what lies between groups is gone, and with it its share of their estimators'
    variance. A product costs one product with A a group.

    Args:
        inner: A.
        groups: contiguous slices that cover 0..d-1 once, in order.

    Raises:
        ValueError: slices that do not.
    """

    def __init__(self, inner: LinearOperator, groups: Sequence[slice]) -> None:
        edges = [0, *(group.stop for group in groups)]
        if [group.start for group in groups] != edges[:-1] or edges[-1] != inner.dim:
            raise ValueError(
                f"groups must cover 0..{inner.dim} once, in order; got {list(groups)}. Merge or split them."
            )
        self._inner, self.groups = inner, tuple(groups)
        self.dim, self.dtype, self.device = inner.dim, inner.dtype, inner.device
        self.psd, self.n_terms = inner.psd, inner.n_terms
        self.draws = tuple(BlockDiagonal(drawn, groups) for drawn in inner.draws)

    @property
    def surrogate(self) -> LinearOperator | None:
        """The block diagonal of the inner surrogate."""
        surrogate = self._inner.surrogate
        return None if surrogate is None else BlockDiagonal(surrogate, self.groups)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self._inner.blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the inner operator."""
        return self._inner.layout

    def _matvecs(self, V: Tensor) -> Tensor:
        products = self._inner.matvecs(self._parts(V)).view(len(self.groups), *V.shape)
        return torch.cat([products[i, :, group] for i, group in enumerate(self.groups)], dim=1)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return sum_g (E_g v)^T A (E_g v) a row."""
        return self._inner.quadratic_forms(self._parts(V)).view(len(self.groups), len(V)).sum(0)

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, the same blocks."""
        inner = self._inner.grouped(count)
        return self if inner is self._inner else BlockDiagonal(inner, self.groups)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the block diagonal of every inner term."""
        for weight, term in self._inner.terms():
            yield weight, BlockDiagonal(term, self.groups)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the inner diagonal."""
        return self._inner.exact_diagonal()

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return those of the inner operator, whose diagonal this one has."""
        return self._inner.group_traces()

    def exact_diagonal_cost(self) -> float:
        """Return that of the inner diagonal."""
        return self._inner.exact_diagonal_cost()

    def cost_of(self, work: str) -> float:
        """Return that of the inner operator; of products and forms a group."""
        return self._inner.cost_of(work) * (1 if work == "draw" else len(self.groups))

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return the inner estimate: both traces agree."""
        return self._inner.sampled_trace(draws, seed)

    def _parts(self, V: Tensor) -> Tensor:
        """Return E_g v for every group g and row v, (groups * k, d), group by group."""
        parts = V.new_zeros(len(self.groups), *V.shape)
        for i, group in enumerate(self.groups):
            parts[i, :, group] = V[:, group]
        return parts.flatten(0, 1)


class Congruence(Wrapper):
    """C A C for a diagonal C given by its entries: the curvature in rescaled coordinates (adaptive sharpness).

    Args:
        inner: A.
        scale: (d,) diagonal of C, finite.

    Raises:
        ValueError: wrong shape, or entries that are not finite.
    """

    def __init__(self, inner: LinearOperator, scale: Tensor) -> None:
        if scale.shape != (inner.dim,) or not bool(torch.isfinite(scale).all()):
            raise ValueError(
                f"scale must be finite with shape ({inner.dim},); got shape {tuple(scale.shape)}. One entry a row."
            )
        self._inner, self.scale = inner, scale.to(inner.dtype)
        self.dim, self.dtype, self.device = inner.dim, inner.dtype, inner.device
        self.psd, self.n_terms = inner.psd, inner.n_terms
        self.draws = tuple(Congruence(drawn, scale) for drawn in inner.draws)

    @property
    def surrogate(self) -> LinearOperator | None:
        """C S C for the inner surrogate S."""
        surrogate = self._inner.surrogate
        return None if surrogate is None else Congruence(surrogate, self.scale)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self._inner.blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the inner operator."""
        return self._inner.layout

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._inner.matvecs(V * self.scale) * self.scale

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T C A C v a row."""
        return self._inner.quadratic_forms(V * self.scale)

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, in the rescaled coordinates."""
        inner = self._inner.grouped(count)
        return self if inner is self._inner else Congruence(inner, self.scale)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the inner terms, each in the rescaled coordinates."""
        for weight, term in self._inner.terms():
            yield weight, Congruence(term, self.scale)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the inner diagonal times scale squared."""
        known = self._inner.exact_diagonal()
        return None if known is None else (known[0] * self.scale.double() ** 2, known[1])

    def exact_diagonal_cost(self) -> float:
        """Return that of the inner diagonal."""
        return self._inner.exact_diagonal_cost()


class Reordered(Wrapper):
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
        self.psd, self.n_terms = inner.psd, inner.n_terms
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


class Grouped(Wrapper):
    """P^T A P with named blocks: A in an order of its entries in which groups of them are contiguous.

    What is known of A stays known: its terms, its surrogate, its diagonal, its sampled trace.

    Args:
        inner: A.
        order: (d,) integers, each of 0 .. d-1 once; entry i is that of A at order[i].
        blocks: contiguous slices of the new order by name.

    Raises:
        ValueError: see ``Reordered``.
    """

    def __init__(self, inner: LinearOperator, order: Tensor, blocks: Mapping[str, slice]) -> None:
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        # (P v)_j = v_{inverse[j]} puts entry i where A has it.
        self._plain, self._order, self._blocks = Reordered(inner, inverse), order.to(inner.device), dict(blocks)
        self._inner = inner
        self.dim, self.dtype, self.device = inner.dim, inner.dtype, inner.device
        self.psd, self.n_terms = inner.psd, inner.n_terms
        self.cheap_forms = inner.cheap_forms
        self.draws = tuple(Grouped(drawn, order, blocks) for drawn in inner.draws)

    @property
    def blocks(self) -> dict[str, slice]:
        """The groups."""
        return self._blocks

    @property
    def surrogate(self) -> LinearOperator | None:
        """The inner surrogate in the same order."""
        surrogate = self._inner.surrogate
        return None if surrogate is None else Grouped(surrogate, self._order, self._blocks)

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._plain.matvecs(V)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T P^T A P v a row."""
        return self._plain.quadratic_forms(V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the inner terms, each in the same order."""
        for weight, term in self._inner.terms():
            yield weight, Grouped(term, self._order, self._blocks)

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups of examples, in the same order."""
        inner = self._inner.grouped(count)
        return self if inner is self._inner else Grouped(inner, self._order, self._blocks)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the inner diagonal in the same order."""
        known = self._inner.exact_diagonal()
        return None if known is None else (known[0][self._order], known[1])

    def exact_diagonal_cost(self) -> float:
        """Return that of the inner diagonal."""
        return self._inner.exact_diagonal_cost()

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return those of the inner operator."""
        return self._inner.group_traces()

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return that of the inner operator."""
        return self._inner.sampled_trace(draws, seed)

    def cost_of(self, work: str) -> float:
        """Return that of the inner operator."""
        return self._inner.cost_of(work)
