"""Rates of Unified SAM: Oikonomou and Loizou (2025), with the constants of the public code and the proofs redone here.

Rule: e = x + rho (1 - lam + lam/||g||) g, x <- x - gamma grad f_S(e), both gradients on one minibatch S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from hessprobe.optim import UnifiedSAM
from hessprobe.optim.sampling import Importance, Nice
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, below, near, seen
from hessprobe.validation.dynamics import Array, mean_and_error, optimize, plain_sgd, relative_gap
from hessprobe.validation.least_squares import Squares, nice_weights, step

_SOURCE = "Oikonomou, Loizou (2025)"


@dataclass(frozen=True)
class Rates:
    """Constants of the bound: L smoothness, mu PL, A, B, C of the expected residual."""

    L: float
    mu: float
    A: float = 0.0
    B: float = 1.0
    C: float = 0.0

    @property
    def M(self) -> float:
        """B mu + A."""
        return self.B * self.mu + self.A

    def rho(self, lam: float) -> float:
        """Return rho*, the largest radius of the theorem."""
        return self.mu / (self.L * (self.mu + 2 * self.M * (1 - lam) ** 2))

    def gamma(self, lam: float, rho: float) -> float:
        """Return gamma*, the largest step of the theorem at radius ``rho``."""
        top = self.mu - self.L * rho * (self.mu + 2 * self.M * (1 - lam) ** 2)
        return top / (2 * self.L * self.M * (2 * self.L**2 * rho**2 * (1 - lam) ** 2 + 1))

    def floor(self, lam: float, rho: float, gamma: float) -> float:
        """Return N, what the bound tends to."""
        noise = self.C * gamma + rho * (1 + 2 * gamma * self.L**2 * rho) * (self.C * (1 - lam) ** 2 + lam**2)
        return self.L / self.mu * noise


def _settings(rates: Rates, lams: tuple[float, ...], shares: tuple[float, ...]) -> tuple[Array, Array, Array]:
    cells = [(lam, share * rates.rho(lam)) for lam in lams for share in shares]
    gammas = [rates.gamma(lam, rho) for lam, rho in cells]
    lam, rho = np.array(cells).T
    return lam[:, None], rho[:, None], np.array(gammas)[:, None]


def deterministic(steps: int) -> Finding:
    """Underdetermined least squares: PL without strong convexity, 15 settings at once."""
    source = np.random.default_rng(0)
    f = Squares(source.standard_normal((20, 40)), source.standard_normal(20))
    rates = Rates(L=f.spectrum[-1], mu=f.spectrum[0])
    lam, rho, gamma = _settings(rates, (0, 0.25, 0.5, 0.75, 1), (0.1, 0.5, 0.9))
    x = np.zeros((len(lam), 40))
    start, worst, history = f.excess(x), np.zeros(len(lam)), []
    floors = np.array([rates.floor(*cell) for cell in np.hstack([lam, rho, gamma])])
    for t in range(1, steps + 1):
        x = step(x, f.gradient, rho, lam, gamma)
        excess = f.excess(x)
        worst = np.maximum(worst, excess / ((1 - gamma[:, 0] * rates.mu) ** t * start + floors))
        history.append(excess)
    labels = [f"lam {a:g}, rho {b / rates.rho(a):.1f} of rho*" for a, b in np.hstack([lam, rho])]
    parts = [below(f"largest excess/bound, {label}", 1.0, r) for label, r in zip(labels, worst, strict=True)]
    parts.append(_class_against_rule(f, 0.5, float(rho[7, 0]), float(gamma[7, 0])))
    track = np.maximum(np.array(history), 1e-32)
    shown = range(1, steps + 1)
    lines = tuple(Series.of(labels[i], shown, track[:, i]) for i in (0, 1, 7, 12, 13))
    return Finding(tuple(parts), Curve("step", "f - f*", lines, log_y=True))


def _class_against_rule(f: Squares, lam: float, rho: float, gamma: float) -> Part:
    rows, targets = torch.from_numpy(f.rows), torch.from_numpy(f.targets)
    points = optimize(
        lambda p: UnifiedSAM(plain_sgd(p, gamma), rho=rho, lam=lam),
        lambda x, t: ((rows @ x - targets) ** 2).mean() / 2,
        np.zeros(f.rows.shape[1]).tolist(),
        300,
    ).numpy()
    # Step by step: near a minimum lam/||g|| makes the rule amplify differences in the last digit.
    ruled = step(points[:-1], f.gradient, rho, lam, gamma)
    return below("class against the rule, each of 300 steps", 1e-12, relative_gap(points[1:], ruled))


def nonconvex_pl(steps: int) -> Finding:
    """x^2 + 3 sin^2 x: PL but not convex."""
    rates = Rates(L=8.0, mu=1 / 32)
    lam, rho, gamma = _settings(rates, (0, 0.5, 1), (0.1, 0.5, 0.9))
    x = np.full((len(lam), 1), 3.0)

    def value(x: Array) -> Array:
        found: Array = (x**2 + 3 * np.sin(x) ** 2)[:, 0]
        return found

    start, worst = value(x), np.zeros(len(lam))
    floors = np.array([rates.floor(*cell) for cell in np.hstack([lam, rho, gamma])])
    for t in range(1, steps + 1):
        x = step(x, lambda x: 2 * x + 3 * np.sin(2 * x), rho, lam, gamma)
        worst = np.maximum(worst, value(x) / ((1 - gamma[:, 0] * rates.mu) ** t * start + floors))
    labels = [f"lam {a:g}, rho {b / rates.rho(a):.1f} of rho*" for a, b in np.hstack([lam, rho])]
    return Finding(tuple(below(f"largest excess/bound, {k}", 1.0, r) for k, r in zip(labels, worst, strict=True)))


def _orthogonal_design() -> tuple[Squares, Rates, int]:
    source, n, tau = np.random.default_rng(3), 20, 5
    basis = np.linalg.qr(source.standard_normal((n, 3)))[0] * math.sqrt(n)
    f = Squares(basis, basis @ source.standard_normal(3) + 0.3 * source.standard_normal(n))
    # Each f_i alone reaches 0, so that sigma* is f* itself.
    best, *_ = np.linalg.lstsq(f.rows, f.targets, rcond=None)
    sigma = float((f.residuals(best[None]) ** 2).mean() / 2)
    L = float(f.sizes.max())
    A = (n - tau) / (tau * (n - 1)) * L
    return f, Rates(L, float(f.spectrum[0]), A, n * (tau - 1) / (tau * (n - 1)), 2 * A * sigma), tau


def tau_nice(runs: int, steps: int) -> Finding:
    """Minibatches of distinct examples: the mean over runs below the bound at every step."""
    f, rates, tau = _orthogonal_design()
    parts, lines = [], []
    for lam in (0.0, 0.5, 1.0):
        rho = 0.5 * rates.rho(lam)
        gamma = rates.gamma(lam, rho)
        source, x = np.random.default_rng(4), np.full((runs, 3), 3.0)
        start, floor, worst, means = float(f.excess(x)[0]), rates.floor(lam, rho, gamma), (0.0, 0.0), []
        for t in range(1, steps + 1):
            weights = nice_weights(source, runs, f.n, tau)
            x = step(x, lambda x, w=weights: f.gradient(x, w), rho, lam, gamma)  # type: ignore[misc]  # defaults bind
            mean, error = mean_and_error(f.excess(x))
            bound = (1 - gamma * rates.mu) ** t * start + floor
            worst = max(worst, ((float(mean) - 4 * float(error)) / bound, float(mean) / bound))
            means.append(float(mean))
        parts.append(below(f"largest (mean - 4 s.e.)/bound, lam {lam:g}", 1.0, max(worst[0], 0.0)))
        lines.append(Series.of(f"lam {lam:g}", range(1, steps + 1), means))
    return Finding((*parts, _nice_is_unbiased(f, tau)), Curve("step", "mean f - f*", tuple(lines), log_y=True))


def _nice_is_unbiased(f: Squares, tau: int) -> Part:
    """Compare draws of the scheme's class with the uniform law over sets, by the frequency of one pair of examples."""
    scheme, count = Nice(f.n, tau), 4000
    drawn = [set(scheme.draw(t).indices.tolist()) for t in range(1, count + 1)]
    share = sum({0, 1} <= one for one in drawn) / count
    expected = tau * (tau - 1) / (f.n * (f.n - 1))
    return agrees("share of draws with two given examples", expected, share, math.sqrt(expected / count))


def decreasing(runs: int, last: int) -> Finding:
    """Decreasing steps: below the recursion of the theorem at every step, and t E delta_t as large as it must be.

    To leading order the excess of a direction, curvature h and gradient noise s^2 at the minimum, obeys
    v+ = (1 - gamma h)^2 v + gamma^2 s^2; for gamma = 2/(mu t) hence t v -> 4 s^2/(mu^2 (4 h/mu - 1)). What the radius
    and the spread of the h over examples add is smaller by 1/t, so that all lam share this.
    """
    f, rates, tau = _orthogonal_design()
    parts, lines = [], []
    for lam in (0.0, 0.5, 1.0):
        best = 0.5 * rates.rho(lam)
        times = np.arange(1, last + 1)
        gammas = np.minimum(rates.gamma(lam, best), (2 * times - 1) / (times**2 * rates.mu))
        radii = np.minimum(best, 1 / (2 * times - 1))
        source, x, late = np.random.default_rng(5), np.full((runs, 3), 1.0), np.zeros(runs)
        leading, limit = _leading(f, rates.mu, tau, x[0], gammas)
        bound, worst, means = float(f.excess(x)[0]), 0.0, []
        for t, (rho, gamma) in enumerate(zip(radii, gammas, strict=True), 1):
            weights = nice_weights(source, runs, f.n, tau)
            x = step(x, partial(f.gradient, weights=weights), rho, lam, gamma)
            bound = (1 - gamma * rates.mu) * bound + gamma * rates.mu * rates.floor(lam, rho, gamma)
            excess = f.excess(x)
            mean, error = mean_and_error(excess)
            worst = max(worst, (float(mean) - 4 * float(error)) / bound)
            means.append(float(mean))
            late += t * excess * (t > last // 2) / (last - last // 2)
        mean, error = mean_and_error(late)
        expected = float((leading * times)[last // 2 :].mean())
        parts.append(below(f"largest (mean - 4 s.e.)/bound of the recursion, lam {lam:g}", 1.0, worst))
        parts.append(agrees(f"t E delta over the second half, lam {lam:g}", expected, float(mean), float(error)))
        lines.append(Series.of(f"lam {lam:g}", times, means))
    shown = (last / 30, last)
    lines.append(Series.of("limit", shown, [limit / t for t in shown], dashed=True))
    parts.append(seen("limit of t E delta", limit))
    return Finding(tuple(parts), Curve("step", "mean f - f*", tuple(lines), log_x=True, log_y=True))


def _leading(f: Squares, mu: float, tau: int, start: Array, gammas: Array) -> tuple[Array, float]:
    """Return E delta_t (steps,) to leading order, t = 1, 2, ..., for tau-nice sampling, and lim t E delta_t."""
    each = f.residuals(f.best[None]).T * f.rows
    h, vectors = np.linalg.eigh(f.rows.T @ f.rows / f.n)
    noise = (f.n - tau) / (tau * (f.n - 1)) * ((each @ vectors) ** 2).mean(0)
    v, found = ((start - f.best) @ vectors) ** 2, np.empty(len(gammas))
    for t, gamma in enumerate(gammas):
        v = (1 - gamma * h) ** 2 * v + gamma**2 * noise
        found[t] = (h * v).sum() / 2
    return found, float((2 * h * noise / (mu**2 * (4 * h / mu - 1))).sum())


def importance() -> Finding:
    """Importance sampling on a heavy tail, L_i = 1/i: unbiased, larger steps; without weights another minimum."""
    source, n = np.random.default_rng(6), 30
    rows = source.standard_normal((n, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) * np.sqrt(np.arange(1, n + 1))[:, None]
    f = Squares(rows, rows @ np.ones(3) + 0.2 * source.standard_normal(n))
    scheme = Importance.proportional_to(torch.from_numpy(f.sizes))
    p = np.array(scheme.probabilities)
    weights = np.array([float(scheme.weights(torch.tensor([i]))[0]) for i in range(n)])
    x = source.standard_normal((1, 3))
    expected = (p[:, None] * weights[:, None] * f.residuals(x).T * f.rows).sum(0)
    uniform, better = (Rates(L, f.spectrum[0], L, 0.0) for L in (f.sizes.max(), f.sizes.mean()))
    gain = better.gamma(0, 0.5 * better.rho(0)) / uniform.gamma(0, 0.5 * uniform.rho(0))
    # gamma* = mu/(4 L^2 (1 + 2 (L rho)^2)) at half of rho*, where L rho <= mu/(4 L).
    slack = gain * 2 * (better.mu / (4 * better.L)) ** 2
    parts = [
        below("E of the weighted gradient against the gradient", 1e-12, relative_gap(expected, f.gradient(x)[0])),
        near("gain in the largest step", (f.sizes.max() / f.sizes.mean()) ** 2, gain, slack),
    ]
    rho = 0.2
    mean, error = _end_of_runs(f, p, weights, rho)
    parts += [agrees(f"x{k + 1}, weighted rule", f.best[k], mean[k], error[k]) for k in range(3)]
    mean, error = _end_of_runs(f, p, np.ones(n), rho)
    # SAM's ascent multiplies each residual by 1 + rho L_i.
    tilt = np.sqrt(p * (1 + rho * f.sizes))
    tilted = np.linalg.lstsq(f.rows * tilt[:, None], f.targets * tilt, rcond=None)[0]
    parts += [agrees(f"x{k + 1}, rule without weights", tilted[k], mean[k], error[k]) for k in range(3)]
    parts.append(seen("f - f* where the rule without weights ends", float(f.excess(mean[None])[0])))
    return Finding(tuple(parts), None, f"L_max/L_avg = {f.sizes.max() / f.sizes.mean():.3g}.")


def _end_of_runs(f: Squares, p: Array, weights: Array, rho: float) -> tuple[Array, Array]:
    """Return mean and error (3,) of x over the second half of runs of the unnormalised rule, which is linear in x."""
    source, runs, steps = np.random.default_rng(7), 400, 4000
    gamma = 0.3 / float((weights * f.sizes).max())
    x, total = np.tile(f.best, (runs, 1)), np.zeros((runs, 3))
    for t in range(steps):
        chosen = source.choice(f.n, runs, p=p)
        v, a = weights[chosen], f.rows[chosen]
        r = (x * a).sum(1) - f.targets[chosen]
        x = x - (gamma * v * r * (1 + rho * v * f.sizes[chosen]))[:, None] * a
        if t >= steps // 2:
            total += x
    return mean_and_error(total / (steps - steps // 2))


def nonconvex(runs: int, steps: int) -> Finding:
    """The bound on the smallest mean squared gradient, on a sum of non-convex losses without PL."""
    source, n, d, tau = np.random.default_rng(8), 20, 4, 5
    rows, shifts = source.standard_normal((n, d)), source.standard_normal(n)

    def slopes(x: Array, weights: Array) -> Array:
        z = x @ rows.T - shifts
        return (weights * 2 * z / (1 + z**2) ** 2) @ rows

    # z^2/(1 + z^2) has second derivatives between -1/2 and 2, and infimum 0.
    L = 2 * float((rows**2).sum(1).max())
    A, B = (n - tau) / (tau * (n - 1)) * L, n * (tau - 1) / (tau * (n - 1))
    uniform, parts = np.full((runs, n), 1 / n), []
    best = min(_mean_loss(x, rows, shifts) for x in source.standard_normal((2000, d)) * 2)
    for lam in (0.0, 0.5, 1.0):
        rho = 0.02 / L
        gamma = 0.02 / L
        a = gamma * L * rho * (1 - lam) ** 2 + L * gamma**2 * (1 + 2 * L**2 * rho**2 * (1 - lam) ** 2)
        x, draws, least = np.full((runs, d), 1.5), np.random.default_rng(9), math.inf
        delta = _mean_loss(x[0], rows, shifts)
        for _ in range(steps):
            least = min(least, float((slopes(x, uniform) ** 2).sum(1).mean()))
            x = step(x, partial(slopes, weights=nice_weights(draws, runs, n, tau)), rho, lam, gamma)
        noise = 2 * A * best
        # f^inf >= 0, so delta_0 <= f(x_0), and sigma* <= f^inf <= the least loss found.
        bound = 2 * (1 + 2 * A * a) ** steps * delta / (gamma * steps) + 2 * a / gamma * noise
        bound += 2 * L * rho * lam**2 * (1 + 2 * gamma * L**2 * rho)
        parts += [
            below(f"condition L rho/2 + B a/gamma, lam {lam:g}", 0.5, L * rho / 2 + B * a / gamma),
            below(f"least mean squared gradient, lam {lam:g}", bound, least),
        ]
    return Finding(tuple(parts))


def _mean_loss(x: Array, rows: Array, shifts: Array) -> float:
    z = rows @ x - shifts
    return float((z**2 / (1 + z**2)).mean())


_DERIVED = "the bound's floor is derived here from the constants of the public code"
CLAIMS = (
    Claim(
        "unified-sam/linear-rate",
        "Under PL, with full gradients, it stays below (1 - gamma mu)^t delta_0 + N at the largest allowed steps.",
        f"{_SOURCE}, Theorem 3.2; {_DERIVED}",
        partial(deterministic, 4000),
    ),
    Claim(
        "unified-sam/linear-rate-not-convex",
        "The same for a function that is PL but not convex.",
        f"{_SOURCE}, Theorem 3.2; {_DERIVED}",
        partial(nonconvex_pl, 4000),
    ),
    Claim(
        "unified-sam/tau-nice",
        "The same in the mean for minibatches of tau distinct examples.",
        f"{_SOURCE}, Theorem 3.2; {_DERIVED}",
        partial(tau_nice, 1000, 1500),
        partial(tau_nice, 4000, 6000),
    ),
    Claim(
        "unified-sam/decreasing-steps",
        "With steps and radii that decrease like 1/t the mean excess loss is O(1/t), and t times it tends to the same "
        "limit for every lam.",
        f"{_SOURCE}, Theorem 3.5; recursion and limit are derived here",
        partial(decreasing, 400, 4000),
        partial(decreasing, 800, 12_000),
    ),
    Claim(
        "unified-sam/importance-sampling",
        "Sampling proportional to L_i with weights 1/(n p_i) is unbiased and allows steps larger by (L_max/L_avg)^2; "
        "without the weights the p-weighted loss is minimised.",
        f"{_SOURCE}, section 3; the effect of missing weights is derived here",
        importance,
    ),
    Claim(
        "unified-sam/non-convex",
        "Without PL the least mean squared gradient is below 2 (1 + 2Aa)^T delta_0/(gamma T) + (2a/gamma) C + "
        "2 L rho lam^2 (1 + 2 gamma L^2 rho).",
        f"in the form of {_SOURCE}, Theorem 3.7; this bound is derived here",
        partial(nonconvex, 200, 1500),
    ),
)
