"""Which sharpness SAM lowers: Wen, Ma and Li (2023), on a quadratic and on their toy.

The toy is L(x) = F1 x3^2 + F2 x4^2, F1 = x1^2 + 6 x2^2 + 8, F2 = 4 (1 - x1)^2 + (1 - x2)^2 + 1: its minima are
x3 = x4 = 0, where the non-zero eigenvalues of the Hessian are 2 F1 > 2 F2.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hessprobe.optim import SAM
from hessprobe.sharpness import ascent_direction, average_direction, worst_direction
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, below, near, seen
from hessprobe.validation.dynamics import (
    Array,
    FunctionObjective,
    hessian,
    mean_and_error,
    optimize,
    plain_sgd,
    relative_gap,
)

_SOURCE = "Wen, Ma, Li (2023)"
_START = (0.9, 0.7, 0.3, 0.4)


def toy(x: Tensor) -> Tensor:
    """Return the loss of the toy."""
    f1 = x[0] ** 2 + 6 * x[1] ** 2 + 8
    f2 = 4 * (1 - x[0]) ** 2 + (1 - x[1]) ** 2 + 1
    return f1 * x[2] ** 2 + f2 * x[3] ** 2


def toy_gradient(x: Array, parts: tuple[float, float] | Array = (1.0, 1.0)) -> Array:
    """Return the gradients (runs, 4) of parts[0] F1 x3^2 + parts[1] F2 x4^2 at ``x`` (runs, 4)."""
    a, b, c, d = x.T
    p, q = np.asarray(parts).T
    f1, f2 = a**2 + 6 * b**2 + 8, 4 * (1 - a) ** 2 + (1 - b) ** 2 + 1
    c2, d2 = p * c**2, q * d**2
    slopes = (2 * a * c2 - 8 * (1 - a) * d2, 12 * b * c2 - 2 * (1 - b) * d2, 2 * p * f1 * c, 2 * q * f2 * d)
    return np.stack(slopes, 1)


def sam_step(x: Array, eta: float, rho: float, parts: tuple[float, float] | Array = (1.0, 1.0)) -> Array:
    """Return the points after one step of SAM from each of ``x`` (runs, 4)."""
    g = toy_gradient(x, parts)
    return x - eta * toy_gradient(x + rho * g / np.linalg.norm(g, axis=1, keepdims=True), parts)


def quadratic_fixed_point() -> Finding:
    """On a quadratic SAM ends on a bounce of known length along the top eigenvector."""
    values = torch.tensor([5, 3, 2, 1, 0.5, 0.2], dtype=torch.float64)
    start = torch.tensor([0.3, -0.2, 0.25, 0.1, -0.3, 0.2], dtype=torch.float64)
    parts: list[Part] = []
    for eta, rho in ((0.1, 0.1), (0.19, 0.05), (0.05, 1.0)):
        points = optimize(
            lambda p, eta=eta, rho=rho: SAM(plain_sgd(p, eta), rho=rho),  # type: ignore[misc]  # defaults bind
            lambda x, t: (values * x**2).sum() / 2,
            start,
            1200,
        )
        expected, end = eta * rho * 5 / (2 - eta * 5), points[-1]
        # The optimizer adds 1e-12 to the gradient's norm, of the size of 5 times the expected length.
        slack = 1e-10 * expected
        parts += [
            near(f"norm, eta {eta:g}, rho {rho:g}", expected, float(end.norm()), slack),
            below(f"1 - cos, eta {eta:g}, rho {rho:g}", 1e-10, max(1 - float(end[0].abs() / end.norm()), 0.0)),
        ]
    return Finding(tuple(parts))


def limits() -> Finding:
    """R/rho^2 at a minimum for each of the three notions, against its expansion in rho."""
    rhos, at = (0.1, 0.01, 0.001), (0.6, 0.4, 0.0, 0.0)
    minimum = FunctionObjective(toy, at)
    worst = [each.value / each.rho**2 for each in worst_direction(minimum, list(rhos), steps=60)]
    slope, bend = np.array([2 * at[0], 12 * at[1]]), np.array([2.0, 12.0])
    tilt = slope / (2 * 9.32)
    # The maximum of F1(x + rho w) (1 - |w|^2) lies at w = rho grad F1/(2 F1) to first order.
    fourth = float((bend * tilt**2).sum() / 2 - slope @ tilt * (tilt**2).sum())
    expected = [9.32 + r**2 * float(slope @ slope) / (4 * 9.32) + r**4 * fourth for r in rhos]
    # An ascent ends after three gains below 1e-4 of the value; the last term kept stands for the next.
    slack = [3e-4 * e + r**4 * abs(fourth) for e, r in zip(expected, rhos, strict=True)]
    parts = [near(f"worst, rho {r:g}", *row) for r, *row in zip(rhos, expected, worst, slack, strict=True)]
    for result in average_direction(minimum, list(rhos), n_probes=4000):
        # Exact, from E u_i^2 = 1/4 and E u_i^2 u_j^2 = 1/24 on the sphere.
        mean, scale = 2.83 + 12 * result.rho**2 / 24, result.rho**2
        found, error = result.value / scale, result.estimate.std_error / scale
        parts.append(agrees(f"average, rho {result.rho:g}", mean, found, error))
    parts += [_ascent_limit(*case) for case in (("along e4", 0, 1), ("along e3", 1, 0), ("mixed", 1, 1))]
    lines = (Series.of("measured", rhos, worst), Series.of("expansion", rhos, expected, dashed=True))
    return Finding(tuple(parts), Curve("radius", "worst-direction R / rho^2", lines, log_x=True))


def _ascent_limit(label: str, third: float, last: float) -> Part:
    """Compare R/rho^2 along the ascent direction at a point off the minimum by 1e-6 (third, last)."""
    off, rho, F = 1e-6 * np.array([third, last]), 1e-3, np.array([9.32, 2.0])
    u = F * off / np.linalg.norm(F * off)
    # Exact for constant F1, F2; these move by rho times the part of u along the manifold, which is of order off.
    expected = float((F * (u**2 + 2 * u * off / rho)).sum())
    (found,) = ascent_direction(FunctionObjective(toy, (0.6, 0.4, *off.tolist())), rho)
    return near(f"ascent {label}", expected, found.value / rho**2, 20 * rho * 1e-6 + 1e-9)


def full_batch() -> Finding:
    """Full-batch SAM: the class, then the same rule for 20,000 steps, against end point and ODE.

    On its bounce |x3| = c = eta rho lambda_1/(2 - eta lambda_1), so that the gradient is taken at
    |x3| + rho = 2 rho/(2 - eta lambda_1) and at (x1, x2) + rho c grad F1/(2 F1).
    """
    eta, rho, steps, arrived = 0.02, 0.1, 20_000, 200
    points = optimize(lambda p: SAM(plain_sgd(p, eta), rho=rho), lambda x, t: toy(x), _START, 1000).numpy()
    x = np.array([_START])
    path = [x[0]]
    for _ in range(steps):
        x = sam_step(x, eta, rho)
        path.append(x[0])
    track = np.array(path)
    end, ode = track[-1], _flow(track[arrived, :2], eta, rho, steps - arrived)
    bounce = eta * rho * 16 / (2 - eta * 16)
    gradient = toy_gradient(end[None])[0]
    shown = np.arange(0, steps + 1, 50)
    lines = (
        Series.of("SAM", shown, track[shown, 0]),
        Series.of("ODE of lambda_1", shown[4:], ode[shown[4:] - arrived, 0], dashed=True),
    )
    # exp(-(1 + e) s) and exp(-s) are e/(2.718) apart at most; e = rho c/F1 is the first correction, which is in the ODE
    # and stands for the next.
    start = float(track[arrived, 0])
    slack = start / math.e * rho * bounce / 8
    parts = (
        below("class against the rule, 1000 steps", 1e-10, relative_gap(points, track[:1001])),
        below("largest distance of x1 from the ODE", slack, float(np.abs(track[arrived:, 0] - ode[:, 0]).max())),
        near("x1 at the end", float(ode[-1, 0]), end[0], slack),
        near("x2 at the end", 0.0, end[1], slack),
        near("lambda_1 at the end", 16.0, 2 * (end[0] ** 2 + 6 * end[1] ** 2 + 8), 24 * slack**2 + 1e-9),
        near("|x3|, the bounce", bounce, abs(end[2]), bounce * (24 * slack**2 + 1e-9)),
        below("1 - |cos(g, e3)|", slack**2 + 1e-12, max(1 - abs(gradient[2]) / float(np.linalg.norm(gradient)), 0.0)),
    )
    return Finding(parts, Curve("step", "x1", lines))


def _flow(at: Array, eta: float, rho: float, steps: int) -> Array:
    """Return (x1, x2) along dX/dtau = -grad lambda_1/2 in steps of SAM, (steps + 1, 2).

    tau = eta rho^2 (2/(2 - eta lambda_1))^2 t allows for the bounce, 1 + rho c F1''/(2 F1) for where grad F1 is taken.
    """
    a, b = (float(v) for v in at)
    values = np.empty((steps + 1, 2))
    for t in range(steps + 1):
        values[t] = a, b
        (w1, shift), _ = _drifts(a, b, eta, rho)
        clock = eta * rho**2 * w1
        a, b = a - clock * 2 * a * (1 + 2 * shift), b - clock * 12 * b * (1 + 12 * shift)
    return values


def _drifts(a: float, b: float, eta: float, rho: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return for F1 and F2 the weight (2/(2 - eta lambda))^2 of the drift, and rho c/(2 F), c the bounce's length."""
    found = []
    for F in (a * a + 6 * b * b + 8, 4 * (1 - a) ** 2 + (1 - b) ** 2 + 1):
        rest = 2 - eta * 2 * F
        found.append(((2 / rest) ** 2, rho * eta * rho / rest))
    return found[0], found[1]


def alignment() -> Finding:
    """Along a run of SAM the gradient turns to the top eigenvector, up to |grad F1| c/(2 F1), c the bounce."""
    eta, lines = 0.02, []
    parts: list[Part] = []
    for rho in (0.1, 0.05):
        points = optimize(lambda p, rho=rho: SAM(plain_sgd(p, eta), rho=rho), lambda x, t: toy(x), _START, 1500)  # type: ignore[misc]  # defaults bind
        g = toy_gradient(points.numpy())[::25]
        top = torch.linalg.eigh(torch.stack([hessian(toy, x) for x in points[::25]])).eigenvectors[:, :, -1].numpy()
        cosine = np.abs((g * top).sum(1)) / np.linalg.norm(g, axis=1)
        lines.append(Series.of(f"rho {rho:g}", range(0, 1501, 25), cosine))
        a, b = (float(v) for v in points[-1, :2])
        F = a * a + 6 * b * b + 8
        c = eta * rho * 2 * F / (2 - eta * 2 * F)
        # The gradient is tilted by grad F1 c/(2 F1), the eigenvector by twice that; second derivatives of F1, 12 at
        # most, times c^2 and rho c are what is left out.
        angle, size = math.hypot(2 * a, 12 * b) * c / (2 * F), float(np.linalg.norm(g[-1]))
        across = float(np.linalg.norm(g[-1] / size - top[-1] * np.sign(g[-1] @ top[-1])))
        parts.append(
            near(
                f"angle at the end, rho {rho:g}", angle, 2 * math.asin(across / 2), angle * 12 * c * (c + rho) / (2 * F)
            )
        )
    return Finding(tuple(parts), Curve("step", "|cos(gradient, top eigenvector)|", tuple(lines)))


def one_sam(runs: int, steps: int) -> Finding:
    """1-SAM: the mean over the second half of many runs, against the trace's minimiser with its correction."""
    parts: list[Part] = []
    for eta, rho, length in ((0.02, 0.1, steps), (0.01, 0.1, 2 * steps)):
        mean, error = _one_sam_mean(eta, rho, runs, length)
        fixed = corrected(eta, rho)
        parts += [agrees(f"x{k + 1}, eta {eta:g}", fixed[k], mean[k], error[k]) for k in range(2)]
        parts.append(seen(f"distance from argmin tr, eta {eta:g}", float(np.linalg.norm(mean - (0.8, 1 / 7)))))
    note = (
        "With finite steps F_k has the weight (2/(2 - eta lambda_k))^2, and its gradient is taken further on, by "
        "rho c_k/(2 F_k) times itself, c_k being the length of the bounce."
    )
    return Finding(tuple(parts), None, note)


def _one_sam_mean(eta: float, rho: float, runs: int, steps: int) -> tuple[Array, Array]:
    source = np.random.default_rng(0)
    # On the manifold from the start, at argmin tr: the way there takes 1/(eta rho^2) steps.
    x = np.tile((0.8, 1 / 7, 0.02, 0.005), (runs, 1))
    total = np.zeros((runs, 2))
    for t in range(steps):
        first = source.random(runs) < 0.5
        x = sam_step(x, eta, rho, np.stack([first, ~first], 1).astype(float))
        if t >= steps // 2:
            total += x[:, :2]
    return mean_and_error(total / (steps - steps // 2))


def corrected(eta: float, rho: float) -> Array:
    """Return where the mean drift of 1-SAM vanishes: argmin tr for eta -> 0."""
    a, b = 0.8, 1 / 7
    for _ in range(200):
        (w1, s1), (w2, s2) = _drifts(a, b, eta, rho)
        along, across = w2 * 8 * (1 + 8 * s2), w2 * 2 * (1 + 2 * s2)
        a = along / (w1 * 2 * (1 + 2 * s1) + along)
        b = across / (w1 * 12 * (1 + 12 * s1) + across)
    return np.array([a, b])


def one_sam_class() -> Finding:
    """The vectorised rule of 1-SAM is that of the class."""
    eta, rho, source = 0.02, 0.1, np.random.default_rng(1)
    choice = source.integers(0, 2, 500)

    def loss(x: Tensor, t: int) -> Tensor:
        if choice[t - 1] == 0:
            return (x[0] ** 2 + 6 * x[1] ** 2 + 8) * x[2] ** 2
        return (4 * (1 - x[0]) ** 2 + (1 - x[1]) ** 2 + 1) * x[3] ** 2

    points = optimize(lambda p: SAM(plain_sgd(p, eta), rho=rho), loss, _START, len(choice)).numpy()
    x, path = np.array([_START]), [np.array(_START)]
    for k in choice:
        x = sam_step(x, eta, rho, (float(k == 0), float(k == 1)))
        path.append(x[0])
    return Finding((below("class against the rule, 500 steps", 1e-10, relative_gap(points, np.array(path))),))


def ascent_loss(steps: int) -> Finding:
    """Gradient descent on the ascent-direction loss goes to argmin lambda_M, the smallest non-zero eigenvalue."""
    rho, eta = 1.0, 1e-5
    a, b, c, d = 0.5, 0.4, 0.3, 0.4
    track = [(a, b)]
    for t in range(1, steps + 1):
        a, b, c, d = _ascent_step(a, b, c, d, rho, eta)
        if t % (steps // 100) == 0:
            track.append((a, b))
    gradient = toy_gradient(np.array([[a, b, c, d]]))[0]
    at = np.linspace(0, steps, len(track)).tolist()
    curve = Curve("step", "position", tuple(Series.of(f"x{i + 1}", at, [p[i] for p in track]) for i in range(2)))
    # Along e4 the loss is F2 (|x4| + rho)^2: the gaps shrink by 8 eta rho^2 and 2 eta rho^2 a step. To first order in
    # eta, with rho = F2 = 1, |x4| bounces at eta: 2 eta from (|x4| + rho)^2, eta from where grad F2 is taken, eta from
    # how that moves with x, and eta from the step's own length.
    half = len(track) // 2
    passed = (len(track) - 1 - half) * (steps // 100)
    rate, before = 2 * eta * rho**2 * passed * (1 + 5 * eta), abs(1 - track[half][1])
    left = before * math.exp(-rate * (1 - eta))
    parts = (
        below("|1 - x1|", left, abs(1 - a)),
        below("|1 - x2|", left, abs(1 - b)),
        near("log of the shrinkage of 1 - x2 over the second half", -rate, math.log(abs(1 - b) / before), rate * eta),
        below("1 - |cos(g, e4)|", eta, float(1 - abs(gradient[3]) / np.linalg.norm(gradient))),
    )
    return Finding(parts, curve)


def _ascent_step(a: float, b: float, c: float, d: float, rho: float, eta: float) -> tuple[float, float, float, float]:
    """Return the point after x - eta (grad L(y) + rho H (I - u u') grad L(y)/||g||), y = x + rho u, in plain floats."""
    f1, f2 = a * a + 6 * b * b + 8, 4 * (1 - a) ** 2 + (1 - b) ** 2 + 1
    g = _slope(a, b, c, d)
    size = math.sqrt(g[0] ** 2 + g[1] ** 2 + g[2] ** 2 + g[3] ** 2)
    u = (g[0] / size, g[1] / size, g[2] / size, g[3] / size)
    s = _slope(a + rho * u[0], b + rho * u[1], c + rho * u[2], d + rho * u[3])
    along = u[0] * s[0] + u[1] * s[1] + u[2] * s[2] + u[3] * s[3]
    k = rho / size
    v0, v1, v2, v3 = (k * (s[i] - along * u[i]) for i in range(4))
    h0 = (2 * c * c + 8 * d * d) * v0 + 4 * a * c * v2 - 16 * (1 - a) * d * v3
    h1 = (12 * c * c + 2 * d * d) * v1 + 24 * b * c * v2 - 4 * (1 - b) * d * v3
    h2 = 4 * a * c * v0 + 24 * b * c * v1 + 2 * f1 * v2
    h3 = -16 * (1 - a) * d * v0 - 4 * (1 - b) * d * v1 + 2 * f2 * v3
    return (
        a - eta * (s[0] + h0),
        b - eta * (s[1] + h1),
        c - eta * (s[2] + h2),
        d - eta * (s[3] + h3),
    )


def _slope(a: float, b: float, c: float, d: float) -> tuple[float, float, float, float]:
    f1, f2 = a * a + 6 * b * b + 8, 4 * (1 - a) ** 2 + (1 - b) ** 2 + 1
    return (
        2 * a * c * c - 8 * (1 - a) * d * d,
        12 * b * c * c - 2 * (1 - b) * d * d,
        2 * f1 * c,
        2 * f2 * d,
    )


CLAIMS = (
    Claim(
        "wen-ma-li/quadratic-fixed-point",
        "On a quadratic with a simple top eigenvalue SAM ends on a bounce along its "
        "eigenvector, of length eta rho lambda_1/(2 - eta lambda_1).",
        f"{_SOURCE}, Theorem 4.8",
        quadratic_fixed_point,
    ),
    Claim(
        "wen-ma-li/limits",
        "At a minimum R/rho^2 tends to lambda_1/2 (worst), Tr/(2D) (average), and for the ascent direction to a value "
        "between lambda_M/2 and lambda_1/2 that depends on the approach.",
        f"{_SOURCE}, Definition 4.1",
        limits,
    ),
    Claim(
        "wen-ma-li/full-batch",
        "Full-batch SAM follows dX/dtau = -P grad lambda_1 / 2 with error O(eta ln(1/rho)) and ends where lambda_1 is "
        "least.",
        f"{_SOURCE}, Theorem 4.5; the finite-step time scale is derived here",
        full_batch,
    ),
    Claim(
        "wen-ma-li/alignment",
        "Along a run of full-batch SAM the angle between gradient and top eigenvector becomes O(rho).",
        f"{_SOURCE}, Theorem 4.5",
        alignment,
    ),
    Claim(
        "wen-ma-li/1-sam",
        "SAM with batch size 1 ends, up to O(eta^(1/2) + rho), where the trace is least; with finite steps nearer to "
        "the point where the eigenvalues are weighted by (2/(2 - eta lambda_k))^2.",
        f"{_SOURCE}, Theorem 5.4; the correction is derived here",
        partial(one_sam, 128, 12_000),
        partial(one_sam, 512, 20_000),
    ),
    Claim(
        "wen-ma-li/1-sam-class",
        "The vectorised dynamics of the claims on 1-SAM are those of hessprobe.optim.SAM.",
        "derived here",
        one_sam_class,
    ),
    Claim(
        "wen-ma-li/ascent-loss",
        "Gradient descent on the ascent-direction loss ends where the smallest non-zero eigenvalue is least.",
        f"{_SOURCE}, section 4",
        partial(ascent_loss, 600_000),
        full=True,
    ),
)
