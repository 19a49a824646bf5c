"""Intervals that hold an eigenvalue, from Ritz pairs and bounds on the rest of the spectrum.

Let the rows Y be orthonormal with Rayleigh quotients theta_1 >= ... >= theta_k of A on their span, residuals
r_i = ||A y_i - theta_i y_i||, rho^2 = sum_i r_i^2, and C = A compressed to the complement of the span.

* Theorem (Cauchy): theta_i <= lambda_i, the i-th largest eigenvalue of A.
* Theorem: if no eigenvalue of C exceeds M, then with eta = theta_i - M (of either sign)

      lambda_i <= theta_i + (sqrt(eta^2 + 4 rho^2) - eta) / 2,

  which is theta_i + rho^2 / eta, nearly, where eta > 0 is large against rho, and M where it is negative. Proof: for
  x > M, A has as many eigenvalues above x as Theta - x + R^T (x - C)^-1 R has above 0 (Schur complement, R the
  coupling, |R|_2 <= rho), and the last term is at most rho^2 / (x - M). So at most i - 1 lie above the x with
  x - theta_i = rho^2 / (x - M).
* With probability 1 - delta over the random start of a Lanczos run: U of ``bounds.upper_bound`` is above the largest
  eigenvalue of the operator of that run, A itself (lambda_i <= lambda_1 <= U) or C (M = U).

A residual alone says that *some* eigenvalue lies within r of theta, and not which. The gap to the next Ritz value says
nothing about eigenvalues that the run has not seen.

References:
    Parlett (1998), "The Symmetric Eigenvalue Problem", chapters 10 and 11; Li, Li (2005), "A note on eigenvalues of
    perturbed Hermitian matrices"; van Dorsselaer, Hochstenbach, van der Vorst (2001).

Probabilistic bounds on the ends of a spectrum, free with a Lanczos run from a random start.

Lanczos from a unit vector v builds orthonormal vectors q_0 = v, q_1, ..., q_m with q_k = p_k(A) v, where
b_k p_k(x) = (x - a_k) p_{k-1}(x) - b_{k-1} p_{k-2}(x), p_0 = 1. For the eigenvector u_1 of the largest eigenvalue l_1
this gives u_1 . q_k = p_k(l_1) (u_1 . v), and because the q_k are orthonormal and u_1 is a unit vector,

    (u_1 . v)^2 * sum_{k=0}^m p_k(l_1)^2 <= 1.

A uniformly random v in d dimensions has (u_1 . v)^2 distributed as Beta(1/2, (d-1)/2), so |u_1 . v| >= c with
probability 1 - delta, where c^2 is the delta-quantile of that law. Then sum_k p_k(l_1)^2 <= 1/c^2, and because every
|p_k| grows beyond its largest zero, l_1 is at most the x > theta_max where the sum reaches 1/c^2. The sum over k
makes the bound sharper than the last polynomial alone; it costs nothing and holds with the same probability.

A thick restart keeps Ritz vectors y_i with A y_i = theta_i y_i + c_i q and the row q after them. From x y_i(x) =
theta_i y_i(x) + c_i q(x), for the polynomials behind them,

    y_i(x) = c_i q(x) / (x - theta_i),      b p(x) = [(x - a) - sum_i c_i^2 / (x - theta_i)] q(x),

p that of the row after q. The rows of the present basis are orthonormal as before, so that the sum is over them: the
y_i, q and those that followed. All these polynomials have real zeros only, which theta_max bounds, and the bound goes
on improving however small the basis is.

References:
    van Dorsselaer, Hochstenbach, van der Vorst (2001), "Computing probabilistic bounds for extreme eigenvalues of
    symmetric matrices with the Lanczos method" (the bound from the last polynomial).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from hessprobe.krylov.restart import Kept, ThickRestart

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


def log_polynomial_sum(
    alphas: Sequence[float], betas: Sequence[float], x: float, restarts: Mapping[int, Kept] | None = None
) -> float:
    """Return log sum_k p_k(x)^2 over the rows of the basis for x above all Ritz values, -inf for any other x.

    Works with the pivots t_k = (x - a_k) - b_{k-1}^2 / t_{k-1} of x I - T = L D L^T, which are all positive if and only
    if x > theta_max, and log p_k = sum_{i <= k} log(t_i / b_i): nothing overflows at any degree.

    Args:
        alphas: m diagonal entries of T.
        betas: m numbers >= 0: the off-diagonal entries and the norm of the last remainder; 0 gives inf.
        x: where to evaluate.
        restarts: what was kept at restarts, by the number of entries before each.
    """
    logs, log_p, taken = [0.0], 0.0, 0.0
    for index in range(len(alphas) + 1):
        kept = restarts.get(index) if restarts else None
        if kept is not None:
            gaps = [x - value for value in kept.values]
            if not min(gaps) > 0:
                return -math.inf
            shares = [c / gap for c, gap in zip(kept.couplings, gaps, strict=True)]
            taken = sum(c * share for c, share in zip(kept.couplings, shares, strict=True))
            logs = [2 * log_p + math.log1p(sum(share * share for share in shares))]
        if index == len(alphas):
            break
        pivot, beta = (x - alphas[index]) - taken, betas[index]
        if not pivot > 0:
            return -math.inf
        if beta == 0:
            return math.inf
        log_p += math.log(pivot) - math.log(beta)
        logs.append(2 * log_p)
        taken = beta * (beta / pivot)
    largest = max(logs)
    return largest + math.log(sum(math.exp(value - largest) for value in logs))


def upper_bound(
    alphas: Sequence[float],
    betas: Sequence[float],
    largest: float,
    log_c: float,
    restarts: Mapping[int, Kept] | None = None,
) -> float:
    """Return the x > theta_max at which sum_k p_k(x)^2 = 1/c^2; see the head of this file.

    Args:
        alphas: diagonal entries, as in ``log_polynomial_sum``.
        betas: norms of the remainders, likewise.
        largest: theta_max, the largest eigenvalue of T.
        log_c: from ``log_start_quantile``.
        restarts: as in ``log_polynomial_sum``.

    Returns:
        The bound, in the unit of the operator; ``largest`` itself after a breakdown (last beta 0), or where the sum
        passes 1/c^2 there already.
    """
    if betas[-1] == 0:
        return largest
    step = max(max(abs(a - largest) for a in alphas), max(betas))
    low, high = largest, largest + step
    while log_polynomial_sum(alphas, betas, high, restarts) < -2 * log_c:
        low, high, step = high, high + 2 * step, 2 * step
    for _ in range(_BISECTIONS):
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        if log_polynomial_sum(alphas, betas, middle, restarts) < -2 * log_c:
            low = middle
        else:
            high = middle
    return high


def lower_bound(
    alphas: Sequence[float],
    betas: Sequence[float],
    smallest: float,
    log_c: float,
    restarts: Mapping[int, Kept] | None = None,
) -> float:
    """Return the mirror image of ``upper_bound``: a lower bound on the smallest eigenvalue."""
    return -upper_bound([-alpha for alpha in alphas], betas, -smallest, log_c, mirrored(restarts or {}))


def mirrored(restarts: Mapping[int, Kept]) -> dict[int, Kept]:
    """Return what the restarts of a run with -A would have kept."""
    return {
        index: Kept(tuple(-value for value in kept.values), tuple(-c for c in kept.couplings))
        for index, kept in restarts.items()
    }


def excludes_above(
    alphas: Sequence[float],
    betas: Sequence[float],
    x: float,
    log_c: float,
    restarts: Mapping[int, Kept] | None = None,
) -> bool:
    """Return whether the run shows, with the probability behind ``log_c``, that no eigenvalue lies above ``x``."""
    return log_polynomial_sum(alphas, betas, x, restarts) >= -2 * log_c


class SpectrumBounds(NamedTuple):
    """Bounds on the whole spectrum that hold with the confidence asked for; None where an end has none.

    Attributes:
        lower: lower bound on lambda_min.
        upper: upper bound on lambda_max.
    """

    lower: float | None
    upper: float | None


def bounds_of(engine: ThickRestart, delta: float, random_part: float, *, lower: bool, upper: bool) -> SpectrumBounds:
    """Return bounds on the spectrum of an engine's operator, each with probability 1 - delta.

    The error of the products, and rounding, are added.

    Args:
        engine: after at least one product.
        delta: probability of failure of each bound, in (0, 1).
        random_part: of its start, see ``log_start_quantile``.
        lower: whether the lower end is wanted.
        upper: whether the upper one is.
    """
    slack = 2 * engine.noise + 4 * torch.finfo(engine.A.dtype).eps * engine.scale
    if engine.exhausted:
        values = engine.ritz().values
        low, high = float(values[-1]), float(values[0])
    else:
        log_c = log_start_quantile(engine.space, delta, random_part)
        if log_c is None:
            return SpectrumBounds(None, None)
        alphas, betas = engine.alphas, engine.bounding_betas
        ends = torch.linalg.eigvalsh(torch.from_numpy(_projected(alphas, betas, engine.restarts)))
        low = lower_bound(alphas, betas, float(ends[0]), log_c, engine.restarts) if lower else -math.inf
        high = upper_bound(alphas, betas, float(ends[-1]), log_c, engine.restarts) if upper else math.inf
    return SpectrumBounds(low - slack if lower else None, high + slack if upper else None)


def _projected(alphas: Sequence[float], betas: Sequence[float], restarts: Mapping[int, Kept]) -> NDArray[np.float64]:
    """Return A on the rows that the recurrence has made since the last restart, with those kept there."""
    since = max(restarts, default=0)
    off = betas[since : len(alphas) - 1]
    own = np.diag(alphas[since:]) + np.diag(off, 1) + np.diag(off, -1)
    if not restarts:
        return own
    kept = restarts[since]
    count = len(kept.values)
    T = np.zeros((count + len(own), count + len(own)))
    T[range(count), range(count)] = kept.values
    T[count:, count:] = own
    if len(own):
        T[count, :count] = T[:count, count] = kept.couplings
    return T


class Ends(NamedTuple):
    """Intervals of eigenvalues: (k,) fp64 each, infinite where nothing is known on that side."""

    low: Tensor
    high: Tensor


def intervals(
    values: Tensor, tops: Tensor, whole: SpectrumBounds, rest: SpectrumBounds, coupling: float, rounding: float
) -> Ends:
    """Return an interval for each reported eigenvalue; see the head of this file.

    Args:
        values: (k,) Rayleigh quotients, descending.
        tops: (k,) bool, counted from the largest eigenvalue; the others from the smallest.
        whole: bounds on the spectrum of A.
        rest: bounds on the spectrum of A on the complement of what was found.
        coupling: rho.
        rounding: error of a Rayleigh quotient.
    """
    high = _beyond(values, whole.upper, rest.upper, coupling) + rounding
    low = -(_beyond(-values, _negative(whole.lower), _negative(rest.lower), coupling) + rounding)
    return Ends(torch.where(tops, values - rounding, low), torch.where(tops, high, values + rounding))


def _beyond(values: Tensor, whole: float | None, rest: float | None, coupling: float) -> Tensor:
    best = torch.full_like(values, math.inf if whole is None else whole)
    if rest is not None and math.isfinite(rest):
        eta = values - rest
        best = torch.minimum(best, values + ((eta.square() + 4 * coupling**2).sqrt() - eta) / 2)
    elif rest is not None:  # nothing is left beside what was found
        best = values + coupling
    return torch.maximum(best, values)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
