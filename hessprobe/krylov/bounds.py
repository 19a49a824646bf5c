"""Probabilistic bounds on the ends of a spectrum, free with a Lanczos run from a random start.

Lanczos from a unit vector v builds orthonormal vectors q_0 = v, q_1, ..., q_m with q_k = p_k(A) v, where
b_k p_k(x) = (x - a_k) p_{k-1}(x) - b_{k-1} p_{k-2}(x), p_0 = 1. For the eigenvector u_1 of the largest eigenvalue l_1
this gives u_1 . q_k = p_k(l_1) (u_1 . v), and because the q_k are orthonormal and u_1 is a unit vector,

    (u_1 . v)^2 * sum_{k=0}^m p_k(l_1)^2 <= 1.

A uniformly random v in d dimensions has (u_1 . v)^2 distributed as Beta(1/2, (d-1)/2), so |u_1 . v| >= c with
probability 1 - delta, where c^2 is the delta-quantile of that law. Then sum_k p_k(l_1)^2 <= 1/c^2, and because every
|p_k| grows beyond its largest zero, l_1 is at most the x > theta_max where the sum reaches 1/c^2. The sum over k
makes the bound sharper than the last polynomial alone; it costs nothing and holds with the same probability.

References:
    van Dorsselaer, Hochstenbach, van der Vorst (2001), "Computing probabilistic bounds for extreme eigenvalues of
    symmetric matrices with the Lanczos method" (the bound from the last polynomial).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import betaincinv

_BISECTIONS = 100


def log_start_quantile(dim: int, delta: float, random_part: float = 1.0) -> float | None:
    """Return log c, where P(|u . v| < c) <= delta for every fixed unit vector u and the random start v.

    A cold start v is uniform on the sphere: c^2 is the delta-quantile of Beta(1/2, (d-1)/2).
    A warm start is v = (sqrt(1 - tau^2) y + tau r) / n, with y any unit vector and r uniform on the sphere,
    independent of y. Then u . v = (b + tau u . r) / n for a constant b; the density of u . r is even and does not
    increase away from 0 for d >= 3, so a shift by b can only make a small value rarer: P(|u . v| < c) <=
    P(|u . r| < c n / tau). The norm n is at most sqrt(1 - tau^2) + tau, hence
    c_warm = c_cold * tau / (sqrt(1 - tau^2) + tau).

    Args:
        dim: d >= 1, of the space in which r is uniform.
        delta: probability of failure, in (0, 1).
        random_part: tau in (0, 1]; 1 for a cold start.

    Returns:
        log c, or None for a warm start in fewer than 3 dimensions, where nothing can be said.
    """
    if random_part < 1.0 and dim < 3:
        return None
    square = 1.0 if dim == 1 else float(betaincinv(0.5, (dim - 1) / 2, delta))
    if random_part == 1.0:
        return 0.5 * math.log(square)
    return 0.5 * math.log(square) + math.log(random_part / (math.sqrt(1 - random_part**2) + random_part))


def log_polynomial_sum(alphas: Sequence[float], betas: Sequence[float], x: float) -> float:
    """Return log sum_{k=0}^m p_k(x)^2 for x above all Ritz values, -inf for any other x.

    Works with the pivots t_k = (x - a_k) - b_{k-1}^2 / t_{k-1} of x I - T = L D L^T, which are all positive if and only
    if x > theta_max, and log p_k = sum_{i <= k} log(t_i / b_i): nothing overflows at any degree.

    Args:
        alphas: m diagonal entries of T.
        betas: m numbers >= 0: the off-diagonal entries and the norm of the last remainder; 0 gives inf.
        x: where to evaluate.
    """
    logs, log_p, pivot, beta = [0.0], 0.0, math.inf, 0.0
    for alpha, next_beta in zip(alphas, betas, strict=True):
        pivot = (x - alpha) - beta * (beta / pivot)
        if not pivot > 0:
            return -math.inf
        if next_beta == 0:
            return math.inf
        log_p += math.log(pivot) - math.log(next_beta)
        logs.append(2 * log_p)
        beta = next_beta
    largest = max(logs)
    return largest + math.log(sum(math.exp(value - largest) for value in logs))


def upper_bound(alphas: Sequence[float], betas: Sequence[float], largest: float, log_c: float) -> float:
    """Return the x > theta_max at which sum_k p_k(x)^2 = 1/c^2; see the head of this file.

    Args:
        alphas: diagonal of T of a run that was never restarted, as in ``log_polynomial_sum``.
        betas: norms of its remainders, likewise.
        largest: theta_max, the largest eigenvalue of T.
        log_c: from ``log_start_quantile``.

    Returns:
        The bound, in the unit of the operator; ``largest`` itself after a breakdown (last beta 0), or where the sum
        passes 1/c^2 there already.
    """
    if betas[-1] == 0:
        return largest
    step = max(max(abs(a - largest) for a in alphas), max(betas))
    low, high = largest, largest + step
    while log_polynomial_sum(alphas, betas, high) < -2 * log_c:
        low, high, step = high, high + 2 * step, 2 * step
    for _ in range(_BISECTIONS):
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        if log_polynomial_sum(alphas, betas, middle) < -2 * log_c:
            low = middle
        else:
            high = middle
    return high


def lower_bound(alphas: Sequence[float], betas: Sequence[float], smallest: float, log_c: float) -> float:
    """Return the mirror image of ``upper_bound``: a lower bound on the smallest eigenvalue."""
    return -upper_bound([-alpha for alpha in alphas], betas, -smallest, log_c)


def excludes_above(alphas: Sequence[float], betas: Sequence[float], x: float, log_c: float) -> bool:
    """Return whether the run shows, with the probability behind ``log_c``, that no eigenvalue lies above ``x``."""
    return log_polynomial_sum(alphas, betas, x) >= -2 * log_c
