"""Stochastic SAM where every example can be fitted: linear rate and stability (Shin et al., 2025).

Rule: x <- x - eta grad f_i(x + rho grad f_i(x)), i uniform: the unnormalised one, batch size 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from hessprobe.optim import USAM
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, below, seen
from hessprobe.validation.dynamics import Array, mean_and_error, optimize, plain_sgd, relative_gap
from hessprobe.validation.least_squares import Squares

_SOURCE = "Shin et al. (2025)"
Test = Callable[[Array, float, float], bool]
_SHARES = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Constants:
    """beta: smoothness of every f_i; L: of f; alpha: ||grad f||^2 >= alpha f."""

    beta: float
    L: float
    alpha: float

    @property
    def limit(self) -> float:
        """The radius that the theorem needs to stay below."""
        return 1 / ((self.beta / self.alpha + 0.5) * self.beta)

    def rate(self, rho: float) -> tuple[float, float]:
        """Return the step eta* at radius rho, and the factor 1 - eta* q/2 of the bound."""
        q = self.alpha - (self.beta + self.alpha / 2) * self.beta * rho
        eta = q / (2 * self.L * self.beta * (self.beta * rho + 1) ** 2)
        return eta, 1 - eta * q / 2


def linear_rate(steps: int, runs: int) -> Finding:
    """The mean loss at every step, from the exact second moments, below the bound; and runs of the rule with it."""
    source = np.random.default_rng(0)
    rows = source.standard_normal((20, 40))
    f = Squares(rows, rows @ source.standard_normal(40))
    constants = Constants(float(f.sizes.max()), float(f.spectrum[-1]), 2 * float(f.spectrum[0]))
    parts: list[Part] = []
    lines: list[Series] = []
    for share in _SHARES:
        rho = share * constants.limit
        eta, factor = constants.rate(rho)
        exact = _mean_losses(f, eta, rho, steps)
        bound = exact[0] * factor ** np.arange(steps + 1)
        parts.append(below(f"largest E f/bound, rho {share:g} of the limit", 1.0, float((exact[1:] / bound[1:]).max())))
        mean, error = mean_and_error(f.excess(_runs(f, eta, rho, steps, runs)))
        parts.append(agrees(f"mean of {runs} runs, rho {share:g} of the limit", exact[-1], float(mean), float(error)))
        lines.append(Series.of(f"rho {share:g} of the limit", range(steps + 1), exact))
        lines.append(Series.of(f"bound, rho {share:g} of the limit", range(steps + 1), bound, dashed=True))
    parts.append(_class_against_rule(f, *constants.rate(0.5 * constants.limit)[:1], 0.5 * constants.limit))
    return Finding(tuple(parts), Curve("step", "E f", tuple(lines[:2] + lines[-2:]), log_y=True))


def _mean_losses(f: Squares, eta: float, rho: float, steps: int) -> Array:
    """Return E f(x_t), t = 0, ..., steps, from x_0 = 0: the recursion of E z z', z = x - x*.

    z <- (I - k_i a_i a_i') z with k_i = eta (1 + rho ||a_i||^2).
    """
    k = eta * (1 + rho * f.sizes)
    drift = (f.rows.T * k) @ f.rows / f.n
    H = f.rows.T @ f.rows / f.n
    M = np.outer(f.best, f.best)
    found = np.empty(steps + 1)
    for t in range(steps + 1):
        found[t] = (H * M).sum() / 2
        spread = k**2 * ((f.rows @ M) * f.rows).sum(1) / f.n
        moved = drift @ M
        M = M - moved - moved.T + (f.rows.T * spread) @ f.rows
    return found


def _runs(f: Squares, eta: float, rho: float, steps: int, runs: int) -> Array:
    source, x = np.random.default_rng(1), np.zeros((runs, f.rows.shape[1]))
    for _ in range(steps):
        i = source.integers(0, f.n, runs)
        x = _rule(f, x, i, eta, rho)
    return x


def _rule(f: Squares, x: Array, i: Array, eta: float, rho: float) -> Array:
    """Return the points after one step from each of ``x`` (runs, d), on the examples ``i`` (runs,)."""
    chosen = f.rows[i]
    residual = (x * chosen).sum(1) - f.targets[i]
    ascent = x + rho * residual[:, None] * chosen
    moved: Array = x - eta * ((ascent * chosen).sum(1) - f.targets[i])[:, None] * chosen
    return moved


def _class_against_rule(f: Squares, eta: float, rho: float) -> Part:
    rows, targets = torch.from_numpy(f.rows), torch.from_numpy(f.targets)
    choice = np.random.default_rng(2).integers(0, f.n, 300)
    points = optimize(
        lambda p: USAM(plain_sgd(p, eta), rho=rho),
        lambda x, t: (rows[choice[t - 1]] @ x - targets[choice[t - 1]]) ** 2 / 2,
        np.zeros(f.rows.shape[1]).tolist(),
        len(choice),
    ).numpy()
    return below(
        "class against the rule, 300 steps", 1e-10, relative_gap(points[1:], _rule(f, points[:-1], choice, eta, rho))
    )


def stability(draws: int) -> Finding:
    """Four conditions on curvatures H_i of fitted examples, at the largest stable step and at the largest contracting.

    For eta > 2 rho they are terms of (I - eta E B)^2 + ... <= I, B_i = H_i + rho H_i^2, each of which is >= 0. For
    smaller steps one term is negative, and lets others grow.
    """
    source = np.random.default_rng(3)
    found: dict[str, list[Array]] = {"above": [], "below": []}
    for _ in range(draws):
        H = _curvatures(source)
        rho = float(source.uniform(0.01, 5.0)) / float(np.linalg.eigvalsh(H).max())
        for test in (_is_stable, _contracts):
            eta = _largest(test, H, rho)
            found["above" if eta > 2 * rho else "below"].append(_conditions(H, eta, rho))
    names = ("a (1 + rho a)", "E H_i^2 - H^2", "E H_i^3 - H^3", "E H_i^4 - H^4")
    inside, outside = np.array(found["above"]), np.array(found["below"])
    # Bisection leaves 1e-12 of the largest step, with which a condition may hold with equality.
    parts = [
        below(f"{name}, largest share of its limit", 1 + 1e-9, float(value))
        for name, value in zip(names, inside.max(0), strict=True)
    ]
    parts.append(seen("cases with eta > 2 rho", len(inside)))
    parts += [
        seen(f"{name}, largest share for eta <= 2 rho", float(v)) for name, v in zip(names, outside.max(0), strict=True)
    ]
    return Finding(tuple(parts), None, "Where eta <= 2 rho the last condition is not necessary: stable steps break it.")


def _curvatures(source: np.random.Generator) -> Array:
    """Return positive semidefinite H_i (m, 3, 3), of rank 1 to 3 and of very different sizes."""
    m, rank = int(source.integers(2, 8)), int(source.integers(1, 4))
    factors = source.standard_normal((m, 3, rank)) * np.exp(source.standard_normal((m, 1, 1)) * 0.7)
    H: Array = np.einsum("mik,mjk->mij", factors, factors)
    return H


def _factors(H: Array, eta: float, rho: float) -> Array:
    factors: Array = np.eye(3) - eta * (H + rho * H @ H)
    return factors


def _contracts(H: Array, eta: float, rho: float) -> bool:
    """Return whether E ||x||^2 falls in every step, whatever x is."""
    A = _factors(H, eta, rho)
    return bool(np.linalg.eigvalsh((A @ A).mean(0))[-1] <= 1)


def _is_stable(H: Array, eta: float, rho: float) -> bool:
    """Return whether E ||x_t||^2 stays bounded: the spectral radius of X -> E A_i X A_i is at most 1."""
    A = _factors(H, eta, rho)
    operator = np.einsum("mij,mkl->ikjl", A, A).reshape(9, 9) / len(A)
    return bool(np.abs(np.linalg.eigvals(operator)).max() <= 1)


def _largest(test: Test, H: Array, rho: float) -> float:
    """Return the largest step that passes, by bisection."""
    low, high = 0.0, 4 / float(np.linalg.eigvalsh(H.mean(0))[-1])
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if test(H, middle, rho) else (low, middle)
    return low


def _conditions(H: Array, eta: float, rho: float) -> Array:
    """Return the left side of each condition over its right side (4,)."""
    mean = H.mean(0)
    top = float(np.linalg.eigvalsh(mean)[-1])

    def spread(k: int) -> float:
        power = np.linalg.matrix_power
        return float(np.linalg.eigvalsh(power(H, k).mean(0) - power(mean, k))[-1])

    second = spread(2) * eta * (eta - 2 * rho) if eta > 2 * rho else 0.0
    return np.array(
        [top * (1 + rho * top) * eta / 2, second, spread(3) * 2 * eta**2 * rho, spread(4) * (eta * rho) ** 2]
    )


CLAIMS = (
    Claim(
        "overparameterization/linear-rate",
        "Where every example can be fitted, E f(x_t) <= (1 - eta* q/2)^t f(x_0) with q = alpha - (beta + alpha/2) beta "
        "rho and eta* = q/(2 L beta (beta rho + 1)^2).",
        f"linear convergence under interpolation: {_SOURCE}; these constants are derived here",
        partial(linear_rate, 3000, 200),
        partial(linear_rate, 20_000, 400),
    ),
    Claim(
        "overparameterization/stability",
        "For eta > 2 rho a minimum that fits every example is linearly stable only if a (1 + rho a) <= 2/eta, a = "
        "lambda_max(H), "
        "lambda_max(E H_i^2 - H^2) <= 1/(eta (eta - 2 rho)), lambda_max(E H_i^3 - H^3) <= 1/(2 eta^2 rho) and "
        "lambda_max(E H_i^4 - H^4) <= 1/(eta rho)^2.",
        f"the form of {_SOURCE}; the range of eta is derived here",
        partial(stability, 300),
        partial(stability, 2000),
    ),
)
