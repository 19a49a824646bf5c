"""What ``evaluate_from_losses`` makes of R_rho: extrapolation, its estimate of the truncation, its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from hessprobe.estimate import Estimate
from hessprobe.universal import evaluate, evaluate_from_losses, samplers
from hessprobe.universal.losses import richardson_weights
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, below
from hessprobe.validation.claims.radius import (
    ASIDE,
    DERIVED,
    MEASURES,
    MINIMUM,
    Lines,
    follows,
    gaussian_lines,
    loss,
    slope,
)
from hessprobe.validation.dynamics import FunctionObjective
from hessprobe.validation.networks import digits_network

_EPS = torch.finfo(torch.float64).eps


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


CLAIMS = (
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
