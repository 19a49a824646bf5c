"""Estimators are right on average: their means over many seeds against the dense truth.

How much one probe scatters: the variances of w^T A w and ||Aw||^2 by formula, and what fresh probes a term save.
"""

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
from hessprobe.estimators.frobenius import sample_squares
from hessprobe.validation.claim import Claim, Finding, Part, agrees, at_least, near, seen
from hessprobe.validation.dynamics import mean_and_error
from hessprobe.validation.matrices import SPECTRA, Hidden, eigenvalues, leading, named, rotated
from hessprobe.vectors import LAWS, ProbeStream

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


_MEAN_CLAIMS = (
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


_VARIANCE_DIM = 100
Formula = Callable[[str, Tensor], float]


def form_variance(law: str, A: Tensor) -> float:
    """Return Var w^T A w of one probe."""
    square, d = float(A.square().sum()), A.shape[0]
    if law == "gaussian":
        return 2 * square
    if law == "rademacher":
        return 2 * (square - float(A.diagonal().square().sum()))
    return 2 * d / (d + 2) * (square - float(A.trace()) ** 2 / d)


def square_variance(law: str, A: Tensor) -> float:
    """Return Var ||Aw||^2 of one probe: that of the form of A^2, whose diagonal holds the squared norms of columns."""
    return form_variance(law, A @ A)


def ratio(label: str, formula: float, values: Tensor) -> Part:
    """Return the ratio of the sample variance of independent ``values`` (n,) to a formula, with its standard error."""
    squares = (values - values.mean()).square()
    n = len(values)
    error = float(squares.std()) / math.sqrt(n)
    return agrees(label, 1.0, float(squares.sum()) / (n - 1) / formula, error / formula)


def one_probe(count: int, form: Formula = form_variance, square: Formula = square_variance) -> Finding:
    """Ratios to the formulas, three laws on four spectra, and the diagonal matrix on which signs do not scatter."""
    parts: list[Part] = []
    for law in LAWS:
        probes = ProbeStream(_VARIANCE_DIM, 0, law).block(0, count)
        for kind in SPECTRA:
            A = named(kind, _VARIANCE_DIM).total
            products = probes @ A
            forms, squares = (probes * products).sum(1), products.square().sum(1)
            parts += [
                ratio(f"w'Aw, {law}, {kind}", form(law, A), forms),
                ratio(f"||Aw||^2, {law}, {kind}", square(law, A), squares),
            ]
        if law == "rademacher":
            values = eigenvalues("outliers", _VARIANCE_DIM)
            spread = float((probes.square() @ values).std())
            parts.append(near("standard deviation of w'Aw, signs, diagonal A", 0.0, spread, _rounding(values)))
    return Finding(tuple(parts))


def _rounding(values: Tensor) -> float:
    """A sum of d numbers is off by at most d units of rounding of their absolute sum."""
    return len(values) * torch.finfo(torch.float64).eps * float(values.abs().sum())


def fresh_probes(runs: int, estimate: Callable[..., Estimate] = trace) -> Finding:
    """Var over seeds of the trace of a sum, with probes of its own for every term and with shared ones."""
    base = rotated(eigenvalues("outliers", _VARIANCE_DIM))
    matrices = torch.stack([base + 0.3 * rotated(eigenvalues("indefinite", _VARIANCE_DIM), seed) for seed in range(6)])
    weights = tuple((b + 1) / 21 for b in range(6))
    A = Hidden(matrices, weights)
    passes = 2
    pairs = list(zip(weights, matrices, strict=True))
    fresh = sum(c**2 * form_variance("rademacher", M) for c, M in pairs) / passes
    shared = form_variance("rademacher", A.total) / passes
    how = {"method": "hutchinson", "n_probes": passes}
    own = torch.tensor([estimate(A, seed=seed, **how).value for seed in range(runs)], dtype=torch.float64)
    one = torch.tensor([estimate(Hidden(A.total), seed=seed, **how).value for seed in range(runs)], dtype=torch.float64)
    off = [c * (M - M.diagonal().diag()) for c, M in pairs]
    saved = 2 * sum(float((off[b] * off[a]).sum()) for b in range(6) for a in range(6) if a != b) / passes
    parts = (
        ratio("own probes for every term, variance over its formula", fresh, own),
        ratio("shared probes, variance over its formula", shared, one),
        near("2 sum <offdiag, offdiag> between terms over what is saved", 1.0, saved / (shared - fresh), 1e-10),
    )
    return Finding(parts, None, f"At one cost fresh probes divide the variance by {shared / fresh:.3g} here.")


_VARIANCE_CLAIMS = (
    Claim(
        "estimators/one-probe-variance",
        "Var w'Aw is 2||A||^2 (Gaussian), 2(||A||^2 - sum a_ii^2) (signs), 2d/(d+2) (||A||^2 - tr^2/d) (sphere); "
        "Var ||Aw||^2 the same with A^2.",
        "derived here",
        partial(one_probe, 10_000),
        partial(one_probe, 40_000),
    ),
    Claim(
        "estimators/fresh-probes",
        "Probes of its own for every term of a sum lower the variance of the trace by twice the sum of the inner "
        "products between the terms' off-diagonal parts.",
        "derived here",
        partial(fresh_probes, 400),
        partial(fresh_probes, 1500),
    ),
)

CLAIMS = (*_MEAN_CLAIMS, *_VARIANCE_CLAIMS)
