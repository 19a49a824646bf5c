"""Worst-direction sharpness: the largest rise of the loss in a ball, from below, by projected ascent.

The largest value of a quadratic model within a ball, in a Krylov space of the gradient and the top eigenvectors.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NumericalWarning
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.objective.base import Objective
from hessprobe.operators import LinearOperator
from hessprobe.sharpness.average import place_of
from hessprobe.sharpness.neighborhood import RESTART, Neighborhood, radii_of, steepest, within
from hessprobe.sharpness.result import Prediction, Sharpness
from hessprobe.vectors import combine, gram

# Lanczos steps from the gradient: the solution lies between g and the top eigenvector, both of which are in the space.
_STEPS = 8
# What is left of a vector after orthogonalisation, relative to it, that counts as nothing.
_NOTHING = 1e-6


@dataclass(frozen=True)
class QuadraticModel:
    """m(u) = b.u + u^T A u / 2 on the span of orthonormal rows.

    Attributes:
        rows: (k, d).
        slope: (k,) fp64, the gradient in the basis.
        matrix: (k, k) fp64, A in the basis.
    """

    rows: Tensor
    slope: Tensor
    matrix: Tensor

    def best(self, rho: float) -> tuple[Tensor, float, float]:
        """Return the maximiser z (k,) of the model over ||z||_2 <= rho with its first- and second-order parts."""
        z = maximise(self.slope, self.matrix, rho)
        return z, float(self.slope @ z), float(z @ self.matrix @ z) / 2

    def lift(self, z: Tensor) -> Tensor:
        """Return the vector (d,) with coordinates z (k,)."""
        return combine(z[None], self.rows)[0]


def quadratic_model(A: LinearOperator, gradient: Tensor, vectors: Tensor) -> QuadraticModel:
    """Return the model in the span of ``vectors`` (j, d), orthonormal, and of g, A g, A^2 g, ...

    Costs one product a basis vector.
    """
    rows = vectors.new_zeros(0, A.dim)
    products = rows
    following = [*vectors, gradient]
    for _ in range(min(len(vectors) + _STEPS, A.dim)):
        fresh = None
        while fresh is None and following:
            fresh = _orthogonal(following.pop(0), rows)
        if fresh is None:
            break
        image = A.matvecs(fresh[None])
        rows, products = torch.cat([rows, fresh[None]]), torch.cat([products, image])
        if not following:
            following.append(image[0])
    matrix = gram(rows, products)
    return QuadraticModel(rows, gram(rows, gradient[None])[:, 0], (matrix + matrix.T) / 2)


def maximise(slope: Tensor, matrix: Tensor, rho: float) -> Tensor:
    """Return argmax of b.z + z^T T z / 2 over ||z||_2 <= rho, exactly.

    The maximiser solves (mu I - T) z = b with mu >= max(lambda_max, 0) and mu (rho - ||z||) = 0.

    Args:
        slope: b (k,) fp64.
        matrix: T (k, k) fp64, symmetric.
        rho: > 0.

    References:
        Moré, Sorensen (1983), "Computing a trust region step".
    """
    values, vectors = torch.linalg.eigh(matrix.cpu())
    beta = vectors.T @ slope.cpu()
    floor = max(float(values[-1]), 0.0)
    scale = max(float(values.abs().max()), float(beta.norm()) / rho)
    if scale == 0.0:
        return torch.zeros_like(slope)
    tiny = 1e-14 * scale
    gaps = floor - values
    open_ = gaps > tiny
    inner = torch.where(open_, beta / torch.where(open_, gaps, 1.0), 0.0)
    blocked = bool((beta[~open_].abs() > 1e-14 * beta.norm()).any())
    if not blocked and float(inner.norm()) <= rho:
        if floor > 0.0 or bool((~open_).any()):
            # The hard case: the top eigenvector fills what is left of the radius.
            inner[-1] += math.sqrt(max(rho**2 - float(inner.norm()) ** 2, 0.0))
        return _back(vectors, inner, slope)

    def excess(mu: float) -> float:
        return float((beta / (mu - values)).norm()) - rho

    low = floor + tiny
    high = floor + float(beta.norm()) / rho + tiny
    mu = low if excess(low) <= 0.0 else float(brentq(excess, low, 2 * high, xtol=tiny, rtol=1e-14))
    z = beta / (mu - values)
    return _back(vectors, z * (rho / float(z.norm())), slope)


def _back(vectors: Tensor, coordinates: Tensor, like: Tensor) -> Tensor:
    point: Tensor = vectors @ coordinates
    return point.to(like.device)


def _orthogonal(vector: Tensor, rows: Tensor) -> Tensor | None:
    """Return the unit vector along what of ``vector`` is orthogonal to the rows, or None where that is nothing."""
    size = float(vector.double().norm())
    if size == 0.0:
        return None
    rest = vector / size
    for _ in range(2):
        if len(rows):
            rest = rest - combine(gram(rest[None], rows), rows)[0]
    left = float(rest.double().norm())
    return rest / left if left > _NOTHING else None


# Every start gets so many steps, and the best so many starts all the rest.
_SCOUT_STEPS, _KEPT = 2, 2
# The step relative to rho: a step of many radii lands on the steepest point of the ball.
_FIRST_STEP, _LONGEST, _SHORTEST = 1.0, 16.0, 1e-3
# An ascent ends where so many gains in a row are below this share of the value.
_STALLED, _PATIENCE = 1e-4, 3


def worst_direction(
    risk: Objective | Neighborhood,
    rho: float | list[float],
    *,
    steps: int = 20,
    restarts: int = 2,
    predict: bool = True,
    **place: Any,
) -> list[Sharpness]:
    r"""Return a lower bound on max L(w + C u) - L(w) over ||u|| <= rho, by projected normalised ascent.

        u <- P(u + step rho s(u)),    s the steepest unit direction at u, P the projection on the ball;

    a step that does not raise the loss is undone and halved. Starts: the gradient; both signs of the top eigenvector
    of C H C; for l2 the maximiser of the quadratic model; random points; what was found at the radii below, as it is
    (so that the values never fall with rho) and stretched. All starts get two steps, the best two go on.

    The second-order prediction for l2 is the exact maximum of g^T C u + u^T C H C u / 2 over the ball within a Krylov
    space that holds the top eigenvector, at a minimum rho^2 lambda_max / 2. For linf, where that is a hard problem, it
    is the model at the u found.

    Args:
        risk: the objective, or a ``Neighborhood`` whose gradient and eigenvector are shared.
        rho: radius > 0 or a list of radii.
        steps: of the ascents that go on, >= 0; a gradient each.
        restarts: random starts, >= 0.
        predict: also the second-order prediction. Without it the eigenvector is no start either, and no products are
            made.
        **place: see ``Neighborhood``; only with an objective.

    Returns:
        One result a radius, in the order given, with ``direction`` u and ``starts``: what each start reached.

    Raises:
        TypeError, ValueError: an argument outside its range; a radius at which losses drown in rounding.
        NonFiniteError: a loss or gradient that is not finite.

    References:
        Keskar et al. (2017), "On large-batch training for deep learning: generalization gap and sharp minima"; Croce,
        Hein (2020), "Reliable evaluation of adversarial robustness", for the halved steps; Andriushchenko et al.
        (2023), "A modern look at the relationship between sharpness and generalization".
    """
    radii = radii_of(rho)
    search = Search(
        place_of(risk, place),
        checks.positive_int("steps", steps, minimum=0),
        checks.positive_int("restarts", restarts, minimum=0),
        predict,
    )
    found = {radius: search.at(radius) for radius in sorted(set(radii))}
    return [found[radius] for radius in radii]


@dataclass
class _Climb:
    """One ascent: where it stands, its slope there, and its step."""

    u: Tensor
    value: float
    slope: Tensor
    step: float = _FIRST_STEP
    stalled: int = 0

    @property
    def over(self) -> bool:
        return self.step < _SHORTEST or self.stalled >= _PATIENCE or not bool((self.slope != 0).any())


class Search:
    """The ascents at radii that grow.

    Args:
        near: where.
        steps, restarts, predict: see ``worst_direction``.
    """

    def __init__(self, near: Neighborhood, steps: int, restarts: int, predict: bool) -> None:
        self.near, self.steps, self.restarts, self.predict = near, steps, restarts, predict
        self._model: QuadraticModel | None = None
        self._below: tuple[float, Tensor] | None = None

    def at(self, rho: float) -> Sharpness:
        """Return the result at a radius above all those before."""
        near, began, before = self.near, time.perf_counter(), self.near.cost
        prediction = self._model_prediction(rho) if self.predict and near.norm == "l2" else None
        climbs = self._climbed(rho)
        name, value, u = self._highest(climbs, rho)
        if self.predict and near.norm == "linf":
            prediction = self._at_direction(rho, u)
        first = near.dot(u) if prediction is None else prediction.first_order
        near.require_resolved(climbs[name].value, rho, first, prediction.second_order if prediction else 0.0)
        spent = near.cost - before
        estimate = Estimate(
            value,
            ErrorParts(solver=near.noise),
            matvecs=spent.products,
            method=f"ascent from {name}",
            kind="lower bound",
            seconds=time.perf_counter() - began,
            details={"losses": spent.losses, "gradients": spent.gradients, "best_start": name},
        )
        near.report(f"worst, rho {rho:g}", Progress(near.cost.gradients, near.cost.gradients, value, 0.0))
        starts = {key: climb.value for key, climb in climbs.items()}
        return Sharpness("worst", rho, near.norm, near.adaptive, None, estimate, prediction, spent, u, starts)

    def highest(self, rho: float) -> tuple[str, float, Tensor]:
        """Return the best start at a radius above all those before, what it reached, and where (d,)."""
        return self._highest(self._climbed(rho), rho)

    def _highest(self, climbs: dict[str, _Climb], rho: float) -> tuple[str, float, Tensor]:
        name, best = max(climbs.items(), key=lambda item: item[1].value)
        self._below = (rho, best.u)
        # Staying at w is always possible.
        if best.value > 0:
            return name, best.value, best.u
        return name, 0.0, torch.zeros_like(best.u)

    def _climbed(self, rho: float) -> dict[str, _Climb]:
        climbs = {}
        for name, u in self._starts(rho).items():
            value, slope = self.near.slope(u, rho)
            climbs[name] = _Climb(u, value, slope)
            self._advance(climbs[name], rho, min(_SCOUT_STEPS, self.steps))
        for name in sorted(climbs, key=lambda key: -climbs[key].value)[:_KEPT]:
            self._advance(climbs[name], rho, self.steps - _SCOUT_STEPS)
        return climbs

    def _starts(self, rho: float) -> dict[str, Tensor]:
        near = self.near
        starts = {}
        if bool((near.gradient != 0).any()):
            starts["gradient"] = rho * steepest(near.gradient, near.norm)
        if self.predict:
            vector = steepest(self._top, near.norm)
            starts |= {"eigenvector": rho * vector, "-eigenvector": -rho * vector}
            if near.norm == "l2" and "gradient" in starts:
                starts["model"] = self._model_maximiser(rho)
        rows = near.directions(0, self.restarts, RESTART)
        starts |= {f"random {i + 1}": rho * row for i, row in enumerate(rows)}
        if self._below is not None:
            below, u = self._below
            starts |= {"smaller radius": u, "stretched": within(u * (rho / below), rho, near.norm)}
        return starts or {"random 1": rho * near.directions(0, 1, RESTART)[0]}

    def _advance(self, climb: _Climb, rho: float, steps: int) -> None:
        near = self.near
        for _ in range(steps):
            if climb.over:
                return
            there = within(climb.u + (climb.step * rho) * steepest(climb.slope, near.norm), rho, near.norm)
            value, slope = near.slope(there, rho)
            near.report(f"worst, rho {rho:g}", Progress(near.cost.gradients, math.inf, max(value, climb.value), 0.0))
            gain = value - climb.value
            if gain > 0:
                climb.stalled = climb.stalled + 1 if gain < _STALLED * abs(value) else 0
                climb.u, climb.value, climb.slope = there, value, slope
                climb.step = min(2 * climb.step, _LONGEST)
            else:
                climb.step /= 2

    @property
    def _top(self) -> Tensor:
        with warnings.catch_warnings():
            # A rough eigenvector is as good a start, and the prediction takes what it is worth.
            warnings.simplefilter("ignore", NumericalWarning)
            return self.near.top.vectors[0]

    @property
    def model(self) -> QuadraticModel:
        """The quadratic model, made when first asked for."""
        if self._model is None:
            self._model = quadratic_model(self.near.operator, self.near.gradient, self._top[None])
        return self._model

    def _model_maximiser(self, rho: float) -> Tensor:
        z, _, _ = self.model.best(rho)
        return within(self.model.lift(z), rho, "l2")

    def _model_prediction(self, rho: float) -> Prediction:
        _, first, second = self.model.best(rho)
        alone = max(rho**2 * float(self.near.top.values[0]) / 2, 0.0)
        hessian = "H" if self.near.scale is None else "C H C"
        text = f"max of g.u + u^T {hessian} u / 2, at a minimum rho^2 lambda/2"
        return Prediction(first + second, first, second, 0.0, text, alone)

    def _at_direction(self, rho: float, u: Tensor) -> Prediction:
        first, second = self.near.dot(u), self.near.curvature(u) / 2
        hessian = "H" if self.near.scale is None else "C H C"
        return Prediction(first + second, first, second, 0.0, f"g.u + u^T {hessian} u / 2 at the u found", second)
