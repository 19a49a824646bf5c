"""Which direction raises the loss most: XSAM (Chen and Zhou, 2026), on random quadratics and on a small network.

On L(v) = g'v + v'Hv/2 with g_1 = (I + rho H/||g||) g, the rise at rho_m along u = v/||v|| is rho_m <g, u> +
rho_m^2 R(u)/2, R the Rayleigh quotient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hessprobe.optim import XSAM
from hessprobe.sharpness.arc import slerp
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, at_least, near, seen
from hessprobe.validation.dynamics import Array, direction, mean_and_error, plain_sgd
from hessprobe.validation.networks import Network, teacher_data

_SOURCE = "Chen, Zhou (2026)"
_ALPHAS = np.round(np.arange(21) * 0.1, 12)


@dataclass(frozen=True)
class Quadratics:
    """Many L(v) = g'v + v'Hv/2 at once: g (n, d), H (n, d, d)."""

    g: Array
    H: Array

    @classmethod
    def draw(cls, n: int, d: int, seed: int, *, definite: bool = True) -> Quadratics:
        """Return eigenvalues e^N(0,1) times a size of the same law (or N(0,1)), in random bases, and g ~ N(0, I)."""
        source = np.random.default_rng(seed)
        basis = np.linalg.qr(source.standard_normal((n, d, d)))[0]
        values = source.standard_normal((n, d))
        if definite:
            values = np.exp(values + source.standard_normal((n, 1)))
        return cls(source.standard_normal((n, d)), np.einsum("nik,nk,njk->nij", basis, values, basis))

    def rise(self, v: Array) -> Array:
        """Return L(v) (n,) at ``v`` (n, d)."""
        found: Array = (self.g * v).sum(1) + self.bend(v) / 2
        return found

    def bend(self, v: Array) -> Array:
        """Return v'Hv (n,)."""
        found: Array = np.einsum("ni,nij,nj->n", v, self.H, v)
        return found

    def ends(self, rho: float) -> Array:
        """Return the gradients g_1 (n, d) at the ends of SAM's ascents of length rho."""
        ends: Array = self.g + rho * np.einsum("nij,nj->ni", self.H, _unit(self.g))
        return ends

    def thresholds(self, rho: float) -> Array:
        """Return rho_0 = 2 (||g|| - <g, g_1>/||g_1||) / (R(g_1) - R(g)), (n,)."""
        first, last = _unit(self.g), _unit(self.ends(rho))
        found: Array = 2 * (self.g * (first - last)).sum(1) / (self.bend(last) - self.bend(first))
        return found

    def arc(self, rho: float, alpha: float) -> Array:
        """Return v(alpha) (n, d) between u(g) and u(g_1)."""
        first, last = _unit(self.g), _unit(self.ends(rho))
        psi = 2 * np.arctan2(np.linalg.norm(last - first, axis=1), np.linalg.norm(last + first, axis=1))[:, None]
        arc: Array = (np.sin((1 - alpha) * psi) * first + np.sin(alpha * psi) * last) / np.sin(psi)
        return arc

    def greatest(self, radius: float) -> Array:
        """Return the maximum of L over ||v|| = radius (n,): v = (m I - H)^{-1} g with m above every eigenvalue."""
        values, vectors = np.linalg.eigh(self.H)
        along = np.einsum("nij,ni->nj", vectors, self.g)
        low = values[:, -1] + np.abs(along[:, -1]) / radius * 1e-9
        high = values[:, -1] + np.linalg.norm(self.g, axis=1) / radius
        for _ in range(200):
            middle = (low + high) / 2
            long = np.linalg.norm(along / (middle[:, None] - values), axis=1) > radius
            low, high = np.where(long, middle, low), np.where(long, high, middle)
        v = along / (high[:, None] - values)
        found: Array = (along * v).sum(1) + (values * v**2).sum(1) / 2
        return found


def threshold(draws: int) -> Finding:
    """The sign of L(rho_m u(g_1)) - L(rho_m u(g)) changes at rho_0, and R(g_alpha) increases."""
    rho, wrong, falling, ratios = 0.1, 0, 0, []
    for seed, d in enumerate((2, 5, 10, 20)):
        problem = Quadratics.draw(draws // 4, d, seed)
        limit = problem.thresholds(rho)
        last, first = _unit(problem.ends(rho)), _unit(problem.g)
        for share, sign in ((0.99, -1), (1.01, 1)):
            reach = (share * limit)[:, None]
            wrong += int((sign * (problem.rise(reach * last) - problem.rise(reach * first)) <= 0).sum())
        quotients = np.stack(
            [problem.bend(_unit(a * problem.ends(rho) + (1 - a) * problem.g)) for a in np.linspace(0, 4, 41)]
        )
        # Differences below rounding say nothing.
        falling += int((np.diff(quotients, axis=0) < -1e-14 * np.abs(quotients[1:])).any(0).sum())
        ratios.append(limit / rho)
    middle, tail = np.quantile(np.concatenate(ratios), (0.5, 0.95))
    return Finding(
        (
            near(f"of {draws} draws, on the wrong side at 0.99 or 1.01 of rho_0", 0.0, wrong, 0.0),
            near(f"of {draws} draws, R(g_alpha) falling somewhere in alpha <= 4", 0.0, falling, 0.0),
            _searched(),
            seen("rho_0/rho, median", middle),
            seen("rho_0/rho, 95 % quantile", tail),
        )
    )


def _searched() -> Part:
    """Compare the class's alpha* with the closed form at radii around the threshold."""
    rho, problem, wrong = 0.1, Quadratics.draw(20, 5, 9), 0
    limits = problem.thresholds(rho)
    for i, limit in enumerate(limits):
        one = Quadratics(problem.g[i : i + 1], problem.H[i : i + 1])
        for share in (0.5, 1.5):
            reach = float(share * limit)
            rises = [float(one.rise(reach * one.arc(rho, float(a)))[0]) for a in _ALPHAS]
            wrong += int(abs(_class_alpha(one, rho, reach) - _ALPHAS[int(np.argmax(rises))]) > 1e-9)
    return near("of 40 searches of the class, another alpha* than in closed form", 0.0, wrong, 0.0)


def _class_alpha(one: Quadratics, rho: float, reach: float) -> float:
    g, H = torch.from_numpy(one.g[0]), torch.from_numpy(one.H[0])
    made: list[XSAM] = []

    def make(p: list[Tensor]) -> XSAM:
        made.append(XSAM(plain_sgd(p, 1.0), rho=rho, rho_max=reach))
        return made[0]

    direction(make, lambda x: g @ x + x @ H @ x / 2, torch.zeros_like(g))
    return float(made[0].last.extra["alpha"])


def indefinite(draws: int) -> Finding:
    """For large rho_m the sign of R(g_1) - R(g) decides; H of both signs, ascents from short to far too long."""
    parts: list[Part] = []
    wrong, long = 0, []
    for d in (3, 6, 20):
        problem = Quadratics.draw(draws, d, d, definite=False)
        values = np.linalg.eigvalsh(problem.H)
        c = np.random.default_rng(d).uniform(0, 4, draws) / np.abs(values).max(1)
        ends = problem.g + c[:, None] * np.einsum("nij,nj->ni", problem.H, problem.g)
        worse = problem.bend(_unit(ends)) <= problem.bend(_unit(problem.g))
        positive = 1 + c * values[:, 0] > 0
        wrong += int((worse & positive).sum())
        share = float(worse[~positive].mean())
        error = math.sqrt(share * (1 - share) / int((~positive).sum()))
        parts.append(seen(f"share of counter-examples beyond that, d {d}", share, error))
        long.append(float(positive.mean()))
    parts.insert(0, near("counter-examples where I + cH > 0", 0.0, wrong, 0.0))
    parts.insert(1, seen("share of draws where I + cH > 0", float(np.mean(long))))
    return Finding(tuple(parts))


def gains(draws: int) -> Finding:
    """Mean rises at rho_m = 2 rho along the gradient, SAM's gradient and v(alpha*), and the largest on the sphere."""
    rho, problem = 0.15, Quadratics.draw(draws, 20, 4)
    arc = np.stack([problem.rise(2 * rho * problem.arc(rho, float(a))) for a in _ALPHAS])
    first, last, best, top = arc[0], arc[10], arc.max(0), problem.greatest(2 * rho)
    room = top - first
    share = [mean_and_error((rise - first) / room) for rise in (last, best)]
    means = arc.mean(1)
    return Finding(
        (
            _ahead("SAM's gradient over the gradient, mean difference", last - first),
            _ahead("v(alpha*) over SAM's gradient, mean difference", best - last),
            near(f"of {draws} draws, rises above the maximum on the sphere", 0.0, int((best > top).sum()), 0.0),
            seen("share of draws with SAM's gradient ahead of the gradient", float((last > first).mean())),
            seen("share of the way from the gradient to the maximum: SAM", float(share[0][0]), float(share[0][1])),
            seen("share of the way from the gradient to the maximum: XSAM", float(share[1][0]), float(share[1][1])),
        ),
        Curve("alpha", "mean rise at rho_m", (Series.of("along v(alpha)", _ALPHAS, means),)),
    )


def network(epochs: int) -> Finding:
    """XSAM on a small network: rises along the three directions with an alpha* of the epoch's first batch."""
    run = _train(epochs)
    warm = epochs // 3
    alphas, rises = run.alphas[warm:], run.rises[warm:]
    steps = np.abs(np.diff(alphas))
    apart = np.abs(alphas[:, None] - alphas[None])[np.triu_indices(len(alphas), 1)]
    # Batches of an epoch share alpha and nearly the weights: the epochs are taken as the independent units.
    later = rises[:, 1:].mean(1)
    parts = (
        _ahead("SAM's gradient over the gradient, batches after the search", later[:, 1] - later[:, 0]),
        _ahead("v(alpha*) over SAM's gradient, batches after the search", later[:, 2] - later[:, 1]),
        _ahead("alpha* of one epoch before over SAM's gradient", rises[1:, :, 3].mean(1) - rises[1:, :, 1].mean(1)),
        seen("mean change of alpha* from epoch to epoch", float(steps.mean())),
        seen("mean difference of alpha* between any two epochs", float(apart.mean())),
        seen("mean alpha*", float(alphas.mean())),
        seen("mean angle between gradient and SAM's gradient, degrees", float(np.degrees(run.angles[warm:].mean()))),
    )
    lines = (Series.of("alpha*", range(1, epochs + 1), run.alphas),)
    return Finding(parts, Curve("epoch", "alpha*", lines))


@dataclass(frozen=True)
class _Run:
    """What was seen along training.

    Attributes:
        alphas: alpha* (epochs,).
        angles: of the last batch (epochs,).
        rises: (epochs, batches, 4) along v_0, v_1, v(alpha*), and v(alpha*) with that of the epoch before.
    """

    alphas: Array
    angles: Array
    rises: Array


def _train(epochs: int, *, rho: float = 0.15, per_epoch: int = 10) -> _Run:
    net = Network((20, 32, 32, 10))
    inputs, labels = teacher_data(net, 100 * per_epoch, 0)
    x = net.start(7).requires_grad_()
    optimizer = XSAM(
        torch.optim.SGD([x], lr=0.1, momentum=0.9),
        rho=rho,
        rho_max=2 * rho,
        alpha_max=5.0,
        alpha_step=0.1,
        steps_per_epoch=per_epoch,
    )
    order, alphas, angles, rises, before = torch.Generator().manual_seed(3), [], [], [], 1.0
    for _ in range(epochs):
        row = []
        for batch in torch.randperm(len(labels), generator=order).view(per_epoch, -1):

            def loss(at: Tensor, batch: Tensor = batch) -> Tensor:
                return torch.nn.functional.cross_entropy(net.outputs(at, inputs[batch]), labels[batch])

            start = x.detach().clone()
            optimizer.step(loss=lambda loss=loss: loss(x))
            alpha = float(optimizer.last.extra["alpha"])
            row.append(_rises(loss, start, rho, (0.0, 1.0, alpha, before)))
        before = alpha
        alphas.append(alpha)
        angles.append(float(optimizer.last.extra["angle"]))
        rises.append(row)
    return _Run(np.array(alphas), np.array(angles), np.array(rises))


def _rises(loss: Callable[[Tensor], Tensor], at: Tensor, rho: float, alphas: tuple[float, ...]) -> list[float]:
    """Return L(at + 2 rho v(alpha)) - L(at) for each alpha."""
    slope = torch.func.grad(loss)
    first = slope(at)
    first = first / first.norm()
    last = slope(at + rho * first)
    last = last / last.norm()
    psi = 2 * math.atan2(float((last - first).norm()), float((last + first).norm()))
    pairs = [slerp(psi, alpha) for alpha in alphas]
    with torch.no_grad():
        here = float(loss(at))
        return [float(loss(at + 2 * rho * (a * first + b * last))) - here for a, b in pairs]


def _ahead(label: str, differences: Array) -> Part:
    mean, error = mean_and_error(differences)
    return at_least(label, 0.0, float(mean), float(error))


def _unit(v: Array) -> Array:
    unit: Array = v / np.linalg.norm(v, axis=1, keepdims=True)
    return unit


CLAIMS = (
    Claim(
        "xsam/threshold",
        "For H > 0 and g no eigenvector, the loss at rho_m is higher along SAM's gradient g_1 than along g exactly for "
        "rho_m > rho_0 = 2 (||g|| - <g, g_1>/||g_1||)/(R(g_1) - R(g)), and R(alpha g_1 + (1 - alpha) g) increases in "
        "alpha.",
        f"{_SOURCE}, Proposition 1; the threshold is derived here",
        partial(threshold, 2000),
    ),
    Claim(
        "xsam/indefinite",
        "For H of both signs SAM's gradient g_1 = (I + cH) g is still the better direction at large rho_m where I + cH "
        "> 0, c = rho/||g||: the weights (1 + c h)^2 then increase with h. Beyond that it need not be.",
        "derived here, beyond the definite H of Chen, Zhou (2026), Proposition 1",
        partial(indefinite, 20_000),
    ),
    Claim(
        "xsam/gains",
        "In the mean the loss at rho_m rises more along v(alpha*) than along SAM's gradient, and more there than along "
        "the gradient.",
        f"{_SOURCE}, on random quadratics drawn here",
        partial(gains, 2000),
    ),
    Claim(
        "xsam/network",
        "The same on a network with alpha* searched once an epoch: it varies so little that even that of the epoch "
        "before is ahead of SAM's gradient.",
        f"{_SOURCE}",
        partial(network, 30),
        partial(network, 120),
    ),
)
