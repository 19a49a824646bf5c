"""Families of spectra with random parameters: what the eigenvalues of a symmetric matrix may look like.

A family is a function of a random source and a dimension. Its parameters (exponents, gaps, numbers and signs of
outliers, shares of zeros) are drawn anew each time from wide ranges, so that nothing can be tuned to one member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
