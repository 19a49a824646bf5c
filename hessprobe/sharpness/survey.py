"""Several sharpnesses of one point, one after the other, from shared work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hessprobe import checks, estimators
from hessprobe.estimate import Estimate
from hessprobe.hvp import Hessian
from hessprobe.sharpness.average import ascent_direction, average_direction
from hessprobe.sharpness.flatness import fisher_rao_norm, relative_flatness
from hessprobe.sharpness.names import KINDS, POINTWISE
from hessprobe.sharpness.neighborhood import Neighborhood, UnresolvedRadius
from hessprobe.sharpness.result import Cost, Sharpness
from hessprobe.sharpness.subsets import m_sharpness
from hessprobe.sharpness.worst import worst_direction

# Value over prediction outside of which a remark says so.
_HOLDS = (0.5, 2.0)
# A kink at distance x along a direction adds about rho - x to the rise: near the smallest radius that meets one this is
# far more than curvature tells, and it falls behind rho^2 as rho grows. Higher orders go the other way.
_WHY = (
    "where the ratio grows with rho, losses see higher orders; where it is largest at small rho and falls, they see "
    "the nearest kinks of ReLU, which no product sees"
)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        kinds: names in ``KINDS``.
        radii: for those that have one, in the order wanted.
        m: examples that share a perturbation (worst, ascent), or None.
        steps, restarts: see ``worst_direction``.
        n_probes: draws of averages, or None.
        rtol: in place of that a tolerance, or None.
        confidence: level that ``rtol`` speaks of.
    """

    kinds: Sequence[str]
    radii: Sequence[float] = (0.05,)
    m: int | None = None
    steps: int = 20
    restarts: int = 2
    n_probes: int | None = None
    rtol: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for kind in self.kinds:
            checks.one_of("kind", kind, KINDS)


@dataclass(frozen=True)
class Reading:
    """One number.

    Attributes:
        name: in ``KINDS``.
        estimate: value, error, cost.
        sharpness: radius, prediction and more, for those at a radius.
        cost: in passes over the data.
        layers: one estimate a layer, or None.
        notes: sentences for a reader.
        engine: how products were made.
    """

    name: str
    estimate: Estimate
    sharpness: Sharpness | None
    cost: Cost
    layers: dict[str, Estimate] | None = None
    notes: tuple[str, ...] = ()
    engine: str = ""


def survey(near: Neighborhood, plan: Plan) -> Iterator[Reading]:
    """Yield the readings, kind by kind, each radius in the order given.

    Raises:
        ValueError: an argument outside its range.
        UnresolvedRadius: a radius at which losses drown in rounding; after everything else has been measured.
        UnsupportedError: a kind that this risk does not have.
        NonFiniteError: a loss, gradient or product that is not finite.
    """
    late = None
    for kind in plan.kinds:
        if kind in POINTWISE:
            yield _pointwise(near, kind, plan)
            continue
        radii, found = list(plan.radii), None
        while radii and found is None:
            try:
                found = _radial(near, kind, radii, plan)
            except UnresolvedRadius as error:
                late = late or error
                radii = [radius for radius in radii if radius > error.rho]
        for one in found or ():
            yield Reading(kind, one.estimate, one, one.cost, notes=_notes(one), engine=_engine(near))
    if late is not None:
        raise late


def _radial(near: Neighborhood, kind: str, radii: list[float], plan: Plan) -> list[Sharpness]:
    if kind == "average":
        return average_direction(near, radii, n_probes=plan.n_probes, rtol=plan.rtol, confidence=plan.confidence)
    if plan.m is not None:
        return m_sharpness(near, radii, plan.m, kind=kind, steps=plan.steps)
    if kind == "ascent":
        return ascent_direction(near, radii)
    return worst_direction(near, radii, steps=plan.steps, restarts=plan.restarts)


def _pointwise(near: Neighborhood, kind: str, plan: Plan) -> Reading:
    before = near.cost
    layers = None
    if kind == "relative-flatness":
        found = relative_flatness(
            near.risk,
            n_probes=plan.n_probes,
            rtol=plan.rtol,
            confidence=plan.confidence,
            seed=near.seed,
            operator=near.hessian,
            callback=near.report,
        )
        estimate, layers = found.total, found.layers
    elif kind == "fisher-rao":
        estimate = fisher_rao_norm(near.risk)
    elif kind == "lambda-max":
        estimate = near.top.estimate(0)
    elif kind == "trace":
        estimate = near.trace
    else:
        estimate = estimators.frobenius_norm(
            near.operator, rtol=near.trace_rtol, seed=near.seed, callback=lambda state: near.report("frob", state)
        )
    spent = near.cost - before
    # What an operator of its own made, or what an earlier kind had made already.
    spent = Cost(spent.losses, spent.gradients, max(spent.products, estimate.matvecs))
    return Reading(kind, estimate, None, spent, layers, (), _engine(near))


def _notes(one: Sharpness) -> tuple[str, ...]:
    notes = []
    if one.kind == "worst" and one.m is None:
        reached = sorted(one.starts.values(), reverse=True)
        close = sum(value >= 0.99 * reached[0] for value in reached)
        alone = "" if one.predicted is None else f"; rho^2 lambda/2 = {one.predicted.curvature_only:.4g}"
        notes.append(
            f"rho {one.rho:g}: {close} of {len(reached)} starts came within 1 % of the best, {_best(one)}"
            + (alone if one.norm == "l2" else "")
        )
    if one.predicted is not None:
        notes.append(f"second order: {one.predicted.formula}")
    ratio = one.model_ratio
    if ratio is not None and not _HOLDS[0] <= ratio <= _HOLDS[1]:
        notes.append(f"rho {one.rho:g}: the second-order model does not hold there; {_WHY}")
    return tuple(notes)


def _best(one: Sharpness) -> str:
    return str(one.estimate.details["best_start"])


def _engine(near: Neighborhood) -> str:
    # Without making the operator, nor choosing an engine, where no product was needed.
    if near.cost.products == 0 or not isinstance(near.hessian, Hessian):
        return ""
    return near.hessian.engine_note
