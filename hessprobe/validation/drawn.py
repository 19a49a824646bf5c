"""Symmetric matrices drawn by seed from wide families: spectrum x eigenvectors x couplings x batches.

Every member is fp64, small enough for a dense eigenvalue decomposition, and known to estimators by its products alone.
The truth comes from NumPy and from the matrix itself, never from the code that is examined.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hessprobe.checks import one_of
from hessprobe.validation.bases import BASES, SHARES, rotated, signs
from hessprobe.validation.matrices import Hidden
from hessprobe.validation.spectra import FAMILIES, Array, Source, log_uniform

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
