"""Orthogonal matrices of several kinds: how the eigenvectors of a matrix may lie to the axes.

The error of an estimator with random signs rests on that as much as on the eigenvalues: a diagonal matrix has none.
"""

from __future__ import annotations

import numpy as np

from hessprobe.validation.spectra import Array, Source, log_uniform


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
