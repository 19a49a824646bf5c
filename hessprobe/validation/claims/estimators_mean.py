"""Estimators are right on average: their means over many seeds against the dense truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe.estimate import Estimate
from hessprobe.estimators import DiagonalEstimate, diagonal, frobenius_norm, logdet, trace
from hessprobe.estimators.squares import sample_squares
from hessprobe.probes import ProbeStream
from hessprobe.validation.claim import Claim, Finding, Part, agrees, at_least, seen
from hessprobe.validation.dynamics import mean_and_error
from hessprobe.validation.matrices import SPECTRA, Hidden, eigenvalues, leading, named, rotated

_DIM, _PROBES = 60, 8
Scalar = Callable[..., Estimate]


def mean_against(label: str, truth: float, values: list[float]) -> Part:
    """Return the comparison of the mean of independent estimates with the truth."""
    mean, error = mean_and_error(np.array(values))
    return agrees(label, truth, float(mean), float(error))


def _trace_methods(matrix: Tensor) -> dict[str, dict[str, Any]]:
    plain = {"method": "hutchinson", "n_probes": _PROBES}
    return {
        "Hutchinson": plain,
        # Inexact vectors: deflation is unbiased for any, as long as the probes do not depend on them.
        "deflated": {**plain, "deflate": leading(matrix, 10, blur=0.3)},
        "Hutch++": {"method": "hutch++", "n_probes": _PROBES},
        "XTrace, sphere": {"method": "xtrace", "n_probes": _PROBES, "law": "sphere"},
    }


def trace_mean(seeds: int, estimate: Scalar = trace) -> Finding:
    """Four trace estimators on four spectra, and Hutchinson with probes of its own for every term of a sum."""
    parts: list[Part] = []
    for kind in SPECTRA:
        A = named(kind, _DIM)
        truth = float(A.total.trace())
        for label, how in _trace_methods(A.total).items():
            values = [estimate(A, seed=seed, **how).value for seed in range(seeds)]
            parts.append(mean_against(f"{label}, {kind}", truth, values))
    terms = Hidden(torch.stack([rotated(eigenvalues(kind, _DIM), seed) for seed, kind in enumerate(SPECTRA)]))
    values = [estimate(terms, seed=seed, method="hutchinson", n_probes=2).value for seed in range(seeds)]
    parts.append(mean_against("Hutchinson, sum of four terms", float(terms.total.trace()), values))
    parts.append(_rademacher_xtrace(seeds, estimate))
    note = (
        "XTrace rescales its probe part, which is unbiased for probes whose direction is independent of their length."
    )
    return Finding(tuple(parts), None, f"{note} For Rademacher probes nothing is claimed.")


def _rademacher_xtrace(seeds: int, estimate: Scalar) -> Part:
    A = named("decaying", _DIM)
    values = [estimate(A, seed=seed, method="xtrace", n_probes=_PROBES).value for seed in range(seeds)]
    mean, error = mean_and_error(np.array(values))
    return seen("bias of XTrace, Rademacher, decaying", float(mean) - float(A.total.trace()), float(error))


def frobenius_mean(seeds: int, estimate: Scalar = frobenius_norm) -> Finding:
    """The two kinds of samples behind the norm, exactly unbiased, and the norm itself, below by at most the bound."""
    parts: list[Part] = []
    for kind in SPECTRA:
        A = named(kind, _DIM)
        square = float(A.total.square().sum())
        singles, pairs = [], []
        for seed in range(seeds):
            stream = ProbeStream(A.dim, seed, "rademacher", A.dtype, A.device, "frobenius")
            found = sample_squares(A, stream, 0, _PROBES, None)
            single = float(found.squares.mean())
            singles.append(single)
            pairs.append(2 * single - found.pairs[0].total / (_PROBES * (_PROBES - 1) / 2))
        parts += [
            mean_against(f"mean ||Aw||^2, {kind}", square, singles),
            mean_against(f"2 mean ||Aw||^2 - mean (w'Aw')^2, {kind}", square, pairs),
        ]
        parts += _norm_bias(A, math.sqrt(square), kind, seeds, estimate)
    note = (
        "The square root and the weights between the two kinds of samples bias the norm itself at the order of its "
        "variance; its interval is what is claimed of it."
    )
    return Finding(tuple(parts), None, note)


def _norm_bias(A: Hidden, norm: float, kind: str, seeds: int, estimate: Scalar) -> list[Part]:
    """sqrt(1 + x) >= 1 + x/2 - x^2/2 for x >= -1, so the root of an unbiased square is low by Var / (2 F^3) at most."""
    rows = leading(A.total, 10, blur=0.3)
    values = np.array([estimate(A, seed=seed, n_probes=_PROBES, deflate=rows).value for seed in range(seeds)])
    squares = values**2
    mean, error = mean_and_error(values)
    floor = norm - float(squares.var(ddof=1)) / (2 * norm**3)
    return [
        at_least(f"norm, deflated, {kind}", floor, float(mean), float(error)),
        seen(
            f"bias of the squared norm in its standard deviations, deflated, {kind}", _in_deviations(squares, norm**2)
        ),
    ]


def _in_deviations(values: Any, truth: float) -> float:
    return float((values.mean() - truth) / values.std(ddof=1))


def diagonal_mean(seeds: int, estimate: Callable[..., DiagonalEstimate] = diagonal) -> Finding:
    """Hutchinson's and XDiag's diagonals, along six fixed directions."""
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (5, _DIM), generator=generator).double() * 2 - 1
    directions = torch.cat([torch.ones(1, _DIM, dtype=torch.float64), signs])
    parts: list[Part] = []
    for kind in SPECTRA:
        A = named(kind, _DIM)
        truth = directions @ A.total.diagonal()
        for method in ("hutchinson", "xdiag"):
            how = {"method": method, "n_probes": _PROBES}
            found = torch.stack([directions @ estimate(A, seed=seed, **how).values for seed in range(seeds)])
            labels = [f"{method}, {kind}, {'sum' if k == 0 else f'signs {k}'}" for k in range(len(directions))]
            parts += [mean_against(labels[k], float(truth[k]), found[:, k].tolist()) for k in range(len(directions))]
    return Finding(tuple(parts))


def logdet_mean(seeds: int, estimate: Scalar = logdet) -> Finding:
    """Log det(A + s I) of positive spectra and log det(A^2 + e^2 I) / 2 of indefinite ones, by Lanczos quadrature."""
    parts: list[Part] = []
    for kind in SPECTRA:
        values = eigenvalues(kind, _DIM)
        if float(values[0]) > 0:
            how: dict[str, float] = {"shift": 0.1, "lower": 0.0}
            truth = float(torch.log(values + 0.1).sum())
        else:
            how, truth = {"eps": 1.0}, float(torch.log(values**2 + 1).sum() / 2)
        A = named(kind, _DIM)
        rows, fixed = leading(A.total, 10), {"n_probes": 4, "steps": 16, "method": "slq"}
        runs = [estimate(A, seed=seed, deflate=rows, **fixed, **how) for seed in range(seeds)]
        solver = max(run.errors.solver for run in runs)
        parts.append(
            mean_against(f"{next(iter(how))} {next(iter(how.values()))}, {kind}", truth, [r.value for r in runs])
        )
        parts.append(seen(f"largest quadrature error, {kind}", solver))
    return Finding(tuple(parts))


CLAIMS = (
    Claim(
        "estimators/trace-mean",
        "Hutchinson, deflated, Hutch++ and XTrace estimates of the trace are unbiased.",
        "Hutchinson (1990); Meyer et al. (2021); Epperly, Tropp, Webber (2024)",
        partial(trace_mean, 120),
        partial(trace_mean, 400),
    ),
    Claim(
        "estimators/frobenius-mean",
        "Both kinds of samples behind the Frobenius norm are unbiased for its square; the norm is low by at most "
        "Var(square)/(2 F^3).",
        "derived here",
        partial(frobenius_mean, 100),
        partial(frobenius_mean, 500),
    ),
    Claim(
        "estimators/diagonal-mean",
        "Hutchinson and XDiag estimates of the diagonal are unbiased.",
        "Bekas, Kokiopoulou, Saad (2007); Epperly, Tropp, Webber (2024)",
        partial(diagonal_mean, 120),
        partial(diagonal_mean, 500),
    ),
    Claim(
        "estimators/logdet-mean",
        "Lanczos quadrature of the damped and of the smoothed log-determinant is unbiased up to its quadrature error.",
        "Ubaru, Chen, Saad (2017)",
        partial(logdet_mean, 60),
        partial(logdet_mean, 250),
    ),
)
