"""Deflation: known directions are treated exactly, probes see only their complement.

For orthonormal rows V (k, d), P = I - V^T V and T = V A V^T,

    A = P A P + V^T (V A) + (V A)^T V - V^T T V,

so that trace, diagonal and Frobenius norm split into a part known from the k products A v_i and the same functional of
P A P. The split is exact for *any* orthonormal V; how good the vectors are decides the variance that is left, never
the bias. V must be independent of the probes that are used on the complement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import ndtr
from torch import Tensor

from hessprobe import checks
from hessprobe.operators import LinearOperator
from hessprobe.probes import ProbeStream
from hessprobe.vectors import combine, gram, orthonormal_rows, row_dots

# Elements of one block of probes, and of a table of sampled coordinates.
_BLOCK = 1 << 23
_TABLE = 1 << 24
_COORDINATES = 65536


@dataclass(frozen=True)
class Deflation:
    """The products of an operator with k orthonormal directions, and what follows from them.

    Attributes:
        basis: V (k, d), orthonormal rows.
        image: rows A v_i (k, d).
        weights: (B,) weights of the operator's terms.
        term_traces: (B,) tr(V A_b V^T).
        term_overlaps: (B,) <A, A_b> - <P A P, P A_b P>, the deflated part of the inner product.
        matvecs: products it took: k.
        term_compressed: (B, k, k) matrices V A_b V^T, or None where they would fill more than 128 MB.
    """

    basis: Tensor
    image: Tensor
    weights: Tensor
    term_traces: Tensor
    term_overlaps: Tensor
    matvecs: float
    term_compressed: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of directions k."""
        return self.basis.shape[0]

    @property
    def compressed(self) -> Tensor:
        """T = V A V^T, fp64 (k, k)."""
        return gram(self.basis, self.image)

    @property
    def trace(self) -> float:
        """Return tr A - tr(P A P) = tr T."""
        return float(row_dots(self.basis, self.image).sum())

    @property
    def squared_norm(self) -> float:
        """Return ||A||_F^2 - ||P A P||_F^2 = 2 ||A V^T||_F^2 - ||T||_F^2."""
        images = float(row_dots(self.image, self.image).sum())
        return 2 * images - float(self.compressed.square().sum())

    def project(self, V: Tensor) -> Tensor:
        """Return P v for every row v of ``V`` (m, d)."""
        return project(self.basis, V)

    def diagonal(self) -> Tensor:
        """Return the diagonal of A - P A P, fp64 (d,)."""
        inner = combine(self.compressed, self.basis)
        total = torch.zeros(self.basis.shape[1], dtype=torch.float64, device=self.basis.device)
        for direction, image, mixed in zip(self.basis, self.image, inner, strict=True):
            total += direction.double() * (2 * image.double() - mixed.double())
        return total


def project(basis: Tensor | None, V: Tensor) -> Tensor:
    """Return the rows of ``V`` (m, d) without their components along ``basis`` (k, d); ``V`` itself for None."""
    return V if basis is None else V - combine(gram(V, basis), basis)


def block_rows(dim: int) -> int:
    """Return how many probes of ``dim`` entries are multiplied at once: at most 64, and 8 M entries."""
    return max(1, min(64, _BLOCK // dim))


def basis_of(deflate: Any, A: LinearOperator) -> Tensor | None:
    """Return orthonormal rows spanning what the caller gave, in the operator's dtype; None for None or no vectors.

    Args:
        deflate: None, vectors (k, d) one a row, a pair ``(vectors, values)`` (values are not needed and not used), a
            ``Deflation``, or anything with ``.vectors`` (k, d).
        A: the operator they will deflate.

    Raises:
        TypeError: none of these.
        ValueError: wrong shape, more rows than columns, or entries that are not finite.
    """
    if isinstance(deflate, Deflation):
        return deflate.basis
    rows = deflate[0] if isinstance(deflate, tuple) and deflate else getattr(deflate, "vectors", deflate)
    if rows is None:
        return None
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"deflate must be None, vectors (k, d), or have .vectors; got {type(deflate).__name__}. "
            "Pass eigenvectors as rows."
        )
    if rows.ndim != 2 or rows.shape[1] != A.dim or rows.shape[0] > A.dim:
        raise ValueError(
            f"deflate must have shape (k, {A.dim}) with k <= {A.dim}; got {tuple(rows.shape)}. One vector a row."
        )
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("deflate must be finite; got nan or inf. Check how the vectors were made.")
    return orthonormal_rows(rows.to(device=A.device, dtype=A.dtype)) if rows.shape[0] else None


def deflation(A: LinearOperator, vectors: Any, *, seed: int = 0, parts: LinearOperator | None = None) -> Deflation:
    """Multiply ``A`` by given directions once, so that several estimators can deflate them without repeating it.

    Args:
        A: symmetric operator.
        vectors: as ``basis_of`` takes them, at least one; need not be eigenvectors, must not depend on the probes.
        seed: of the coordinate sample behind ``term_overlaps`` (exact where d <= 65,536).
        parts: the same matrix as a sum over other terms, see ``LinearOperator.grouped``, for the data error; A itself
            where None.

    Raises:
        TypeError, ValueError: see ``basis_of``; also no vectors at all.
    """
    basis = basis_of(vectors, A)
    if basis is None:
        raise ValueError("vectors must be at least one; got none. Leave deflation out instead.")
    parts = A if parts is None else parts
    sample = CoordinateSample.plan(parts, basis.shape[0], checks.resolve_seed(seed))
    image = torch.zeros_like(basis)
    weights, compressed, kept = [], [], []
    for weight, term in parts.terms():
        part = torch.cat(
            [term.matvecs(rows) for rows in (basis[a:b] for a, b in blocks_of(len(basis), block_rows(A.dim)))]
        )
        image.add_(part, alpha=weight)
        weights.append(weight)
        compressed.append(gram(basis, part))
        if parts.n_terms > 1:
            kept.append(sample.take(part))
    T = gram(basis, image)
    residual = project(basis, image)
    overlaps = [float((T * T_b).sum()) for T_b in compressed]
    for index, part in enumerate(kept):
        overlaps[index] += 2 * float(sample.dots(sample.take(residual), part).sum())
    return Deflation(
        basis=basis,
        image=image,
        weights=torch.tensor(weights, dtype=torch.float64),
        term_traces=torch.tensor([float(T_b.trace()) for T_b in compressed], dtype=torch.float64),
        term_overlaps=torch.tensor(overlaps, dtype=torch.float64),
        matvecs=float(basis.shape[0]),
        term_compressed=torch.stack(compressed) if len(weights) * len(basis) ** 2 <= _TABLE else None,
    )


@dataclass(frozen=True)
class CoordinateSample:
    """An equidistant sample of coordinates with a random offset a row, for unbiased dot products in little memory.

    Row r keeps coordinates offset_r, offset_r + stride, ...; each coordinate is kept with probability 1/stride, so
    stride times the dot product over kept coordinates is unbiased. All coordinates are kept where stride is 1.

    Attributes:
        index: (rows, width) coordinates.
        mask: (rows, width) 0 where a row has run past the end.
        stride: distance between kept coordinates.
    """

    index: Tensor
    mask: Tensor
    stride: int

    @classmethod
    def plan(cls, A: LinearOperator, rows: int, seed: int, first: int = 0) -> CoordinateSample:
        """Return a sample for ``rows`` rows and all terms of ``A``: 65,536 coordinates a row, 16 M numbers in all."""
        keep = max(64, min(_COORDINATES, _TABLE // max(rows * A.n_terms, 1)))
        stride = next_prime(-(-A.dim // keep)) if A.dim > keep else 1
        stride = min(stride, A.dim)
        uniform = [_uniform(seed, first + row) for row in range(rows)]
        offsets = torch.tensor([min(int(u * stride), stride - 1) for u in uniform], dtype=torch.long)
        index = (offsets[:, None] + stride * torch.arange(-(-A.dim // stride))).to(A.device)
        mask = index < A.dim
        return cls(index.clamp(max=A.dim - 1), mask, stride)

    def take(self, rows: Tensor) -> Tensor:
        """Return the kept coordinates of each row, (rows, width)."""
        return torch.where(self.mask, rows.gather(1, self.index), torch.zeros((), dtype=rows.dtype, device=rows.device))

    def dots(self, left: Tensor, right: Tensor) -> Tensor:
        """Return unbiased estimates of the dot products of rows from kept coordinates, fp64 (rows,)."""
        return row_dots(left, right) * self.stride


def next_prime(value: int) -> int:
    """Return the smallest prime >= ``value``; a prime stride does not beat with the row length of a weight matrix."""
    candidate = max(value, 2)
    while any(candidate % factor == 0 for factor in range(2, math.isqrt(candidate) + 1)):
        candidate += 1
    return candidate


def blocks_of(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of consecutive blocks of at most ``size`` out of ``count``."""
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _uniform(seed: int, index: int) -> float:
    normal = ProbeStream(1, seed=seed, law="gaussian", stream="subset").probe(index)
    return float(ndtr(float(normal)))
