"""Bias and variance of SAM in least squares (Behdin and Mazumder, 2023).

Design X (n, d) with X'X/n = diag(l), responses X w* + sigma noise, from w = 0: the unnormalised rule shrinks the
distance to the least-squares solution in direction i by c_i = 1 - eta l_i - eta rho l_i^2 a step, gradient descent
(rho = 0) by 1 - eta l_i.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hessprobe.optim import USAM
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, at_least, below, near, seen
from hessprobe.validation.dynamics import Array, mean_and_error, optimize, plain_sgd

_SOURCE = "Behdin, Mazumder (2023)"
_ETA = 0.5
_ROUNDING = 1e-10
_RULES = (("GD", 0.0), ("SAM", 0.5))


@dataclass(frozen=True)
class Regression:
    """The design X (n, d), its l (d,) and w* (d,)."""

    rows: Array
    values: Array
    truth: Array

    @classmethod
    def make(cls, n: int, d: int) -> Regression:
        """Return one with l_i = 1/i."""
        source, values = np.random.default_rng(0), 1 / np.arange(1, d + 1)
        basis = np.linalg.qr(source.standard_normal((n, d)))[0]
        return cls(basis * np.sqrt(n * values), values, source.standard_normal(d))

    def parts(self, rho: float, steps: Array, sigma: float) -> tuple[Array, Array]:
        """Return the two parts of the risk E sum_i l_i (w_i - w*_i)^2 after ``steps`` (k,): bias (k,), variance (k,).

        bias sum_i l_i w*_i^2 c_i^{2k}, variance (sigma^2/n) sum_i (1 - c_i^k)^2.
        """
        c = (1 - _ETA * self.values - _ETA * rho * self.values**2) ** steps[:, None]
        bias: Array = (self.values * self.truth**2 * c**2).sum(1)
        variance: Array = sigma**2 / len(self.rows) * ((1 - c) ** 2).sum(1)
        return bias, variance

    def risks(self, rho: float, steps: int, sigma: float, runs: int) -> Array:
        """Return sum_i l_i (w_i - w*_i)^2 at every step of the class, one column a draw of the noise, (steps+1, runs).

        The rule has no norm and is linear, so that a sum of losses runs all draws at once.
        """
        noise = np.random.default_rng(1).standard_normal((runs, len(self.rows)))
        targets = torch.from_numpy(self.rows @ self.truth + sigma * noise)
        rows = torch.from_numpy(self.rows)

        def loss(w: Tensor, t: int) -> Tensor:  # noqa: ARG001  # one loss for all steps
            return ((w @ rows.T - targets) ** 2).sum() / (2 * len(rows))

        start = torch.zeros(runs, rows.shape[1], dtype=torch.float64)
        points = optimize(lambda p: USAM(plain_sgd(p, _ETA), rho=rho), loss, start, steps).numpy()
        risks: Array = ((points - self.truth) ** 2 * self.values).sum(2)
        return risks


def without_noise() -> Finding:
    """The bias alone: the class against the formula, and SAM's below that of GD."""
    problem, steps = Regression.make(200, 30), np.arange(301)
    found = {name: problem.risks(rho, 300, 0.0, 1)[:, 0] for name, rho in _RULES}
    parts: list[Part] = []
    for name, rho in _RULES:
        expected = problem.parts(rho, steps, 0.0)[0]
        parts += [near(f"{name}, step {k}", expected[k], found[name][k], _ROUNDING * expected[k]) for k in (1, 50, 300)]
    ratio = found["SAM"][1:] / found["GD"][1:]
    parts.append(below("largest ratio of SAM's bias to that of GD, steps 1 to 300", 1.0, float(ratio.max())))
    lines = tuple(Series.of(name, steps, found[name]) for name, _ in _RULES)
    return Finding(tuple(parts), Curve("step", "bias", lines, log_y=True))


def with_noise(runs: int) -> Finding:
    """Risk over draws of the noise, against the formula; which of the two rules is ahead when; and the variances."""
    problem, marks = Regression.make(200, 30), (50, 500)
    steps = np.arange(marks[-1] + 1)
    parts: list[Part] = []
    found = {name: problem.risks(rho, marks[-1], 1.0, runs) for name, rho in _RULES}
    expected = {name: np.sum(problem.parts(rho, steps, 1.0), axis=0) for name, rho in _RULES}
    for name, _ in _RULES:
        mean, error = mean_and_error(found[name].T)
        parts += [agrees(f"{name}, risk at step {k}", expected[name][k], mean[k], error[k]) for k in marks]
    # The same noise in both rules: their difference has a much smaller error than either.
    gap = expected["SAM"] - expected["GD"]
    mean, error = mean_and_error((found["SAM"] - found["GD"]).T)
    parts += [agrees(f"SAM - GD, step {k}", gap[k], mean[k], error[k]) for k in marks]
    lines = (Series.of("runs", steps[20:], mean[20:]), Series.of("formula", steps[20:], gap[20:], dashed=True))
    parts += _variances(replace(problem, truth=np.zeros_like(problem.truth)), runs)
    parts.append(seen("share of steps at which SAM's risk is the smaller", float((gap[1:] < 0).mean())))
    return Finding(tuple(parts), Curve("step", "risk of SAM less that of GD", lines))


def _variances(problem: Regression, runs: int) -> list[Part]:
    """Compare the risks for w* = 0, which are all variance."""
    at = np.array([50])
    plain, ascended = (problem.risks(rho, 50, 1.0, runs)[50] for _, rho in _RULES)
    mean, error = mean_and_error(ascended - plain)
    expected = [float(problem.parts(rho, at, 1.0)[1][0]) for _, rho in _RULES]
    gap = expected[1] - expected[0]
    return [
        agrees("variance, SAM - GD, step 50", gap, float(mean), float(error)),
        at_least("the same, not negative", 0.0, float(mean), float(error)),
    ]


CLAIMS = (
    Claim(
        "statistics/bias",
        "In least squares SAM's bias after k steps is sum_i l_i w*_i^2 c_i^{2k}, c_i = 1 - eta l_i - eta rho l_i^2: "
        "below that of gradient descent at every step.",
        f"lower bias at equal steps: {_SOURCE}; the formula is derived here",
        without_noise,
    ),
    Claim(
        "statistics/variance",
        "Its variance is (sigma^2/n) sum_i (1 - c_i^k)^2, above that of gradient descent; which risk is smaller "
        "depends on noise and steps.",
        f"higher variance at equal steps: {_SOURCE}; the formula is derived here",
        partial(with_noise, 400),
        partial(with_noise, 1000),
    ),
)
