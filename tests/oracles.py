"""Dense float64 oracles: matrices with chosen eigenvalues."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hessprobe.operators import LinearOperator

SPECTRA = ("outliers", "flat", "indefinite", "decaying")


def eigenvalues(kind: str, dim: int = 200) -> Tensor:
    """Return the eigenvalues of a named spectrum, fp64 (dim,), ascending."""
    generator = torch.Generator().manual_seed(7)
    bulk = torch.randn(dim, generator=generator, dtype=torch.float64)
    if kind == "outliers":
        values = 0.15 * bulk
        values[:10] = torch.tensor([50, 40, 30, 25, 20, 15, 10, 8, -2, -3], dtype=torch.float64)
    elif kind == "flat":
        values = 1.0 + 0.3 * bulk.clamp(-2.5, 2.5)
    elif kind == "indefinite":
        values = bulk
    elif kind == "decaying":
        values = 10.0 * torch.arange(1, dim + 1, dtype=torch.float64) ** -1.5
    else:
        raise ValueError(kind)
    return values.sort().values


def drawn_spectrum(seed: int, dim: int, *, psd: bool) -> Tensor:
    """Eigenvalues of one of many families: power laws of any rate, outliers, zeros, of either sign."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    values = torch.arange(1, dim + 1, dtype=torch.float64) ** -uniform(0.0, 4.0)
    values = values * (1 + uniform(0.0, 1.0) * torch.rand(dim, generator=generator, dtype=torch.float64))
    values[: int(uniform(0, 6))] *= 10 ** uniform(0.0, 3.0)
    values[dim - int(uniform(0, dim / 2)) :] = 0.0
    signs = 1 - 2 * (torch.rand(dim, generator=generator) < uniform(0.0, 0.7)).double()
    return (values if psd else values * signs).sort().values


def symmetric(values: Tensor, seed: int = 3) -> Tensor:
    """Return Q diag(values) Q^T for a random orthogonal Q, exactly symmetric."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    matrix = (basis * values.to(torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2


class SumOperator(LinearOperator):
    """A weighted sum of dense terms, with an optional surrogate of matching terms; counts its passes over the terms."""

    def __init__(
        self,
        matrices: Tensor,
        weights: Tensor | None = None,
        surrogate: SumOperator | None = None,
        blocks: dict[str, slice] | None = None,
        knows_diagonal: bool = False,
    ) -> None:
        self.matrices = matrices
        self.n_terms, self.dim = matrices.shape[0], matrices.shape[1]
        self.weights = torch.full((self.n_terms,), 1 / self.n_terms).double() if weights is None else weights.double()
        self.dtype, self.device = matrices.dtype, matrices.device
        self.total = torch.einsum("b,bij->ij", self.weights.to(matrices.dtype), matrices)
        self._surrogate, self._blocks, self._knows = surrogate, dict(blocks or {}), knows_diagonal
        self.passes = 0

    @property
    def surrogate(self) -> SumOperator | None:
        return self._surrogate

    @property
    def blocks(self) -> dict[str, slice]:
        return self._blocks

    def _matvecs(self, V: Tensor) -> Tensor:
        return V @ self.total

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        self.passes += 1
        for weight, matrix in zip(self.weights.tolist(), self.matrices, strict=True):
            yield weight, Plain(matrix)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        return (self.total.diagonal().double(), 2.0) if self._knows else None


class Plain(LinearOperator):
    """A dense matrix that does not know its diagonal, so that estimators must sample it."""

    def __init__(self, matrix: Tensor, blocks: dict[str, slice] | None = None) -> None:
        self.matrix, self._blocks = matrix, dict(blocks or {})
        self.dim, self.dtype, self.device = matrix.shape[0], matrix.dtype, matrix.device

    @property
    def blocks(self) -> dict[str, slice]:
        return self._blocks

    def _matvecs(self, V: Tensor) -> Tensor:
        return V @ self.matrix
