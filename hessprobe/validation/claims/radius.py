"""R_rho tends to S at the order that the theory gives, on and off the minimum, plain and antithetic.

Everything is integrated: 60 Gauss-Hermite points a direction for u ~ N(0, I) in two dimensions. Along a line through x

    (L(x + rho u) - L(x)) / rho^2 = sum_{k >= 1} a_k(u) rho^(k-2),     a_k = L^(k)[u, ..., u]/k!,

with a_2 = u^T H u/2; the antithetic mean keeps the even k. Coefficients come from Cauchy's integral on a circle in the
complex plane, so that the predicted expansion of R_rho shares nothing with differences of losses.

What ``evaluate_from_losses`` makes of R_rho: extrapolation, its estimate of the truncation, its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hessprobe.estimate import Estimate
from hessprobe.universal import Measure, catalogue, evaluate, evaluate_from_losses, samplers
from hessprobe.universal.losses import richardson_weights
from hessprobe.universal.quadrature import rule
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, below, near
from hessprobe.validation.dynamics import FunctionObjective, hessian
from hessprobe.validation.networks import digits_network

MINIMUM, ASIDE = (0.4, 0.0), (0.4, 0.3)
_TERMS, _CIRCLE, _RADIUS = 10, 64, 0.5
Point = tuple[float, float]


def bowl(x: Tensor, y: Tensor) -> Tensor:
    """Return e^{.3x} y^2 (1 + .2 sin(x + y))/2 + (xy)^2/4 + (y + .2 y^2)^2/2, with minima y = 0; real or complex."""
    valley = torch.exp(0.3 * x) * y**2 * (1 + 0.2 * torch.sin(x + y)) / 2
    return valley + (x * y) ** 2 / 4 + (y + 0.2 * y**2) ** 2 / 2


def loss(theta: Tensor) -> Tensor:
    """Return the test function of theta (2,)."""
    return bowl(theta[0], theta[1])


def _unit_circle() -> Tensor:
    points: Tensor = torch.exp(2j * math.pi * torch.arange(_CIRCLE, dtype=torch.float64) / _CIRCLE)
    return points


@dataclass(frozen=True, eq=False)
class Lines:
    """The test function along quadrature directions through a point.

    Attributes:
        point: x.
        directions: (N, 2).
        weights: (N,) of sum 1.
        coefficients: a_k (N, 11), k = 0, ..., 10.
    """

    point: Point
    directions: Tensor
    weights: Tensor
    coefficients: Tensor

    @classmethod
    def of(cls, point: Point, directions: Tensor, weights: Tensor) -> Lines:
        """Return them with coefficients from a circle of radius 1/2: (1/n) sum_j f(z_j) z_j^-k."""
        z = _RADIUS * _unit_circle()
        around = bowl(point[0] + directions[:, :1] * z, point[1] + directions[:, 1:] * z)
        found = [(around * z**-k).mean(1).real for k in range(_TERMS + 1)]
        return cls(point, directions, weights, torch.stack(found, 1))

    def forms(self, rho: float, antithetic: bool) -> Tensor:
        """Return t (N,) from differences of losses at radius ``rho``."""
        x, y = self.point
        here = bowl(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64))
        steps = (rho, -rho) if antithetic else (rho,)
        moved = [bowl(x + step * self.directions[:, 0], y + step * self.directions[:, 1]) for step in steps]
        return (torch.stack(moved).mean(0) - here) / rho**2

    def measured(self, measure: Measure, rho: float, antithetic: bool) -> float:
        """Return R_rho = phi(E psi(t))."""
        return _plug(measure, self.forms(rho, antithetic), self.weights)

    def expansion(self, measure: Measure, antithetic: bool, orders: int = 4) -> list[float]:
        """Return c_0, ..., c_orders of R_rho = sum_j c_j rho^j, by Cauchy's integral of phi(E psi(t(rho))).

        Without a_1, whose mean alone vanishes: at critical points, for the antithetic form, or for the trace.
        """
        a = self.coefficients[:, 2:].clone()
        if antithetic:
            a[:, 1::2] = 0.0
        # Small, as exp(-t) grows along far directions; less so for high orders, which rounding over radius^j blurs.
        radius = 0.02 if orders <= 4 else 0.1
        z = radius * _unit_circle()
        t = a.to(z.dtype) @ torch.stack([z**k for k in range(a.shape[1])])
        moments = (measure.psi(t.flatten()).reshape(*t.shape, -1) * self.weights[:, None, None]).sum(0)
        around = torch.stack([measure.phi(one).reshape(()) for one in moments])
        return [float((around * z**-j).mean().real) for j in range(orders + 1)]


def _plug(measure: Measure, t: Tensor, weights: Tensor) -> float:
    return measure.value((measure.samples(t) * weights[:, None]).sum(0))[0]


def gaussian_lines(point: Point) -> Lines:
    """Return the lines of u ~ N(0, I)."""
    return Lines.of(point, *rule("gaussian", 2, 60))


def skewed_lines(point: Point) -> Lines:
    """Return those of independent entries -1/2 (probability 4/5) and 2 (1/5): mean 0, variance 1, skewness 3/2."""
    values, shares = torch.tensor([-0.5, 2.0], dtype=torch.float64), torch.tensor([0.8, 0.2], dtype=torch.float64)
    grid = torch.cartesian_prod(values, values)
    return Lines.of(point, grid, torch.outer(shares, shares).reshape(-1))


# 2 Var t is ||H||_F^2, -2 log E e^-t is log det(I + H).
def _variance(s: Tensor) -> Tensor:
    return 2 * (s[1] - s[0] ** 2)


TRACE = catalogue.trace().measure
SQUARE = Measure(_variance, catalogue.powers(2), samplers.gaussian(), name="squared norm")
LOGDET = catalogue.logdet().measure

MEASURES = {"trace": TRACE, "squared norm": SQUARE, "log-determinant": LOGDET}
_RHOS = (0.2, 0.1, 0.05)
_EPS = torch.finfo(torch.float64).eps


def truth(name: str, point: Point) -> float:
    """Return S itself from the Hessian at ``point``."""
    values = torch.linalg.eigvalsh(hessian(loss, torch.tensor(point, dtype=torch.float64)))
    sums = {"trace": values.sum(), "squared norm": values.square().sum(), "log-determinant": values.log1p().sum()}
    return float(sums[name])


def follows(label: str, S: float, c: list[float], order: int, rho: float, value: float) -> Part:
    """Return the comparison of (R_rho - S)/rho^order with c_order, up to twice the next term of the expansion."""
    following = c[order + _step(order)] * rho ** (order + _step(order))
    # Losses are off by rounding, which rho^2 magnifies.
    slack = 2 * abs(following) + 64 * _EPS * max(abs(S), 1.0) / rho**2
    scale = rho**order
    return near(f"{label}, rho {rho:g}: error over rho^{order}", c[order], (value - S) / scale, slack / scale)


def slope(label: str, c: list[float], order: int, rho: float, errors: Sequence[float]) -> Part:
    """Return the order between radii 2 rho and rho; with c rho^p (1 + k rho^s) it is off by (2^s - 1) k rho^s/ln 2."""
    step = _step(order)
    ratio = c[order + step] / c[order] * rho**step
    found = math.log2(errors[0] / errors[1])
    return near(f"{label}: order", order, found, 2 * (2**step - 1) * abs(ratio) / math.log(2))


def _step(order: int) -> int:
    """Odd coefficients of an even expansion vanish, so that the next term is two further on."""
    return 1 if order % 2 else 2


def _along(label: str, name: str, lines: Lines, antithetic: bool, order: int) -> tuple[list[Part], list[Series]]:
    measure, S = MEASURES[name], truth(name, lines.point)
    c = lines.expansion(measure, antithetic)
    parts = [near(f"{label}: limit", S, c[0], 1e3 * _EPS * max(abs(S), 1.0))]
    errors = []
    for rho in _RHOS:
        value = lines.measured(measure, rho, antithetic)
        parts.append(follows(label, S, c, order, rho, value))
        errors.append(abs(value - S))
    parts.append(slope(label, c, order, _RHOS[-1], errors[-2:]))
    predicted = [abs(c[order]) * rho**order for rho in _RHOS]
    return parts, [Series.of(label, _RHOS, errors), Series.of(f"{label}, theory", _RHOS, predicted, dashed=True)]


def _finding(cases: Sequence[tuple[list[Part], list[Series]]], note: str = "") -> Finding:
    parts = [part for one, _ in cases for part in one]
    # Theory and measurement are one line to the eye: with many cases the theory would only fill the legend.
    lines = [line for _, both in cases for line in both if len(cases) <= 3 or not line.dashed]
    return Finding(tuple(parts), Curve("rho", "|R_rho - S|", tuple(lines), log_x=True, log_y=True), note)


def on_manifold() -> Finding:
    """At a minimum, u ~ N(0, I): order 2 with and without the antithetic pair."""
    lines = gaussian_lines(MINIMUM)
    cases = []
    for name in MEASURES:
        for antithetic in (False, True):
            label = f"{name}, {'antithetic' if antithetic else 'plain'}"
            cases.append(_along(label, name, lines, antithetic, 2))
    return _finding(cases)


def skewed() -> Finding:
    """At a minimum, directions of a skewed law: order 1 plain, order 2 antithetic."""
    lines = skewed_lines(MINIMUM)
    return _finding(
        [
            _along("trace, plain", "trace", lines, False, 1),
            _along("trace, antithetic", "trace", lines, True, 2),
        ],
        "A skewed law sees third derivatives at order rho; the pair cancels them.",
    )


def off_manifold(rates: Callable[[Tensor], float] | None = None) -> Finding:
    """Off the minimum the plain variance grows like ||g||^2/rho^2; the trace alone converges."""
    lines = gaussian_lines(ASIDE)
    theta = torch.tensor(ASIDE, dtype=torch.float64)
    gradient = torch.func.grad(loss)(theta)
    H = hessian(loss, theta)
    slope = torch.func.grad(lambda x: torch.func.hessian(loss)(x).trace())(theta)
    constant = rates(theta) if rates is not None else float(H.square().sum() / 2 + gradient @ slope)
    c2, c4 = _variance_terms(lines)
    parts, measured, formula = [], [], []
    for rho in _RHOS:
        t = lines.forms(rho, False)
        mean = (lines.weights * t).sum()
        variance = float((lines.weights * (t - mean) ** 2).sum())
        predicted = float(gradient.square().sum()) / rho**2 + constant
        parts.append(near(f"Var t, rho {rho:g}", predicted, variance, 2 * abs(c2) * rho**2))
        gap = 2 * abs(c4) * rho**2 + 1e3 * _EPS * predicted / rho**2
        parts.append(near(f"remainder over rho^2, rho {rho:g}", c2, (variance - predicted) / rho**2, gap))
        measured.append(variance)
        formula.append(predicted)
    trace, _ = _along("trace, plain", "trace", lines, False, 2)
    limit = float(H.square().sum() / 2)
    series = (
        Series.of("plain", _RHOS, measured),
        Series.of("||g||^2/rho^2 + F^2/2 + g.grad Tr H", _RHOS, formula, dashed=True),
        Series.of("S, the variance of u'Hu/2", _RHOS, [limit] * len(_RHOS), dashed=True),
    )
    return Finding((*parts, *trace), Curve("rho", "Var t", series, log_x=True, log_y=True))


def _variance_terms(lines: Lines) -> tuple[float, float]:
    """Return the coefficients of rho^2 and rho^4 in Var t, t = a_1/rho + a_2 + a_3 rho + ..."""
    a = lines.coefficients[:, 1:] - (lines.weights[:, None] * lines.coefficients[:, 1:]).sum(0)
    covariance = (lines.weights[:, None] * a).T @ a

    def term(power: int) -> float:
        # a_(i+1) a_(j+1) stands at rho^(i - 1 + j - 1).
        pairs = [(i, power + 2 - i) for i in range(power + 3)]
        return float(sum(covariance[i, j] for i, j in pairs))

    return term(2), term(4)


def antithetic() -> Finding:
    """Off the minimum the antithetic pair has no gradient term: order 2 everywhere."""
    lines = gaussian_lines(ASIDE)
    return _finding([_along(f"{name}, antithetic", name, lines, True, 2) for name in MEASURES])


DERIVED = "derived here for the class of Tahmasebi et al. (2024)"
_RADIUS_CLAIMS = (
    Claim(
        "radius/on-minimum",
        "At a minimum R_rho - S is of order rho^2 for a symmetric law, plain and antithetic.",
        DERIVED,
        on_manifold,
    ),
    Claim(
        "radius/skewed-law",
        "At a minimum a law that is not symmetric leaves an error of order rho, which the antithetic pair removes.",
        DERIVED,
        skewed,
    ),
    Claim(
        "radius/off-minimum",
        "Off the minimum R_rho does not tend to S: Var t = ||g||^2/rho^2 + ||H||_F^2/2 + g.grad Tr H + O(rho^2); the "
        "trace alone converges.",
        DERIVED,
        off_manifold,
    ),
    Claim(
        "radius/antithetic",
        "With the antithetic pair R_rho - S is of order rho^2 off the minimum too.",
        DERIVED,
        antithetic,
    ),
)


def richardson(draws: int, from_losses: Callable[..., Estimate] = evaluate_from_losses) -> Finding:
    """evaluate_from_losses at 1, 2, 3 levels against evaluate with the same directions: orders 2, 4, 6."""
    risk = FunctionObjective(loss, ASIDE)
    rows = samplers.gaussian().rows(0, draws, samplers.Point(2))
    lines = Lines.of(ASIDE, rows, torch.full((draws,), 1 / draws, dtype=torch.float64))
    parts: list[Part] = []
    series: list[Series] = []
    for name in ("trace", "squared norm"):
        measure = MEASURES[name]
        S = evaluate(measure, risk, n_probes=draws).value
        c = lines.expansion(measure, True, 8)
        for levels in (1, 2, 3):
            errors, expected = [], _extrapolated(c, levels)
            for rho in (0.4, 0.2, 0.1):
                value = from_losses(measure, risk, rho, levels=levels, n_probes=draws).value
                parts.append(follows(f"{name}, {levels} levels", S, expected, 2 * levels, rho, value))
                errors.append(max(abs(value - S), _EPS))
            parts.append(slope(f"{name}, {levels} levels", expected, 2 * levels, 0.1, errors[-2:]))
            series.append(Series.of(f"{name}, {levels} levels", (0.4, 0.2, 0.1), errors))
    return Finding(tuple(parts), Curve("rho", "|R_rho - S|", tuple(series), log_x=True, log_y=True))


def _extrapolated(c: list[float], levels: int) -> list[float]:
    """Return the coefficients after extrapolation from rho, rho/2, ...: c_j sum_l w_l 2^(-l j)."""
    weights = richardson_weights([0.5**level for level in range(levels)])
    return [cj * math.fsum(w * 0.5 ** (level * j) for level, w in enumerate(weights)) for j, cj in enumerate(c)]


def from_losses(draws: int, estimate: Callable[..., Estimate] = evaluate_from_losses) -> Finding:
    """evaluate_from_losses against quadrature of the same R_rho, on and off the minimum, plain and antithetic."""
    parts: list[Part] = []
    for place, point in (("on", MINIMUM), ("off", ASIDE)):
        lines, risk = gaussian_lines(point), FunctionObjective(loss, point)
        for name, measure in MEASURES.items():
            for pair in (False, True):
                if not pair and place == "off" and name == "log-determinant":
                    # exp(g.u/rho) has no mean that a sample could tell.
                    continue
                found = estimate(measure, risk, 0.1, antithetic=pair, n_probes=draws, correct_bias=True)
                label = f"{name}, {place} the minimum, {'antithetic' if pair else 'plain'}"
                parts.append(agrees(label, lines.measured(measure, 0.1, pair), found.value, found.std_error))
    return Finding(tuple(parts))


def reported_truncation(draws: int, from_losses: Callable[..., Estimate] = evaluate_from_losses) -> Finding:
    """The solver error of extrapolated estimates against their distance from S with the same directions."""
    trained = digits_network(8)
    cases = [
        ("test function", FunctionObjective(loss, ASIDE), None, (0.4, 0.2, 0.1)),
        ("network", trained.risk, trained.hessian, (0.1, 0.05, 0.025)),
    ]
    parts: list[Part] = []
    for place, risk, operator, rhos in cases:
        for name in ("trace", "squared norm"):
            measure = MEASURES[name]
            S = evaluate(measure, risk if operator is None else operator, n_probes=draws).value
            for rho in rhos:
                found = from_losses(measure, risk, rho, levels=2, n_probes=draws)
                label = f"{place}, {name}, rho {rho:g}: |value - S|"
                parts.append(below(label, found.errors.solver, abs(found.value - S)))
    return Finding(tuple(parts), None, "The bound is the change by the last extrapolation and the rounding of losses.")


_LOSSES_CLAIMS = (
    Claim(
        "radius/richardson",
        "Extrapolation from L radii rho, rho/2, ... leaves an error of order rho^(2L).",
        DERIVED,
        partial(richardson, 256),
    ),
    Claim(
        "radius/reported-truncation",
        "With two levels the solver error of evaluate_from_losses covers what the radius leaves, on a function and on "
        "a trained network.",
        DERIVED,
        partial(reported_truncation, 48),
    ),
    Claim(
        "radius/from-losses",
        "What evaluate_from_losses estimates is R_rho, with the error it reports.",
        DERIVED,
        partial(from_losses, 2000),
        partial(from_losses, 10_000),
    ),
)

CLAIMS = (*_RADIUS_CLAIMS, *_LOSSES_CLAIMS)
