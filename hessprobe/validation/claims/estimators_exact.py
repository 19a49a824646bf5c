"""Where estimators are exact: Gauss rules for polynomials, sketches for low rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hessprobe.estimate import Estimate
from hessprobe.estimators import frobenius_norm, trace
from hessprobe.krylov import lanczos
from hessprobe.krylov.quadrature import QuadratureRule, gauss, gauss_radau
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, below, near
from hessprobe.validation.matrices import SPECTRA, Hidden, eigenvalues, leading, rotated
from hessprobe.vectors import ProbeStream

_EPS = torch.finfo(torch.float64).eps
_DIM = 60
Gauss = Callable[[Tensor, Tensor], QuadratureRule]


def quadrature(steps: int, rule: Gauss = gauss) -> Finding:
    """Moments of a spectral measure by m nodes; at degree 2m the error is the product of the squared betas."""
    parts: list[Part] = []
    lines: list[Series] = []
    for kind in SPECTRA:
        values = eigenvalues(kind, _DIM)
        values = values / values.abs().max()
        run = lanczos(Hidden(rotated(values)), ProbeStream(_DIM, 3).block(0, 1), steps)
        alphas, betas = run.alphas[0], run.betas[0]
        found, radau = rule(alphas, betas), gauss_radau(alphas, betas, float(values[0]))
        weights = _weights(values)
        gaps = [abs(found.integrate(lambda x, k=k: x**k) - _moment(values, weights, k)) for k in range(2 * steps + 3)]  # type: ignore[misc]  # defaults bind
        beyond = abs(radau.integrate(lambda x: x ** (2 * steps)) - _moment(values, weights, 2 * steps))
        gap = float(betas[:steps].square().prod())
        # The basis is that of a matrix at a distance of d roundings, and x^k has slope k on [-1, 1].
        slack = 2 * steps * _DIM * _EPS
        parts += [
            near(f"Gauss, {kind}, largest error to degree {2 * steps - 1}", 0.0, max(gaps[: 2 * steps]), slack),
            near(f"Gauss, {kind}, error at degree {2 * steps}", gap, gaps[2 * steps], slack),
            near(f"Gauss-Radau, {kind}, error at degree {2 * steps}", 0.0, beyond, slack),
            *_brackets(kind, values, weights, alphas, betas),
        ]
        lines.append(Series.of(kind, range(len(gaps)), [max(gap, _EPS / 16) for gap in gaps]))
    return Finding(tuple(parts), Curve(f"degree, {steps} nodes", "error of the rule", tuple(lines), log_y=True))


def _weights(values: Tensor) -> Tensor:
    """Return the squared coordinates of the normalised start in the eigenvectors of ``rotated(values)``."""
    _, vectors = torch.linalg.eigh(rotated(values))
    start = ProbeStream(_DIM, 3).block(0, 1)[0]
    squares: Tensor = (vectors.T @ (start / start.norm())).square()
    return squares


def _moment(values: Tensor, weights: Tensor, degree: int) -> float:
    return float((weights * values**degree).sum())


def _brackets(kind: str, values: Tensor, weights: Tensor, alphas: Tensor, betas: Tensor) -> list[Part]:
    """Where log(x + s) is defined: Gauss above, Gauss-Radau below, at every number of steps."""
    floor = float(values[0])
    shift = 0.01 - min(floor, 0.0)

    def log(x: Tensor) -> Tensor:
        return torch.log(x + shift)

    exact = float((weights * log(values)).sum())
    above, under = [], []
    for m in range(1, len(alphas) + 1):
        above.append(gauss(alphas[:m], betas[:m]).integrate(log) - exact)
        under.append(exact - gauss_radau(alphas[:m], betas[:m], floor).integrate(log))
    # No argument is below 0.01, where the logarithm has slope 100.
    slack = _DIM * _EPS / 0.01
    return [
        near(f"log, {kind}, least of Gauss - exact below 0", 0.0, min(*above, 0.0), slack),
        near(f"log, {kind}, least of exact - Radau below 0", 0.0, min(*under, 0.0), slack),
    ]


def low_rank(seeds: int, estimate: Callable[..., Estimate] = trace) -> Finding:
    """Traces of matrices of rank r, with sketches just large enough."""
    parts: list[Part] = []
    for rank in (1, 4, 9):
        values = torch.zeros(_DIM, dtype=torch.float64)
        values[:rank] = torch.linspace(5.0, -2.5, rank, dtype=torch.float64)
        matrix = rotated(values)
        truth, slack = float(values.sum()), _DIM * math.sqrt(_DIM) * _EPS * float(values.abs().sum())
        ways = {
            f"XTrace, {rank + 1} probes": {"method": "xtrace", "n_probes": rank + 1},
            f"Hutch++, {max(2 * rank, 4)} probes": {"method": "hutch++", "n_probes": max(2 * rank, 4)},
            f"Hutchinson, {rank} deflated": {"method": "hutchinson", "n_probes": 2, "deflate": leading(matrix, rank)},
        }
        for label, how in ways.items():
            gaps = [abs(estimate(Hidden(matrix), seed=seed, **how).value - truth) for seed in range(seeds)]
            parts.append(near(f"largest error, rank {rank}, {label}", 0.0, max(gaps), slack))
        norm = float(values.norm())
        found = frobenius_norm(Hidden(matrix), n_probes=2, deflate=leading(matrix, rank)).value
        parts.append(near(f"Frobenius norm, rank {rank} deflated", norm, found, slack))
    full = Hidden(rotated(eigenvalues("indefinite", _DIM)))
    parts.append(_all_directions(full, estimate))
    parts.append(below("std. error that XTrace reports of rank 4 by 5 probes", 1e-12, _reported(estimate)))
    return Finding(tuple(parts))


def _all_directions(A: Hidden, estimate: Callable[..., Estimate]) -> Part:
    found = estimate(A, method="xtrace", n_probes=_DIM // 2).value
    slack = _DIM * _EPS * float(A.total.diagonal().abs().sum())
    return near("XTrace with 2N = d", float(A.total.trace()), found, slack)


def _reported(estimate: Callable[..., Estimate]) -> float:
    values = torch.zeros(_DIM, dtype=torch.float64)
    values[:4] = torch.tensor([5.0, 2.0, -1.0, -2.5])
    return estimate(Hidden(rotated(values)), method="xtrace", n_probes=5).std_error


CLAIMS = (
    Claim(
        "estimators/gauss-exactness",
        "m Lanczos steps integrate polynomials of degree 2m - 1 exactly, one prescribed node more 2m; at degree 2m the "
        "Gauss rule is off by beta_1^2 ... beta_m^2; for the logarithm the two rules are a bracket.",
        "Golub, Meurant (2010), chapter 6",
        partial(quadrature, 6),
        partial(quadrature, 10),
    ),
    Claim(
        "estimators/low-rank-exactness",
        "On a matrix of rank r, XTrace with more than r probes, Hutch++ with 2r and deflation of r eigenvectors are "
        "exact.",
        "Meyer et al. (2021); Epperly, Tropp, Webber (2024)",
        partial(low_rank, 20),
        partial(low_rank, 200),
    ),
)
