"""AdaSAM: its rule, and the rate of the mean squared gradient (Sun et al., 2024)."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hessprobe.optim import AdaSAM
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, at_least, below, seen
from hessprobe.validation.dynamics import Array, mean_and_error, optimize, relative_gap

_SOURCE = "Sun et al. (2024)"
_BETAS, _EPS, _DIM, _START = (0.9, 0.99), 0.1, 5, 1.5


def amsgrad() -> Finding:
    """With rho = 0 the class is torch's AMSGrad, its bias corrections undone through the learning rate."""
    noise = torch.randn(300, _DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr = 0.05
    points = optimize(
        lambda p: AdaSAM(p, rho=0.0, lr=lr, betas=_BETAS, eps_root=_EPS),
        lambda x, t: _value(x) + (noise[t - 1] * x).sum(),
        [_START] * _DIM,
        len(noise),
    )
    x = torch.full((_DIM,), _START, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=lr, betas=_BETAS, eps=0.0, amsgrad=True)
    square = torch.full_like(x, _EPS**2)
    adam.state[x] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(x)}
    adam.state[x] |= {"exp_avg_sq": square, "max_exp_avg_sq": square.clone()}
    path = [x.detach().clone()]
    for t, row in enumerate(noise, 1):
        adam.param_groups[0]["lr"] = lr * (1 - _BETAS[0] ** t) / math.sqrt(1 - _BETAS[1] ** t)
        adam.zero_grad()
        torch.autograd.backward(_value(x) + (row * x).sum())
        adam.step()
        path.append(x.detach().clone())
    return Finding((below("relative distance along 300 steps", 1e-12, relative_gap(points, torch.stack(path))),))


def rate(horizons: tuple[int, int, int], runs: int) -> Finding:
    """Mean over t < T of ||grad f||^2 with gamma ~ sqrt(b/T) and rho ~ 1/sqrt(bT), f = sum x^2/(1 + x^2).

    A law slower than T^{-1/2} would make sqrt(bT) times it grow by more from each T to the next, four times as large.
    """
    parts: list[Part] = []
    lines: list[Series] = []
    found = {b: [_mean(b, T, runs) for T in horizons] for b in (1, 4, 16)}
    (one, e1), (two, e2), (three, e3) = (
        (math.sqrt(T) * m, math.sqrt(T) * e) for T, (m, e) in zip(horizons, found[1], strict=True)
    )
    shrinks = "b = 1: how much less sqrt(T) mean grows from the second T than from the first"
    parts.append(at_least(shrinks, 0.0, 2 * two - one - three, math.sqrt(e1**2 + 4 * e2**2 + e3**2)))
    for b, row in found.items():
        (base, base_error), (mean, error) = found[1][-1], row[-1]
        if b > 1:
            relative = math.hypot(base_error / base, error / mean)
            parts.append(at_least(f"speed-up by b = {b}", math.sqrt(b), base / mean, base / mean * relative))
        slope = math.log(mean / row[-2][0]) / math.log(horizons[-1] / horizons[-2])
        parts.append(seen(f"log-log slope between the last two T, b = {b}", slope))
        lines.append(Series.of(f"b = {b}", [b * T for T in horizons], [m for m, _ in row]))
    ends = [horizons[0], 16 * horizons[-1]]
    top = lines[0].y[0] * math.sqrt(horizons[0])
    lines.append(Series.of("1/sqrt(bT)", ends, [top / math.sqrt(end) for end in ends], dashed=True))
    parts.append(_class_against_rule())
    return Finding(tuple(parts), Curve("bT", "mean squared gradient", tuple(lines), log_x=True, log_y=True))


def _class_against_rule() -> Part:
    noise = np.random.default_rng(5).standard_normal((200, _DIM))
    gamma, rho, rows = 0.02, 0.1, torch.from_numpy(noise)
    points = optimize(
        lambda p: AdaSAM(p, rho=rho, lr=gamma, betas=_BETAS, eps_root=_EPS),
        lambda x, t: _value(x) + (rows[t - 1] * x).sum(),
        [_START] * _DIM,
        len(noise),
    ).numpy()
    x, state = np.full((1, _DIM), _START), _first_state(1)
    path = [x[0]]
    for row in noise:
        x, state = _rule(x, row, state, gamma, rho)
        path.append(x[0])
    return below("class against the rule, 200 steps", 1e-10, relative_gap(points, np.array(path)))


def _first_state(runs: int) -> tuple[Array, Array, Array]:
    """Return m, v and vhat at the start, each (runs, d)."""
    square = np.full((runs, _DIM), _EPS**2)
    return np.zeros_like(square), square, square


def _rule(
    x: Array, noise: Array, state: tuple[Array, Array, Array], gamma: float, rho: float
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return the points after one step from each of ``x`` (runs, d), and m, v, vhat; both gradients share the noise."""
    (b1, b2), (first, second, largest) = _BETAS, state
    g = _slope(x) + noise
    s = _slope(x + rho * g / (np.linalg.norm(g, axis=1, keepdims=True) + 1e-12)) + noise
    first, second = b1 * first + (1 - b1) * s, b2 * second + (1 - b2) * s**2
    largest = np.maximum(largest, second)
    return x - gamma * first / np.sqrt(largest), (first, second, largest)


def _value(x: Tensor) -> Tensor:
    return (x**2 / (1 + x**2)).sum()


def _slope(x: Array) -> Array:
    slope: Array = 2 * x / (1 + x**2) ** 2
    return slope


def _mean(batch: int, horizon: int, runs: int) -> tuple[float, float]:
    mean, error = mean_and_error(_run(batch, horizon, runs))
    return float(mean), float(error)


def _run(batch: int, horizon: int, runs: int) -> Array:
    """Return mean_t ||grad f(x_t)||^2 of each run (runs,)."""
    source = np.random.default_rng((batch, horizon))
    gamma, rho = 0.3 * math.sqrt(batch / horizon), 0.5 / math.sqrt(batch * horizon)
    x, total, state = np.full((runs, _DIM), _START), np.zeros(runs), _first_state(runs)
    for _ in range(horizon):
        total += (_slope(x) ** 2).sum(1)
        x, state = _rule(x, source.standard_normal(x.shape) / math.sqrt(batch), state, gamma, rho)
    return total / horizon


CLAIMS = (
    Claim(
        "adasam/amsgrad",
        "With rho = 0 AdaSAM is AMSGrad without bias correction.",
        "derived here, from the rule of the sam_sps repository",
        amsgrad,
    ),
    Claim(
        "adasam/rate",
        "With steps ~ sqrt(b/T) and rho ~ 1/sqrt(bT) the mean squared gradient of AdaSAM is O(1/sqrt(bT)), b the batch "
        "size: bounded after scaling, and smaller by sqrt(b) or more.",
        f"{_SOURCE}",
        partial(rate, (1000, 4000, 16_000), 128),
        partial(rate, (4000, 16_000, 64_000), 256),
    ),
)
