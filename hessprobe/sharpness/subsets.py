"""m-sharpness: every m examples have a perturbation of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.estimate import ErrorParts, Estimate, data_error
from hessprobe.estimators.budget import Progress
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.sharpness.average import place_of
from hessprobe.sharpness.neighborhood import Neighborhood, dual_norm, radii_of, steepest
from hessprobe.sharpness.result import Cost, Prediction, Sharpness
from hessprobe.sharpness.worst import Search


class Piece(BatchLoss):
    """Some examples of a batch, as a share of a subset.

    Args:
        loss: their mean loss.
        weight: share of the subset.
    """

    def __init__(self, loss: BatchLoss, weight: float) -> None:
        self._loss, self.weight, self.size = loss, weight, loss.size

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the mean loss, a scalar, at ``theta`` (d,)."""
        return self._loss(theta)


class Subset(Objective):
    """The mean loss over a few examples of a risk.

    Args:
        risk: all examples.
        pieces: what the subset is made of, with weights that are shares of the risk.
        examples: how many they are.

    Attributes:
        share: of the subset in the risk.
        examples: as given.
    """

    def __init__(self, risk: Objective, pieces: list[BatchLoss], examples: int) -> None:
        self._risk, self.examples = risk, examples
        self.dim, self.dtype, self.device = risk.dim, risk.dtype, risk.device
        self.group = risk.group
        self.theta, self.layout, self.n_terms = risk.theta, risk.layout, len(pieces)
        self.share = math.fsum(piece.weight for piece in pieces)
        self._pieces = [Piece(piece, piece.weight / self.share) for piece in pieces]

    def terms(self) -> Iterator[BatchLoss]:
        """Yield the pieces."""
        yield from self._pieces

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of the risk."""
        return self._risk.evaluating()


class _Part(Neighborhood):
    """A neighborhood of a subset, in the scale of the whole, whose curvature comes without an operator."""

    def __init__(self, subset: Subset, whole: Neighborhood) -> None:
        super().__init__(subset, norm=whole.norm, seed=whole.seed)
        self.scale, self.adaptive, self.eta = whole.scale, whole.adaptive, whole.eta
        self._products = 0.0

    @property
    def cost(self) -> Cost:
        """Everything so far."""
        return Cost(self._losses, self._gradients, self._products)

    def curvature(self, u: Tensor) -> float:
        """Return u^T C H C u by double backward: preparing an engine for a few examples costs more than it saves."""
        self._products += 1
        along, total = self.scaled(u), 0.0
        with self.risk.evaluating(), torch.enable_grad():
            for term in self.risk.terms():
                leaf = self.risk.theta.clone().requires_grad_()
                value = term(leaf)
                if not value.requires_grad:
                    continue
                (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
                if slope.requires_grad:
                    (image,) = torch.autograd.grad(slope, leaf, along, materialize_grads=True)
                    total += term.weight * float(image.double() @ along.double())
        return total


def subsets(risk: Objective, m: int) -> Iterator[Subset]:
    """Yield the examples of a risk m at a time, in the order of the data; the last subset may be smaller.

    Batches are cut and joined as needed. A batch that counts no examples (an analytic term) is one.

    Raises:
        UnsupportedError: a batch that would have to be cut and cannot be.
    """
    pieces: list[BatchLoss] = []
    count = 0
    for term in risk.terms():
        total, start = int(getattr(term, "examples", 1)), 0
        while start < total:
            stop = min(total, start + m - count)
            piece = term if (start, stop) == (0, total) else term.slice(start, stop)
            count += stop - start
            start = stop
            # Examples whose targets are all ignored have no loss of their own.
            if piece.weight > 0:
                pieces.append(piece)
            if count == m:
                if pieces:
                    yield Subset(risk, pieces, count)
                pieces, count = [], 0
    if pieces:
        yield Subset(risk, pieces, count)


def m_sharpness(
    risk: Objective | Neighborhood,
    rho: float | list[float],
    m: int,
    *,
    kind: str = "ascent",
    steps: int = 20,
    predict: bool = True,
    **place: Any,
) -> list[Sharpness]:
    r"""Return sum_S p_S (L_S(w + C u_S) - L_S(w)) over subsets S of m examples each, p_S their shares of the data.

    ``"ascent"``: u_S = rho s_S, s_S the steepest direction of L_S; what SAM sees on batches of m, or on m examples an
    accelerator. ``"worst"``: the maximiser that projected ascent finds, from the gradient of L_S and a random start. As
    every subset has its own direction the value is not below that of the whole for the worst direction, and for m = 1
    at a zero of the loss it tends to rho^2/2 tr H in place of rho^2/2 lambda_max (Wen et al., 2023).

    Subsets are taken in the order of the data. The average direction needs no m: it is the same for all.

    Args:
        risk: the objective, or a ``Neighborhood``.
        rho: radius > 0 or a list of radii.
        m: examples that share a perturbation, >= 1.
        kind: ``"ascent"`` or ``"worst"``.
        steps: of the ascents (worst), >= 0.
        predict: also the second-order prediction sum_S p_S (g_S.u_S + u_S^T H_S u_S / 2) at the same u_S, for one
            product a radius (l2 ascent: for all radii together).
        **place: see ``Neighborhood``; only with an objective.

    Returns:
        One result a radius. ``errors.data`` is the jackknife over subsets.

    Raises:
        TypeError, ValueError: an argument outside its range; a radius at which losses drown in rounding.
        UnsupportedError: a batch that cannot be cut.
        NonFiniteError: a loss or gradient that is not finite.

    References:
        Foret et al. (2021), "Sharpness-aware minimization for efficiently improving generalization"; Andriushchenko,
        Flammarion (2022), "Towards understanding sharpness-aware minimization".
    """
    radii, near = radii_of(rho), place_of(risk, place)
    m = checks.positive_int("m", m)
    checks.one_of("kind", kind, ("ascent", "worst"))
    steps = checks.positive_int("steps", steps, minimum=0)
    began = time.perf_counter()
    before, spent = near.cost, Cost()
    near.measure_rounding()
    parts = _Parts(m, kind)
    total = sum(int(getattr(term, "examples", 1)) for term in near.risk.terms())
    done = 0
    for subset in subsets(near.risk, m):
        part = _Part(subset, near)
        parts.rows.append(_ascents(part, radii, predict) if kind == "ascent" else _climbs(part, radii, steps, predict))
        parts.shares.append(subset.share)
        done += subset.examples
        spent += _scaled(part.cost, subset.share)
        near.report(f"m-{kind}", Progress(done, total, math.nan, math.inf))
    spent += near.cost - before
    seconds = time.perf_counter() - began
    results = []
    for i, radius in enumerate(radii):
        # What all radii share is in the first.
        cost, took = (spent, seconds) if i == 0 else (Cost(), 0.0)
        results.append(_result(near, parts, i, radius, predict, cost, took))
    return results


@dataclass
class _Parts:
    """What the subsets gave.

    Attributes:
        m, kind: as asked for.
        shares: of the subsets.
        rows: of each subset, for each radius: rise, first- and second-order part.
    """

    m: int
    kind: str
    shares: list[float] = field(default_factory=list)
    rows: list[list[tuple[float, float, float]]] = field(default_factory=list)


def _ascents(part: _Part, radii: list[float], predict: bool) -> list[tuple[float, float, float]]:
    """Return rise, first- and second-order part at every radius; all 0 where the gradient is."""
    unit = steepest(part.gradient, part.norm)
    if not bool((unit != 0).any()):
        return [(0.0, 0.0, 0.0)] * len(radii)
    length, bend = dual_norm(part.gradient, part.norm), part.curvature(unit) if predict else 0.0
    values = [float(part.changes(rho * unit[None], rho)[0]) for rho in radii]
    return [(value, rho * length, rho**2 * bend / 2) for value, rho in zip(values, radii, strict=True)]


def _climbs(part: _Part, radii: list[float], steps: int, predict: bool) -> list[tuple[float, float, float]]:
    search = Search(part, steps, 1, False)
    found = {}
    for rho in sorted(set(radii)):
        value, u = search.highest(rho)[1:]
        found[rho] = (value, part.dot(u), part.curvature(u) / 2 if predict else 0.0)
    return [found[rho] for rho in radii]


def _result(
    near: Neighborhood, parts: _Parts, index: int, rho: float, predict: bool, spent: Cost, seconds: float
) -> Sharpness:
    column, kind = [row[index] for row in parts.rows], parts.kind
    value, first, second = (
        math.fsum(p * one[i] for p, one in zip(parts.shares, column, strict=True)) for i in range(3)
    )
    near.require_resolved(value, rho, first, second)
    prediction = None
    if predict:
        form = "g.u + u^T H u / 2" if near.scale is None else "g.Cu + u^T C H C u / 2"
        prediction = Prediction(first + second, first, second, 0.0, f"mean over subsets of {form}", second)
    estimate = Estimate(
        value,
        ErrorParts(solver=near.noise).with_data(data_error(parts.shares, [one[0] for one in column])),
        matvecs=spent.products,
        method=f"{kind} in {len(column)} subsets",
        kind="exact" if kind == "ascent" else "lower bound",
        seconds=seconds,
        details={"losses": spent.losses, "gradients": spent.gradients, "subsets": len(column)},
    )
    return Sharpness(kind, rho, near.norm, near.adaptive, parts.m, estimate, prediction, spent)


def _scaled(cost: Cost, share: float) -> Cost:
    return Cost(cost.losses * share, cost.gradients * share, cost.products * share)
