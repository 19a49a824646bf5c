"""Computing a landscape: plane, grid, values, true losses of checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import DataError, HessprobeError
from hessprobe.hvp import engines
from hessprobe.journal import Journal
from hessprobe.landscape import directions, matching
from hessprobe.landscape import plane as trajectory
from hessprobe.landscape.axes import axis, covering_axis, share_axis
from hessprobe.landscape.grid import digest, evaluate
from hessprobe.landscape.names import DIRECTIONS, MAPS, RHO, SIZE, SPAN
from hessprobe.landscape.plane import Plane
from hessprobe.landscape.result import FORMAT, Floats, Landscape, Store
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import Objective, require_objective
from hessprobe.objective.modes import batchnorms
from hessprobe.progress import Show, progress_bars
from hessprobe.vectors import require_same

Report = Callable[[int, int], object]

# A journal of more bytes is rid of the products of finished points.
_LONG_JOURNAL = 1 << 26


@dataclass(frozen=True)
class LandscapePlan:
    """What to evaluate: center, directions, grid and quantities.

    Attributes:
        risk: of the checkpoint in the center, whatever the directions.
        others: risks of further checkpoints on the same data, in order; for ``"pca"`` the trajectory is the
            checkpoint in the center and then these.
        names: of all checkpoints.
        directions: a name in ``names.DIRECTIONS``.
        one: one direction instead of two (random, eigen).
        size, span: of the grid; see ``axis``.
        normalization, biases, which, rho, seed: of the directions.
        match: reorder the neurons of ``others`` first.
        quantities, quadratic, memory, store: see ``evaluate``.
    """

    risk: EmpiricalRisk
    others: tuple[EmpiricalRisk, ...] = ()
    names: tuple[str, ...] = ("checkpoint",)
    directions: str = "random"
    one: bool = False
    size: int = SIZE
    span: float = SPAN
    normalization: str = "filter"
    biases: str = "zero"
    which: str = "largest"
    rho: float = RHO
    match: bool = False
    quantities: tuple[str, ...] = ("loss",)
    quadratic: bool = True
    seed: int = 0
    memory: int | None = None
    store: str | Path | None = None


def landscape(
    risk: EmpiricalRisk,
    others: Sequence[EmpiricalRisk] = (),
    *,
    directions: str = "random",
    line: bool = False,
    size: int = SIZE,
    span: float = SPAN,
    maps: Sequence[str] = ("loss",),
    seed: int = 0,
    names: Sequence[str] | None = None,
    progress: Show = False,
    **options: Any,
) -> Landscape:
    """Return the loss on a line or a plane through the parameters of ``risk``, which are the point 0 of the grid.

    Args:
        risk: in the center.
        others: further checkpoints on the same data: one or two for ``"line"``, two or more for ``"pca"``.
        directions: ``"random"``, ``"eigen"``, ``"gradient"``, ``"line"`` or ``"pca"``.
        line: one direction instead of two (random, eigen).
        size: points an axis, >= 3; an odd number is symmetric.
        span: how far to go on either side, in units of the directions, > 0.
        maps: ``"loss"``, ``"error"``, ``"grad-norm"``, ``"lambda-max"``, ``"lambda-min"``.
        seed: of random directions, >= 0.
        names: of ``risk`` and ``others``, for the marks.
        progress: draw a bar: True, False, or ``"auto"``.
        options: further fields of ``LandscapePlan``: ``normalization``, ``biases``, ``which``, ``rho``, ``match``,
            ``quadratic``, ``memory``, ``store``.

    Raises:
        TypeError, ValueError: an unknown option (the message names the nearest) or one outside its range, or
            checkpoints that do not fit each other.
        DataError: checkpoints measured on different data.
        UnsupportedError: neurons that cannot be matched.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 2).double()
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).double()
        >>> data = [(x, torch.tensor([0, 1, 0]))]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
        >>> found = hp.landscape(risk, size=5, seed=0)
        >>> found.values["loss"].shape
        (5, 5)
        >>> bool(abs(found.values["loss"][found.center] - float(risk.loss())) < 1e-12)
        True
    """
    require_objective("risk", risk)
    checks.one_of("directions", directions, DIRECTIONS)
    quantities = tuple(dict.fromkeys(("loss", *(checks.one_of("maps", name, MAPS) for name in maps))))
    known = [each.name for each in fields(LandscapePlan)]
    for name in options:
        if name not in known:
            raise TypeError(checks.no_argument("landscape", name, ("line", "maps", "progress", *known)))
    count = 1 + len(others)
    labels = tuple(names) if names is not None else ("checkpoint", *(f"checkpoint {i}" for i in range(2, count + 1)))
    if len(labels) != count:
        raise ValueError(f"names must be one for each of {count} checkpoints; got {len(labels)}. Name risk first.")
    plan = LandscapePlan(
        risk=risk,
        others=tuple(others),
        names=labels,
        directions=directions,
        one=line,
        size=size,
        span=span,
        quantities=quantities,
        seed=seed,
        **options,
    )
    with progress_bars(progress) as update:
        found, notes = survey(plan, lambda done, total: update("points", done, total, ""))
    return replace(found, notes=tuple(notes))


def survey(plan: LandscapePlan, callback: Report | None = None) -> tuple[Landscape, list[str]]:
    """Return the landscape and remarks for a reader.

    Raises:
        ValueError: checkpoints that do not fit each other, or directions that are parallel.
        DataError: checkpoints measured on different data.
        UnsupportedError: neurons that cannot be matched.
    """
    _require_comparable(plan)
    key = _key(plan)
    if plan.store is None:
        return _survey(plan, key, callback)
    identity = {"landscape": key, "format": FORMAT, "torch": torch.__version__}
    journal = Journal.going_on(f"{plan.store}.journal", identity)

    def told(done: int, total: int) -> None:
        if journal.size > _LONG_JOURNAL:
            journal.compact()
        if callback is not None:
            callback(done, total)

    try:
        with engines.replayed(journal):
            found = _survey(plan, key, told)
        journal.close(done=True)
    finally:
        journal.close()
    return found


def _survey(plan: LandscapePlan, key: str, callback: Report | None) -> tuple[Landscape, list[str]]:
    notes: list[str] = []
    risk = plan.risk
    with engines.part("plane"):
        plane = _stored_plane(plan, key) or _plane(plan, notes)
    found = evaluate(
        risk,
        plane,
        _axes(plan, plane),
        plan.quantities,
        quadratic=False,
        memory=plan.memory,
        store=plan.store,
        key=key,
        callback=callback,
    )
    if plan.quadratic:
        with engines.part("model"):
            found = _with_model(found, risk, plane, notes)
        if batchnorms(risk.module) and risk.batchnorm == "recalibrate":
            notes.append("the second-order model holds BatchNorm's statistics fixed; the points have their own")
    if plan.directions in ("pca", "line"):
        losses = [float(Objective.loss(each)) for each in (plan.risk, *plan.others)]
        found = found.with_marks(
            tuple((name, place, loss) for (name, place, _), loss in zip(found.marks, losses, strict=True))
        )
        notes += _trajectory_notes(found)
        if batchnorms(risk.module) and risk.batchnorm == "eval":
            notes.append(
                "BatchNorm has the running statistics of the center everywhere, so that the loss of another "
                "checkpoint is not that of the grid at its place; --batchnorm recalibrate gives each point its own"
            )
    return found, notes


def _trajectory_notes(found: Landscape) -> list[str]:
    notes = [f"{name}: true loss {loss:.6g}" for name, _, loss in found.marks if loss is not None]
    shares = found.facts.get("explained_variance")
    if shares:
        notes.append(f"the plane explains {100 * sum(shares):.3g} % of the variance of the trajectory")
    return notes


def _with_model(found: Landscape, risk: Objective, plane: Plane, notes: list[str]) -> Landscape:
    from hessprobe.landscape.grid import second_order

    try:
        slope, bend = second_order(risk, plane)
    except HessprobeError as error:
        # The landscape itself needs no derivative.
        notes.append(f"without the second-order model: {error}")
        return found
    return replace(found, slope=slope, bend=bend)


def _plane(plan: LandscapePlan, notes: list[str]) -> Plane:
    k = 1 if plan.one else 2
    if plan.directions == "random":
        return directions.random_plane(
            plan.risk, k, normalization=plan.normalization, biases=plan.biases, seed=plan.seed
        )
    if plan.directions == "eigen":
        return directions.eigen_plane(plan.risk, k, which=plan.which, seed=plan.seed)
    if plan.directions == "gradient":
        return directions.gradient_plane(plan.risk, plan.rho)
    if plan.directions == "pca":
        return trajectory.pca_plane([each.theta for each in (plan.risk, *plan.others)], plan.names)
    thetas = [_matched(plan, index, notes) if plan.match else each.theta for index, each in enumerate(plan.others)]
    return trajectory.line_plane(plan.risk.theta, thetas, plan.names)


def _matched(plan: LandscapePlan, index: int, notes: list[str]) -> Tensor:
    other = plan.others[index]
    state, moved = matching.match(plan.risk, other)
    theta = other.layout.join(state[name] for name in other.layout.names)
    before, after = (float((each - plan.risk.theta).double().norm()) for each in (other.theta, theta))
    notes.append(
        f"{plan.names[index + 1]}: {sum(moved.values())} neurons reordered; distance {after:.4g}, before {before:.4g}"
    )
    return theta


def _axes(plan: LandscapePlan, plane: Plane) -> tuple[Floats, ...]:
    if plan.directions == "line" and plane.dim == 1:
        return (share_axis(plan.size),)
    if plan.directions in ("pca", "line"):
        places = np.array([place for _, place in plane.marks])
        return tuple(covering_axis(plan.size, places[:, index]) for index in range(plane.dim))
    return (axis(plan.size, -plan.span, plan.span),) * plane.dim


def _require_comparable(plan: LandscapePlan) -> None:
    risks = (plan.risk, *plan.others)
    require_same([each.layout for each in risks], plan.names)
    prints = [each.fingerprint() for each in risks] if plan.others else []
    for name, found in zip(plan.names[1:], prints[1:], strict=False):
        if found != prints[0]:
            raise DataError(f"{name} was trained on other data than {plan.names[0]}. Pass checkpoints of one data set.")


def _key(plan: LandscapePlan) -> str:
    """Return the digest of what decides the values.

    Of the directions, it holds how they are made: eigenvectors found again differ in their last bits, and the stored
    ones go on being used.
    """
    settings = [
        plan.directions, plan.one, plan.size, plan.span, plan.normalization, plan.biases, plan.which,
        plan.rho if plan.directions == "gradient" else None, plan.match, plan.seed, list(plan.quantities),
    ]  # fmt: skip
    hasher = hashlib.sha256(json.dumps(settings).encode())
    for risk in (plan.risk, *plan.others):
        # Any direction serves: the digest is of the risk.
        plane = Plane(risk.theta, torch.ones_like(risk.theta)[None], ("",), plan.directions)
        hasher.update(digest(risk, plane, (), plan.quantities).encode())
    return hasher.hexdigest()


def _stored_plane(plan: LandscapePlan, key: str) -> Plane | None:
    """Return the eigenvector plane of an earlier run that was interrupted, or None."""
    known = None if plan.store is None or plan.directions != "eigen" else Store(Path(plan.store), key).load()
    if known is None:
        return None
    facts = json.loads(str(known["facts"]))
    rows = torch.from_numpy(known["rows"]).to(plan.risk.theta)
    return Plane(plan.risk.theta, rows, tuple(facts["labels"]), "eigen", facts=facts["facts"])
