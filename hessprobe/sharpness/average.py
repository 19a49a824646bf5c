"""Average-direction sharpness: the mean rise of the loss on a sphere, with its error.

Ascent-direction sharpness: the rise of the loss at distance rho along the gradient.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.objective.base import Objective
from hessprobe.sharpness.neighborhood import AVERAGE, PILOT, Neighborhood, dual_norm, radii_of, steepest
from hessprobe.sharpness.result import Cost, Prediction, Sharpness
from hessprobe.sharpness.sizing import draws, judged, sampled


def ascent_direction(
    risk: Objective | Neighborhood, rho: float | list[float], *, predict: bool = True, **place: Any
) -> list[Sharpness]:
    r"""Return L(w + rho C s) - L(w), s the steepest unit direction: C g / ||C g||_2, or sign(C g) for linf.

    For l2 and C = I this is where SAM looks; with C = diag|w| where ASAM does. The second-order prediction is

        rho g^T C s + rho^2 s^T C H C s / 2.

    On a manifold of minima the gradient vanishes and the value depends on how the point was reached: it lies between
    (rho^2/2) times the smallest non-zero and the largest eigenvalue (Wen et al., 2023).

    Args:
        risk: the objective, or a ``Neighborhood`` whose gradient is shared.
        rho: radius > 0 or a list of radii.
        predict: also the second-order prediction, for one product.
        **place: see ``Neighborhood``; only with an objective.

    Returns:
        One result a radius, in the order given.

    Raises:
        TypeError, ValueError: an argument outside its range; a radius at which losses drown in rounding.
        UnsupportedError: the gradient is exactly 0.
        NonFiniteError: a loss or gradient that is not finite.

    References:
        Foret et al. (2021), "Sharpness-aware minimization for efficiently improving generalization"; Wen, Ma, Li
        (2023), "How does sharpness-aware minimization minimize sharpness?".
    """
    radii = radii_of(rho)
    near = place_of(risk, place)
    results = []
    for index, radius in enumerate(radii):
        results.append(_at(near, radius, predict))
        near.report("ascent", Progress(index + 1, len(radii), results[-1].value, 0.0))
    return results


def place_of(risk: Objective | Neighborhood, place: dict[str, Any]) -> Neighborhood:
    """Return the neighborhood itself, or one around the objective.

    Raises:
        TypeError: a neighborhood together with what would make another.
    """
    if not isinstance(risk, Neighborhood):
        return Neighborhood(risk, **place)
    if place:
        raise TypeError(
            f"risk must be an objective where {', '.join(place)} is given; got a Neighborhood. Set it there."
        )
    return risk


def require_gradient(near: Neighborhood) -> None:
    """Refuse a zero gradient.

    Raises:
        UnsupportedError: it is zero.
    """
    if not bool((near.gradient != 0).any()):
        raise UnsupportedError(
            "The ascent direction needs a gradient other than 0, but it is exactly 0 here. "
            "Measure the worst or the average direction."
        )


def _at(near: Neighborhood, rho: float, predict: bool) -> Sharpness:
    began, before = time.perf_counter(), near.cost
    require_gradient(near)
    unit = steepest(near.gradient, near.norm)
    u = rho * unit
    value = float(near.changes(u[None], rho)[0])
    first = rho * dual_norm(near.gradient, near.norm)
    prediction = None
    if predict:
        second = rho**2 * near.gradient_curvature / 2
        text = "rho g.s + rho^2 s^T H s / 2" if near.scale is None else "rho g.Cs + rho^2 s^T C H C s / 2"
        prediction = Prediction(first + second, first, second, 0.0, text, second)
    near.require_resolved(value, rho, first, prediction.second_order if prediction else 0.0)
    spent = near.cost - before
    estimate = Estimate(
        value,
        ErrorParts(solver=near.noise),
        matvecs=spent.products,
        method="gradient",
        kind="exact",
        seconds=time.perf_counter() - began,
        details={"losses": spent.losses, "gradients": spent.gradients},
    )
    return Sharpness("ascent", rho, near.norm, near.adaptive, None, estimate, prediction, spent, u)


DEFAULT_PROBES = 128
_BLOCK = 1 << 24
_MOST_ROWS = 16


def average_direction(
    risk: Objective | Neighborhood,
    rho: float | list[float],
    *,
    n_probes: int | None = None,
    rtol: float | None = None,
    max_probes: int = 2000,
    confidence: float = 0.95,
    antithetic: bool = True,
    predict: bool = True,
    **place: Any,
) -> list[Sharpness]:
    r"""Estimate E L(w + C u) - L(w), u uniform on ||u||_2 = rho, or for linf uniform on the corners of the cube.

    ``antithetic`` takes half the rises at u and -u, which removes the gradient's part of the variance: two losses a
    draw. All radii share the directions. The second-order prediction is

        rho^2 tr(C H C) / (2 d) for l2,     rho^2 tr(C H C) / 2 for linf.

    Args:
        risk: the objective, or a ``Neighborhood`` whose trace is shared.
        rho: radius > 0 or a list of radii.
        n_probes: draws, >= 2; 128 by default.
        rtol: in place of that, the relative half-width of the interval to reach at the hardest radius, in (0, 1): a
            pilot of 16 draws fixes the number before the run.
        max_probes: the most that ``rtol`` may ask for; a result that it cuts carries ``"budget-exhausted"``,
            one that misses its tolerance ``"tolerance-missed"``.
        confidence: level of the interval that ``rtol`` speaks of.
        antithetic: see above.
        predict: also the second-order prediction, for the products of a trace.
        **place: see ``Neighborhood``; only with an objective.

    Returns:
        One result a radius, in the order given; the interval is Student's t over the draws (asymptotic, see
        ``sizing.sampled``: with few draws of a spectrum with one outlier it covers less often than it says).

    Raises:
        TypeError, ValueError: an argument outside its range; a radius at which losses drown in rounding.
        NonFiniteError: a loss that is not finite.

    References:
        Wen, Ma, Li (2023), "How does sharpness-aware minimization minimize sharpness?"; for pairs of opposite draws
        Hammersley, Morton (1956), "A new Monte Carlo technique: antithetic variates".
    """
    radii, near = radii_of(rho), place_of(risk, place)
    began, before = time.perf_counter(), near.cost
    count, wanted = draws(
        n_probes,
        rtol,
        confidence,
        max_probes,
        DEFAULT_PROBES,
        lambda size: _table(near, radii, size, antithetic, PILOT),
    )
    table = _table(near, radii, count, antithetic, AVERAGE)
    results: list[Sharpness] = []
    for column, radius in zip(table.T, radii, strict=True):
        prediction = _prediction(near, radius) if predict else None
        size = float(column.square().mean().sqrt())
        near.require_resolved(size, radius, 0.0, prediction.second_order if prediction else size)
        spent, seconds = near.cost - before, time.perf_counter() - began
        before, began = near.cost, time.perf_counter()
        estimate = judged(_estimate(near, column, antithetic, spent, seconds), rtol, confidence, wanted)
        results.append(Sharpness("average", radius, near.norm, near.adaptive, None, estimate, prediction, spent))
    return results


def _estimate(near: Neighborhood, column: Tensor, antithetic: bool, spent: Cost, seconds: float) -> Estimate:
    error, df, flags = sampled(column)
    return Estimate(
        float(column.mean()),
        ErrorParts(probe=error, solver=near.noise),
        df=df,
        flags=flags,
        matvecs=spent.products,
        samples=len(column),
        method=("sphere" if near.norm == "l2" else "corners") + "+antithetic" * antithetic,
        seconds=seconds,
        details={"losses": spent.losses, "gradients": spent.gradients},
    )


def _table(near: Neighborhood, radii: list[float], count: int, antithetic: bool, use: int) -> Tensor:
    """Return the rises of ``count`` draws at every radius, fp64 (count, radii)."""
    rows = max(min(_BLOCK // near.risk.dim, _MOST_ROWS), 1)
    parts = []
    for start in range(0, count, rows):
        U = near.directions(start, min(start + rows, count), use)
        parts.append(torch.stack([_rises(near, U, rho, antithetic) for rho in radii], 1))
        done = torch.cat(parts)[:, 0]
        error = float(done.std()) / math.sqrt(len(done)) if len(done) > 1 else math.inf
        near.report("average" if use == AVERAGE else "pilot", Progress(len(done), count, float(done.mean()), error))
    return torch.cat(parts)


def _rises(near: Neighborhood, U: Tensor, rho: float, antithetic: bool) -> Tensor:
    there = near.changes(rho * U, rho)
    return (there + near.changes(-rho * U, rho)) / 2 if antithetic else there


def _prediction(near: Neighborhood, rho: float) -> Prediction:
    factor = rho**2 / 2 if near.norm == "linf" else rho**2 / (2 * near.risk.dim)
    matrix = "H" if near.scale is None else "C H C"
    text = f"rho^2 tr({matrix})/2" if near.norm == "linf" else f"rho^2 tr({matrix})/(2 d)"
    value = factor * near.trace.value
    return Prediction(value, 0.0, value, factor * near.trace.std_error, text, value)
