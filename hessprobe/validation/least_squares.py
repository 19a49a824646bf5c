"""Least squares with stochastic gradients: the problem on which rates of SAM are known, many runs at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hessprobe.validation.dynamics import Array

Slopes = Callable[[Array], Array]


@dataclass(frozen=True)
class Squares:
    """f = (1/n) sum_i (a_i x - b_i)^2 / 2."""

    rows: Array
    targets: Array

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.rows)

    @property
    def sizes(self) -> Array:
        """L_i = ||a_i||^2."""
        sizes: Array = (self.rows**2).sum(1)
        return sizes

    @property
    def spectrum(self) -> Array:
        """Non-zero eigenvalues of the Hessian, ascending."""
        values = np.linalg.svd(self.rows, compute_uv=False) ** 2 / self.n
        return np.sort(values[values > 1e-12 * values.max()])

    @cached_property
    def best(self) -> Array:
        """The minimiser (d,) of least norm."""
        found: Array = np.linalg.lstsq(self.rows, self.targets, rcond=None)[0]
        return found

    @cached_property
    def least(self) -> float:
        """f*."""
        return float((self.residuals(self.best[None]) ** 2).mean() / 2)

    def residuals(self, x: Array) -> Array:
        """Return a_i x - b_i, (runs, n), at ``x`` (runs, d)."""
        return x @ self.rows.T - self.targets

    def gradient(self, x: Array, weights: Array | None = None) -> Array:
        """Return sum_i v_i grad f_i (runs, d), v (runs, n), or the mean without weights."""
        r = self.residuals(x)
        return (r / self.n if weights is None else r * weights) @ self.rows

    def excess(self, x: Array) -> Array:
        """Return f - f* (runs,)."""
        above: Array = (self.residuals(x) ** 2).mean(1) / 2 - self.least
        return above


def step(x: Array, slopes: Slopes, rho: Array | float, lam: Array | float, gamma: Array | float) -> Array:
    """Return the points after one step from each of ``x`` (runs, d); the parameters may be (runs, 1)."""
    g = slopes(x)
    norm = np.linalg.norm(g, axis=1, keepdims=True) + 1e-12
    return x - gamma * slopes(x + rho * (1 - lam + lam / norm) * g)


def nice_weights(source: np.random.Generator, runs: int, n: int, tau: int) -> Array:
    """Return weights (runs, n), 1/tau on ``tau`` distinct examples: all sets equally likely."""
    order = np.argpartition(source.random((runs, n)), tau, axis=1)[:, :tau]
    weights = np.zeros((runs, n))
    np.put_along_axis(weights, order, 1 / tau, axis=1)
    return weights
