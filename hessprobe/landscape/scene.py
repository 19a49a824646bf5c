"""From what is asked for to a landscape: plane, grid, values, true losses of checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hessprobe.errors import DataError, HessprobeError
from hessprobe.landscape import directions, matching, trajectory
from hessprobe.landscape.axes import Floats, axis, covering_axis, share_axis
from hessprobe.landscape.grid import digest, evaluate
from hessprobe.landscape.names import RHO, SIZE, SPAN
from hessprobe.landscape.plane import Plane
from hessprobe.landscape.result import Landscape, Store
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import Objective
from hessprobe.objective.modes import batchnorms
from hessprobe.vectors import require_same

Report = Callable[[int, int], object]


@dataclass(frozen=True)
class Scene:
    """What to look at.

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


def survey(scene: Scene, callback: Report | None = None) -> tuple[Landscape, list[str]]:
    """Return the landscape and remarks for a reader.

    Raises:
        ValueError: checkpoints that do not fit each other, or directions that are parallel.
        DataError: checkpoints measured on different data.
        UnsupportedError: neurons that cannot be matched.
    """
    notes: list[str] = []
    _require_comparable(scene)
    risk = scene.risk
    key = _key(scene)
    plane = _stored_plane(scene, key) or _plane(scene, notes)
    found = evaluate(
        risk,
        plane,
        _axes(scene, plane),
        scene.quantities,
        quadratic=False,
        memory=scene.memory,
        store=scene.store,
        key=key,
        callback=callback,
    )
    if scene.quadratic:
        found = _with_model(found, risk, plane, notes)
        if batchnorms(risk.module) and risk.batchnorm == "recalibrate":
            notes.append("the second-order model holds BatchNorm's statistics fixed; the points have their own")
    if scene.directions in ("pca", "line"):
        losses = [float(Objective.loss(each)) for each in (scene.risk, *scene.others)]
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


def _plane(scene: Scene, notes: list[str]) -> Plane:
    k = 1 if scene.one else 2
    if scene.directions == "random":
        return directions.random_plane(
            scene.risk, k, normalization=scene.normalization, biases=scene.biases, seed=scene.seed
        )
    if scene.directions == "eigen":
        return directions.eigen_plane(scene.risk, k, which=scene.which, seed=scene.seed)
    if scene.directions == "gradient":
        return directions.gradient_plane(scene.risk, scene.rho)
    if scene.directions == "pca":
        return trajectory.pca_plane([each.theta for each in (scene.risk, *scene.others)], scene.names)
    thetas = [_matched(scene, index, notes) if scene.match else each.theta for index, each in enumerate(scene.others)]
    return trajectory.line_plane(scene.risk.theta, thetas, scene.names)


def _matched(scene: Scene, index: int, notes: list[str]) -> Tensor:
    other = scene.others[index]
    state, moved = matching.match(scene.risk, other)
    theta = other.layout.join(state[name] for name in other.layout.names)
    before, after = (float((each - scene.risk.theta).double().norm()) for each in (other.theta, theta))
    notes.append(
        f"{scene.names[index + 1]}: {sum(moved.values())} neurons reordered; distance {after:.4g}, before {before:.4g}"
    )
    return theta


def _axes(scene: Scene, plane: Plane) -> tuple[Floats, ...]:
    if scene.directions == "line" and plane.dim == 1:
        return (share_axis(scene.size),)
    if scene.directions in ("pca", "line"):
        places = np.array([place for _, place in plane.marks])
        return tuple(covering_axis(scene.size, places[:, index]) for index in range(plane.dim))
    return (axis(scene.size, -scene.span, scene.span),) * plane.dim


def _require_comparable(scene: Scene) -> None:
    risks = (scene.risk, *scene.others)
    require_same([each.layout for each in risks], scene.names)
    prints = [each.fingerprint() for each in risks] if scene.others else []
    for name, found in zip(scene.names[1:], prints[1:], strict=False):
        if found != prints[0]:
            raise DataError(
                f"{name} was trained on other data than {scene.names[0]}. Pass checkpoints of one data set."
            )


def _key(scene: Scene) -> str:
    """Return the digest of what decides the values.

    Of the directions, it holds how they are made: eigenvectors found again differ in their last bits, and the stored
    ones go on being used.
    """
    settings = [
        scene.directions, scene.one, scene.size, scene.span, scene.normalization, scene.biases, scene.which,
        scene.rho if scene.directions == "gradient" else None, scene.match, scene.seed, list(scene.quantities),
    ]  # fmt: skip
    hasher = hashlib.sha256(json.dumps(settings).encode())
    for risk in (scene.risk, *scene.others):
        # Any direction serves: the digest is of the risk.
        plane = Plane(risk.theta, torch.ones_like(risk.theta)[None], ("",), scene.directions)
        hasher.update(digest(risk, plane, (), scene.quantities).encode())
    return hasher.hexdigest()


def _stored_plane(scene: Scene, key: str) -> Plane | None:
    """Return the eigenvector plane of an earlier run that was interrupted, or None."""
    known = None if scene.store is None or scene.directions != "eigen" else Store(Path(scene.store), key).load()
    if known is None:
        return None
    facts = json.loads(str(known["facts"]))
    rows = torch.from_numpy(known["rows"]).to(scene.risk.theta)
    return Plane(scene.risk.theta, rows, tuple(facts["labels"]), "eigen", facts=facts["facts"])
