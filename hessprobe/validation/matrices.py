"""Matrices with chosen eigenvalues, as operators that give nothing but products: the truth behind the estimators.

A Gauss rule from the moments of its measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hessprobe.operators import LinearOperator

SPECTRA = ("outliers", "flat", "indefinite", "decaying")

# Two ends of a network's Hessian: a few large eigenvalues, some negative, over a narrow bulk.
_OUTLIERS = (50.0, 40.0, 30.0, 25.0, 20.0, 15.0, 10.0, 8.0, -2.0, -3.0)


class Hidden(LinearOperator):
    """sum_b c_b A_b of dense matrices that do not tell their diagonals, so that estimators have to sample.

    Args:
        matrices: (B, d, d), or (d, d) for a single one.
        weights: c_b; 1/B each by default.
        blocks: named slices of 0..d-1.
        psd: claim that the sum is positive semidefinite.
        surrogate: a near operator of as many terms with the same weights.
        knows_diagonal: tell the diagonal after all, at two products: for a surrogate.
    """

    def __init__(
        self,
        matrices: Tensor,
        weights: Sequence[float] | None = None,
        *,
        blocks: dict[str, slice] | None = None,
        psd: bool = False,
        surrogate: Hidden | None = None,
        knows_diagonal: bool = False,
    ) -> None:
        self._blocks, self.psd, self._surrogate, self._knows = dict(blocks or {}), psd, surrogate, knows_diagonal
        self.matrices = matrices if matrices.ndim == 3 else matrices[None]
        self.n_terms, self.dim = self.matrices.shape[:2]
        self.dtype, self.device = matrices.dtype, matrices.device
        self.weights = tuple(weights) if weights is not None else (1 / self.n_terms,) * self.n_terms
        self.total = torch.einsum("b,bij->ij", torch.tensor(self.weights, dtype=self.dtype), self.matrices)

    @property
    def surrogate(self) -> Hidden | None:
        """As given."""
        return self._surrogate

    @property
    def blocks(self) -> dict[str, slice]:
        """As given."""
        return self._blocks

    def _matvecs(self, V: Tensor) -> Tensor:
        return V @ self.total

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the diagonal where it is told."""
        return (self.total.diagonal().double(), 2.0) if self._knows else None

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the matrices; the operator itself where there is one."""
        if self.n_terms == 1:
            yield 1.0, self
            return
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            yield weight, Hidden(matrix)


def eigenvalues(kind: str, dim: int) -> Tensor:
    """Return the eigenvalues of a named spectrum, fp64 (dim,), ascending, always the same.

    Args:
        kind: of ``SPECTRA``: ten outliers from -3 to 50 over a normal bulk of width 0.15; ``"flat"``, 1 +- 0.3;
            ``"indefinite"``, standard normal; ``"decaying"``, 10 i^(-3/2).
        dim: d, at least 20.

    Raises:
        ValueError: another name.
    """
    if kind not in SPECTRA:
        raise ValueError(f"kind must be one of {', '.join(SPECTRA)}; got {kind!r}. Choose one of them.")
    # A bulk of its own for each: the same one shifted would be the same test for most estimators.
    generator = torch.Generator().manual_seed(11 + SPECTRA.index(kind))
    normal = torch.randn(dim, generator=generator, dtype=torch.float64)
    if kind == "outliers":
        values = torch.cat([torch.tensor(_OUTLIERS, dtype=torch.float64), 0.15 * normal[len(_OUTLIERS) :]])
    elif kind == "flat":
        values = 1.0 + 0.3 * normal.clamp(-2.5, 2.5)
    elif kind == "indefinite":
        values = normal
    else:
        values = 10.0 * torch.arange(1, dim + 1, dtype=torch.float64) ** -1.5
    ascending: Tensor = values.sort().values
    return ascending


def rotated(values: Tensor, seed: int = 5) -> Tensor:
    """Return Q diag(values) Q^T, exactly symmetric, for a random orthogonal Q that is a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    matrix = (basis * values.double()) @ basis.T
    symmetric: Tensor = (matrix + matrix.T) / 2
    return symmetric


def named(kind: str, dim: int) -> Hidden:
    """Return the operator of a named spectrum in a random basis."""
    return Hidden(rotated(eigenvalues(kind, dim)))


def leading(matrix: Tensor, count: int, blur: float = 0.0) -> Tensor:
    """Return the eigenvectors of the ``count`` eigenvalues of largest magnitude as rows, blurred by fixed noise.

    Args:
        matrix: (d, d).
        count: how many.
        blur: size of the noise added to each unit vector.
    """
    values, vectors = torch.linalg.eigh(matrix)
    rows: Tensor = vectors[:, values.abs().argsort(descending=True)[:count]].T
    generator = torch.Generator().manual_seed(13)
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    return rows + noise * (blur / math.sqrt(rows.shape[1]))


def gauss_from_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the n nodes, ascending, and weights of the Gauss rule with moments mu_0, ..., mu_{2n-1}.

    With H_0 = (mu_{i+j}) = L L^T and H_1 = (mu_{i+j+1}), the Jacobi matrix is L^{-1} H_1 L^{-T}; a weight is mu_0
    times the squared first component of an eigenvector. Differentiable in the moments where the nodes differ. Errors
    of the moments grow exponentially with n.

    Args:
        moments: (2n,) fp64, of a measure with at least n points.

    Raises:
        torch.linalg.LinAlgError: the measure has fewer points, to rounding.

    References:
        Golub, Welsch (1969), "Calculation of Gauss quadrature rules".
    """
    n = len(moments) // 2
    index = torch.arange(n)
    where = index[:, None] + index
    factor = torch.linalg.cholesky(moments[where])
    half = torch.linalg.solve_triangular(factor, moments[where + 1], upper=False)
    jacobi = torch.linalg.solve_triangular(factor, half.T, upper=False)
    nodes, vectors = torch.linalg.eigh((jacobi + jacobi.T) / 2)
    return nodes, moments[0] * vectors[0] ** 2
