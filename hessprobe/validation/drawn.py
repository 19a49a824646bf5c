"""Symmetric matrices drawn by seed from wide families: spectrum x eigenvectors x couplings x batches.

Every member is fp64, small enough for a dense eigenvalue decomposition, and known to estimators by its products alone.
The truth comes from NumPy and from the matrix itself, never from the code that is examined.

Families of spectra with random parameters: what the eigenvalues of a symmetric matrix may look like.

A family is a function of a random source and a dimension. Its parameters (exponents, gaps, numbers and signs of
outliers, shares of zeros) are drawn anew each time from wide ranges, so that nothing can be tuned to one member.

Orthogonal matrices of several kinds: how the eigenvectors of a matrix may lie to the axes.

The error of an estimator with random signs rests on that as much as on the eigenvalues: a diagonal matrix has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hessprobe.checks import one_of
from hessprobe.validation.matrices import Hidden

Array = NDArray[Any]
Source = np.random.Generator
Family = Callable[[Source, int], Array]


def log_uniform(source: Source, low: float, high: float) -> float:
    """Return a number between ``low`` and ``high`` whose logarithm is uniform."""
    return float(np.exp(source.uniform(np.log(low), np.log(high))))


def _signs(source: Source, count: int) -> Array:
    """Return all +, all - or independent signs: one-sided tails are what a sample does not see."""
    kind = source.integers(3)
    return np.full(count, 1.0 - 2.0 * kind) if kind < 2 else source.choice([-1.0, 1.0], count)


def _flat(source: Source, dim: int) -> Array:
    return 1 + source.uniform(0.01, 0.5) * source.standard_normal(dim).clip(-2.5, 2.5)


def _outliers(source: Source, dim: int) -> Array:
    values = source.standard_normal(dim)
    count = int(source.integers(2, min(13, dim // 3)))
    values[:count] = _signs(source, count) * [log_uniform(source, 10, 1000) for _ in range(count)]
    return values


def _one_outlier(source: Source, dim: int) -> Array:
    values = source.standard_normal(dim)
    values[0] = source.choice([-1.0, 1.0]) * log_uniform(source, 20, 3000)
    return values


def _power_law(source: Source, dim: int) -> Array:
    return _signs(source, dim) * np.arange(1.0, dim + 1) ** -source.uniform(0.5, 3.5)


def _exponential(source: Source, dim: int) -> Array:
    return _signs(source, dim) * np.exp(-np.arange(dim) / log_uniform(source, 1, dim / 2))


def _cluster(source: Source, dim: int) -> Array:
    """One to six eigenvalues at the top with relative gaps of 10 % to 1e-6, over a bulk."""
    count = int(source.integers(2, 7))
    gaps = [log_uniform(source, 1e-6, 0.1) for _ in range(count - 1)]
    top = np.concatenate([[1.0], np.cumprod(1 - np.array(gaps))])
    return np.concatenate([top, source.uniform(-0.2, 0.5) * np.linspace(0, 1, dim - count)])


def _half_zeros(source: Source, dim: int) -> Array:
    values = np.exp(source.uniform(0, 1.5) * source.standard_normal(dim)) * _signs(source, dim)
    values[source.random(dim) < source.uniform(0.3, 0.9)] = 0.0
    values[0] = 1.0  # never all of them
    return values


def _low_rank(source: Source, dim: int) -> Array:
    values = np.zeros(dim)
    rank = int(source.integers(1, 11))
    values[:rank] = _signs(source, rank) * np.exp(source.standard_normal(rank))
    return values


def _pairs(source: Source, dim: int) -> Array:
    half = np.exp(source.uniform(0, 2) * source.standard_normal(dim // 2))
    return np.concatenate([half, -half, np.zeros(dim % 2)])


def _shifted_identity(source: Source, dim: int) -> Array:
    values = 1 + log_uniform(source, 1e-4, 0.1) * source.standard_normal(dim)
    values[: int(source.integers(3))] *= log_uniform(source, 1, 100)
    return values


def _log_normal(source: Source, dim: int) -> Array:
    return np.exp(source.uniform(0.5, 3) * source.standard_normal(dim)) * _signs(source, dim)


def _semicircle(source: Source, dim: int) -> Array:
    rows = source.standard_normal((dim, dim)) / np.sqrt(2 * dim)
    return np.linalg.eigvalsh(rows + rows.T) + source.uniform(-1, 1)


def _marchenko_pastur(source: Source, dim: int) -> Array:
    rows = source.standard_normal((dim, max(int(dim * log_uniform(source, 0.1, 5)), 2)))
    return np.linalg.eigvalsh(rows @ rows.T / rows.shape[1])


def _two_scales(source: Source, dim: int) -> Array:
    values = 1 + 0.1 * source.standard_normal(dim)
    low = source.random(dim) < source.uniform(0.2, 0.9)
    return np.where(low, values * log_uniform(source, 1e-6, 1e-1), values)


def _network(source: Source, dim: int) -> Array:
    """A trained network's: a few outliers, a positive tail that decays, small negative eigenvalues, zeros."""
    values = 0.1 * np.arange(1.0, dim + 1) ** -source.uniform(0.8, 2)
    low = source.random(dim) < 0.4
    values = np.where(low, -log_uniform(source, 1e-3, 1e-1) * values, values)
    values[dim // 2 :] *= source.integers(2)
    count = int(source.integers(1, 11))
    values[:count] = np.exp(0.7 * source.standard_normal(count)) * log_uniform(source, 0.3, 10)
    return values


def _one_direction(source: Source, dim: int) -> Array:
    """The matrix of all ones, nearly: what a basis with signs in place of ones makes of one large eigenvalue."""
    values = log_uniform(source, 1e-6, 1e-2) * source.standard_normal(dim)
    values[0] = float(source.choice([-1.0, 1.0]))
    return values


def _nearly_diagonal(source: Source, dim: int) -> Array:
    return source.uniform(0, 3) + source.standard_normal(dim) * log_uniform(source, 0.1, 3)


FAMILIES: dict[str, Family] = {
    "flat": _flat,
    "outliers": _outliers,
    "one outlier": _one_outlier,
    "power law": _power_law,
    "exponential": _exponential,
    "cluster": _cluster,
    "half zeros": _half_zeros,
    "low rank": _low_rank,
    "pairs": _pairs,
    "shifted identity": _shifted_identity,
    "all ones": _one_direction,
    "log-normal": _log_normal,
    "semicircle": _semicircle,
    "Marchenko-Pastur": _marchenko_pastur,
    "two scales": _two_scales,
    "nearly diagonal": _nearly_diagonal,
    "network": _network,
}


def rotated(source: Source, dim: int) -> Array:
    """Return a uniformly distributed orthogonal matrix (d, d)."""
    basis, upper = np.linalg.qr(source.standard_normal((dim, dim)))
    turned: Array = basis * np.sign(np.diagonal(upper))
    return turned


def blocks(source: Source, dim: int) -> Array:
    """Return rotations inside blocks of 2 to 16 coordinates drawn at random: sparse coupling, localised vectors."""
    basis, order, place = np.zeros((dim, dim)), source.permutation(dim), 0
    while place < dim:
        where = order[place : place + int(source.integers(2, 17))]
        basis[np.ix_(where, where)] = rotated(source, len(where))
        place += len(where)
    return basis


def localised(source: Source, dim: int) -> Array:
    """Return a product of 3 d plane rotations by small angles: each vector has one large entry and a few small ones."""
    basis, size = np.eye(dim), log_uniform(source, 0.02, 0.5)
    for _ in range(3 * dim):
        i, j = source.choice(dim, 2, replace=False)
        angle = size * source.standard_normal()
        c, s = np.cos(angle), np.sin(angle)
        basis[[i, j]] = np.stack([c * basis[i] - s * basis[j], s * basis[i] + c * basis[j]])
    return basis[:, source.permutation(dim)]


def partly(source: Source, dim: int) -> Array:
    """Return a rotation of a random part of the coordinates; the other vectors are axes."""
    basis = np.eye(dim)
    where = source.permutation(dim)[: int(source.integers(2, dim + 1))]
    basis[np.ix_(where, where)] = rotated(source, len(where))
    return basis[:, source.permutation(dim)]


def axes(source: Source, dim: int) -> Array:
    """Return a permutation: the matrix is diagonal, and does not say so."""
    return np.eye(dim)[:, source.permutation(dim)]


def signs(source: Source, dim: int) -> Array:
    """Return an orthogonal matrix whose first vector has entries +-1 / sqrt(d): a reflection times a rotation."""
    first = source.choice([-1.0, 1.0], dim) / np.sqrt(dim)
    basis = np.eye(dim)
    basis[1:, 1:] = rotated(source, dim - 1)
    mirror = first - basis[0]
    # H = I - 2 m m^T / m^T m takes the first axis to the vector of signs.
    reflected: Array = basis - 2 * np.outer(mirror, mirror @ basis) / (mirror @ mirror)
    return reflected


BASES = {"rotated": rotated, "blocks": blocks, "localised": localised, "partly": partly, "axes": axes}
# Uniform rotations half of the time: they are what most of a network's directions look like.
SHARES = (0.5, 0.2, 0.15, 0.1, 0.05)


# Families whose eigenvectors are part of what they are.
_OWN_BASES = {"all ones": "signs", "nearly diagonal": "localised"}
_BASES = {**BASES, "signs": signs}


@dataclass(frozen=True, eq=False)
class Drawn:
    """One matrix.

    Attributes:
        family: of its spectrum, a name in ``spectra.FAMILIES``.
        basis: kind of its eigenvectors.
        seed: that it was drawn by, with the family.
        matrix: (d, d) fp64, exactly symmetric.
        blocks: contiguous slices of 0..d-1 of very different sizes, as the layers of a network.
    """

    family: str
    basis: str
    seed: int
    matrix: Array
    blocks: dict[str, slice]

    @property
    def dim(self) -> int:
        """The dimension d."""
        return len(self.matrix)

    @cached_property
    def values(self) -> Array:
        """The eigenvalues (d,), ascending, by a dense decomposition of the matrix."""
        return np.linalg.eigvalsh(self.matrix)

    @property
    def norm(self) -> float:
        """||A||_F."""
        return float(np.linalg.norm(self.matrix))

    @property
    def size(self) -> float:
        """sum_i |lambda_i|: the scale on which sums of eigenvalues are rounded."""
        return float(np.abs(self.values).sum())

    def operator(self, *, psd: bool = False) -> Hidden:
        """Return the matrix as an operator of one term."""
        return Hidden(torch.from_numpy(self.matrix), blocks=self.blocks, psd=psd)

    def absolute(self) -> Drawn:
        """Return |A|, the positive semidefinite matrix with the same eigenvectors."""
        values, vectors = np.linalg.eigh(self.matrix)
        return self._with(_symmetric((vectors * np.abs(values)) @ vectors.T))

    def neighbour(self) -> Drawn:
        """Return A + E, E of 3 % to 100 % of the norm and of another family: the same layers of another checkpoint."""
        source = _source(self.seed, self.family, 1)
        change = _other(source, self.dim)
        return self._with(self.matrix + change * (log_uniform(source, 0.03, 1) * self.norm / np.linalg.norm(change)))

    def in_terms(self, *, surrogate: bool = False, count: int | None = None) -> Hidden:
        """Return the matrix as a weighted sum over batches, with a surrogate that knows its diagonal where asked for.

        Number, sizes and similarity of the batches are drawn: A_b = A + E_b - sum_a c_a E_a, the E_b of 10 % to 300 %
        of the norm, in half of the cases with the eigenvectors of A, so that what is sparse stays sparse.

        Args:
            surrogate: give it one, the matrices less differences of 5 % to 100 % of the norm.
            count: number of batches; drawn from 2 to 16 where None.
        """
        source = _source(self.seed, self.family, 2)
        drawn = int(source.integers(2, 17))
        count = drawn if count is None else count
        sizes = source.integers(1, 33, count).astype(float)
        weights = sizes / sizes.sum()
        spread = log_uniform(source, 0.1, 3) * self.norm
        vectors = np.linalg.eigh(self.matrix)[1] if source.random() < 0.5 else None
        changes = np.stack([_perturbation(source, self.dim, vectors) for _ in weights]) * spread
        changes -= np.einsum("b,bij->ij", weights, changes)
        terms = torch.from_numpy(self.matrix + changes)
        near = None
        if surrogate:
            off = log_uniform(source, 0.05, 1) * self.norm
            rest = np.stack([_perturbation(source, self.dim, vectors) for _ in weights]) * off
            near = Hidden(terms - torch.from_numpy(rest), weights.tolist(), knows_diagonal=True)
        return Hidden(terms, weights.tolist(), blocks=self.blocks, surrogate=near)

    def _with(self, matrix: Array) -> Drawn:
        return Drawn(self.family, self.basis, self.seed, _symmetric(matrix), self.blocks)


def draw(seed: int, family: str | None = None, *, dims: tuple[int, int] = (30, 200)) -> Drawn:
    """Return the matrix of a seed.

    Args:
        seed: >= 0; the same seed and family give the same matrix.
        family: a name in ``spectra.FAMILIES``; drawn where None.
        dims: least and largest dimension.

    Raises:
        ValueError: unknown family.
    """
    names = tuple(FAMILIES)
    name = names[int(_source(seed, "", 0).integers(len(names)))] if family is None else family
    source = _source(seed, one_of("family", name, names), 0)
    dim = int(source.integers(dims[0], dims[1] + 1))
    basis = str(source.choice(list(BASES), p=SHARES))
    basis = _OWN_BASES.get(name, basis)
    scale = log_uniform(source, 1e-3, 1e3)
    vectors, values = _BASES[basis](source, dim), FAMILIES[name](source, dim)
    matrix = _symmetric((vectors * (scale * values)) @ vectors.T)
    return Drawn(name, basis, seed, matrix, _layers(source, dim))


def _source(seed: int, family: str, part: int) -> Source:
    """Return the random source of one part of one matrix; families of one seed are independent."""
    return np.random.default_rng([seed, part, *family.encode()])


def _symmetric(matrix: Array) -> Array:
    symmetric: Array = (matrix + matrix.T) / 2
    return symmetric


def _layers(source: Source, dim: int) -> dict[str, slice]:
    """Cut 0..d-1 into two to five slices, the smallest of a few coordinates."""
    inner = np.unique(source.integers(2, dim - 1, int(source.integers(1, 5))))
    edges: Sequence[int] = [0, *inner.tolist(), dim]
    return {f"layer{i}": slice(a, b) for i, (a, b) in enumerate(itertools.pairwise(edges))}


def _other(source: Source, dim: int) -> Array:
    """Return a matrix of a random family in random directions."""
    name = str(source.choice(list(FAMILIES)))
    vectors = rotated(source, dim)
    return _symmetric((vectors * FAMILIES[name](source, dim)) @ vectors.T)


def _perturbation(source: Source, dim: int, vectors: Array | None) -> Array:
    """Return a matrix of norm 1: in the given directions, or of three random ones."""
    if vectors is None:
        rows = source.standard_normal((3, dim))
        made = (rows.T * source.standard_normal(3)) @ rows
    else:
        made = (vectors * source.standard_normal(dim)) @ vectors.T
    unit: Array = _symmetric(made) / np.linalg.norm(made)
    return unit
