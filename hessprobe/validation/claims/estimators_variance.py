"""How much one probe scatters: the variances of w^T A w and ||Aw||^2 by formula, and what fresh probes a term save."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hessprobe.estimate import Estimate
from hessprobe.estimators import trace
from hessprobe.probes import LAWS, ProbeStream
from hessprobe.validation.claim import Claim, Finding, Part, agrees, near
from hessprobe.validation.matrices import SPECTRA, Hidden, eigenvalues, named, rotated

_DIM = 100
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
        probes = ProbeStream(_DIM, 0, law).block(0, count)
        for kind in SPECTRA:
            A = named(kind, _DIM).total
            products = probes @ A
            forms, squares = (probes * products).sum(1), products.square().sum(1)
            parts += [
                ratio(f"w'Aw, {law}, {kind}", form(law, A), forms),
                ratio(f"||Aw||^2, {law}, {kind}", square(law, A), squares),
            ]
        if law == "rademacher":
            values = eigenvalues("outliers", _DIM)
            spread = float((probes.square() @ values).std())
            parts.append(near("standard deviation of w'Aw, signs, diagonal A", 0.0, spread, _rounding(values)))
    return Finding(tuple(parts))


def _rounding(values: Tensor) -> float:
    """A sum of d numbers is off by at most d units of rounding of their absolute sum."""
    return len(values) * torch.finfo(torch.float64).eps * float(values.abs().sum())


def fresh_probes(runs: int, estimate: Callable[..., Estimate] = trace) -> Finding:
    """Var over seeds of the trace of a sum, with probes of its own for every term and with shared ones."""
    base = rotated(eigenvalues("outliers", _DIM))
    matrices = torch.stack([base + 0.3 * rotated(eigenvalues("indefinite", _DIM), seed) for seed in range(6)])
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


CLAIMS = (
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
