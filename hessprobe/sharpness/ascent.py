"""Ascent-direction sharpness: the rise of the loss at distance rho along the gradient."""

from __future__ import annotations

import time
from typing import Any

from hessprobe.errors import UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.objective.base import Objective
from hessprobe.sharpness.neighborhood import Neighborhood, dual_norm, radii_of, steepest
from hessprobe.sharpness.result import Prediction, Sharpness


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
