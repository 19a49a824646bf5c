r"""Intervals that hold an eigenvalue, from Ritz pairs and bounds on the rest of the spectrum.

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
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hessprobe.krylov.bounds import log_start_quantile, lower_bound, upper_bound
from hessprobe.krylov.restart import ThickRestart


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

    From the products made before its first restart. The error of the products, and rounding, are added.

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
        off = betas[:-1]
        ends = torch.linalg.eigvalsh(torch.from_numpy(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1)))
        low = lower_bound(alphas, betas, float(ends[0]), log_c) if lower else -math.inf
        high = upper_bound(alphas, betas, float(ends[-1]), log_c) if upper else math.inf
    return SpectrumBounds(low - slack if lower else None, high + slack if upper else None)


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
