"""Operators made of operators: linear combinations, shifts, projections, blocks, congruences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.operators.base import LinearOperator, SampledTrace
from hessprobe.vectors import combine, gram


class Combination(LinearOperator):
    """sum_i c_i A_i.

    When all A_i are sums over the same terms (the Hessian and the Gauss-Newton matrix of one risk), so is the result.

    Args:
        operators: at least one, all of the same dimension, dtype and device.
        coefficients: one finite number an operator.

    Raises:
        ValueError: different sizes, dtypes or devices, or not one coefficient an operator.
    """

    def __init__(self, operators: Sequence[LinearOperator], coefficients: Sequence[float]) -> None:
        if not operators or len(operators) != len(coefficients):
            raise ValueError(
                f"operators must be as many as coefficients and at least one; got {len(operators)} and "
                f"{len(coefficients)}. Give one coefficient for each operator."
            )
        first = operators[0]
        for other in operators[1:]:
            if (other.dim, other.dtype, other.device) != (first.dim, first.dtype, first.device):
                raise ValueError(
                    f"operators must share dimension, dtype and device; got ({first.dim}, {first.dtype}, "
                    f"{first.device}) and ({other.dim}, {other.dtype}, {other.device}). Make them from the same risk."
                )
        self._operators = tuple(operators)
        self._coefficients = tuple(checks.real("coefficient", c) for c in coefficients)
        self.dim, self.dtype, self.device = first.dim, first.dtype, first.device
        self.psd = all(A.psd and c >= 0 for A, c in zip(operators, coefficients, strict=True))
        self.is_exact = all(A.is_exact for A in operators)
        self.n_terms = first.n_terms if all(A.n_terms == first.n_terms for A in operators) else 1

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the first operator."""
        return self._operators[0].blocks

    def _matvecs(self, V: Tensor) -> Tensor:
        total = torch.zeros_like(V)
        for A, coefficient in zip(self._operators, self._coefficients, strict=True):
            total.add_(A.matvecs(V), alpha=coefficient)
        return total

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v a row, through each operator's own quadratic forms (cheaper than products for some)."""
        total = torch.zeros(V.shape[0], dtype=torch.float64, device=V.device)
        for A, coefficient in zip(self._operators, self._coefficients, strict=True):
            total.add_(A.quadratic_forms(V), alpha=coefficient)
        return total

    def grouped(self, count: int) -> LinearOperator:
        """Return the same combination of the operators by groups, where all of them have the same ones."""
        operators = [A.grouped(count) for A in self._operators]
        if any(A.n_terms != operators[0].n_terms or A.n_terms == 1 for A in operators):
            return self
        same = all(A is B for A, B in zip(operators, self._operators, strict=True))
        return self if same else Combination(operators, self._coefficients)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield combined terms where all operators have the same ones, else the operator itself."""
        if self.n_terms == 1:
            yield 1.0, self
            return
        for pairs in zip(*(A.terms() for A in self._operators), strict=True):
            weights = [weight for weight, _ in pairs]
            scaled = [c * w / weights[0] for c, w in zip(self._coefficients, weights, strict=True)]
            yield weights[0], Combination([term for _, term in pairs], scaled)


class Shifted(LinearOperator):
    """A + s I for a finite real s."""

    def __init__(self, inner: LinearOperator, shift: float) -> None:
        self._inner, self.shift = inner, checks.real("shift", shift)
        self.dim, self.dtype, self.device = inner.dim, inner.dtype, inner.device
        self.psd, self.is_exact = inner.psd and shift >= 0, inner.is_exact

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self._inner.blocks

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._inner.matvecs(V).add(V, alpha=self.shift)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the inner diagonal, shifted."""
        known = self._inner.exact_diagonal()
        return None if known is None else (known[0] + self.shift, known[1])


class Deflated(LinearOperator):
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
        self.psd, self.n_terms, self.is_exact = inner.psd, inner.n_terms, inner.is_exact

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self._inner.blocks

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


class Block(LinearOperator):
    """The principal submatrix A[s, s] for one slice s (one layer's curvature)."""

    def __init__(self, inner: LinearOperator, where: slice) -> None:
        start, stop, step = where.indices(inner.dim)
        if step != 1 or not start < stop:
            raise ValueError(
                f"where must be a contiguous, non-empty slice of 0..{inner.dim}; got {where}. Use slice(a, b)."
            )
        self._inner, self._where = inner, slice(start, stop)
        self.dim, self.dtype, self.device = stop - start, inner.dtype, inner.device
        self.psd, self.n_terms, self.is_exact = inner.psd, inner.n_terms, inner.is_exact

    def _matvecs(self, V: Tensor) -> Tensor:
        wide = V.new_zeros(V.shape[0], self._inner.dim)
        wide[:, self._where] = V
        return self._inner.matvecs(wide)[:, self._where].contiguous()

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, the same block."""
        inner = self._inner.grouped(count)
        return self if inner is self._inner else Block(inner, self._where)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the same block of every inner term."""
        for weight, term in self._inner.terms():
            yield weight, Block(term, self._where)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return that part of the inner diagonal."""
        known = self._inner.exact_diagonal()
        return None if known is None else (known[0][self._where], known[1])


class BlockDiagonal(LinearOperator):
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
        self.psd, self.n_terms, self.is_exact = inner.psd, inner.n_terms, inner.is_exact

    @property
    def surrogate(self) -> LinearOperator | None:
        """The block diagonal of the inner surrogate."""
        surrogate = self._inner.surrogate
        return None if surrogate is None else BlockDiagonal(surrogate, self.groups)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self._inner.blocks

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

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return the inner estimate: both traces agree."""
        return self._inner.sampled_trace(draws, seed)

    def _parts(self, V: Tensor) -> Tensor:
        """Return E_g v for every group g and row v, (groups * k, d), group by group."""
        parts = V.new_zeros(len(self.groups), *V.shape)
        for i, group in enumerate(self.groups):
            parts[i, :, group] = V[:, group]
        return parts.flatten(0, 1)


class Congruence(LinearOperator):
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
        self.psd, self.n_terms, self.is_exact = inner.psd, inner.n_terms, inner.is_exact

    @property
    def surrogate(self) -> LinearOperator | None:
        """C S C for the inner surrogate S."""
        surrogate = self._inner.surrogate
        return None if surrogate is None else Congruence(surrogate, self.scale)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self._inner.blocks

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
