"""Average-direction sharpness: the mean rise of the loss on a sphere, with its error."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.objective.base import Objective
from hessprobe.sharpness.ascent import place_of
from hessprobe.sharpness.neighborhood import AVERAGE, PILOT, Neighborhood, radii_of
from hessprobe.sharpness.result import Cost, Prediction, Sharpness
from hessprobe.sharpness.sizing import draws, judged, sampled

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
