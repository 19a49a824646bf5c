"""One point of a run: loss, gradient, curvature, and how they relate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import UnsupportedError
from hessprobe.estimators.budget import Progress
from hessprobe.measures.context import Context, MeasureSettings, Result, Start
from hessprobe.measures.registry import results
from hessprobe.objective.base import Objective
from hessprobe.tracking.names import ALWAYS, TRACKED
from hessprobe.tracking.stability import Edge, StepRule, edge
from hessprobe.vectors import row_dots


@dataclass(frozen=True)
class Alignment:
    """How far the gradient g lies along the leading eigenvectors v_1, v_2, ...

    Attributes:
        first: |v_1.g| / ||g||, in [0, 1].
        space: ||(v_1.g, ..., v_k.g)|| / ||g||, the cosine of the angle between g and the space of the k largest.
        k: size of that space.
    """

    first: float
    space: float
    k: int


@dataclass(frozen=True)
class Point:
    """What was measured at one step of a run.

    Attributes:
        step: steps done.
        loss, gradient_norm: of the measured data.
        alignment: None where the gradient is zero.
        results: one a measure, with error and cost.
        edge: the thresholds of the step's rule.
        lr: of the step, or None.
        epoch: passes over the data done, or None.
        scores: further numbers of this step by name, such as accuracies.
        matvecs: products, each counted once.
        seconds: wall-clock time of all of it.
    """

    step: int
    loss: float
    gradient_norm: float
    alignment: Alignment | None
    results: tuple[Result, ...]
    edge: Edge
    lr: float | None = None
    epoch: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    matvecs: float = 0.0
    seconds: float = 0.0

    @property
    def values(self) -> dict[str, float]:
        """The value of every measure by name."""
        return {result.measure: result.estimate.value for result in self.results}


def measure_point(
    risk: Objective,
    settings: MeasureSettings,
    names: Sequence[str],
    *,
    step: int,
    rule: StepRule | str = "the optimizer is not known",
    start: Start | None = None,
    report: Callable[[Progress], None] = lambda event: None,
    lr: float | None = None,
    epoch: float | None = None,
    scores: Mapping[str, float] | None = None,
) -> tuple[Point, Start]:
    """Measure one point of a run.

    Args:
        risk: the loss as a function of the parameters, at this point.
        settings: how to measure; the same seed for all points, so that they share their probes.
        names: in ``names.TRACKED``; the largest eigenvalue is always among what is measured. What needs the state of an
            optimizer that has not stepped yet is left out of this point.
        step: steps done, >= 0.
        rule: of the optimizer's step, or why there is none.
        start: what the point before has left; fewer products are needed from there.
        report: told of progress.
        lr: see ``Point``.
        epoch: see ``Point``.
        scores: see ``Point``.

    Returns:
        The point, and what the next one may begin from.

    Raises:
        TypeError, ValueError: an argument outside its range.
        HessprobeError: see the measures.
    """
    began = time.perf_counter()
    checks.positive_int("step", step, minimum=0)
    wanted = tuple(dict.fromkeys((ALWAYS, *(checks.one_of("measure", name, TRACKED) for name in names))))
    loss, gradient = float(risk.loss()), risk.gradient()
    norm = float(row_dots(gradient[None], gradient[None]).sqrt())
    context = Context(risk, settings, wanted, report, start)
    found = tuple(results(context, wanted, _left_out(step)))
    k, P = min(settings.k, risk.dim), risk.preconditioner
    point = Point(
        step=step,
        loss=loss,
        gradient_norm=norm,
        alignment=_alignment(gradient, norm, context.eigenpairs.vectors[:k]),
        results=found,
        edge=replace(edge(rule, norm), preconditioned=None if P is None else P.threshold),
        lr=lr,
        epoch=epoch,
        scores=dict(scores or {}),
        matvecs=context.matvecs + sum(one.estimate.matvecs for one in found if not TRACKED[one.measure].needs),
        seconds=time.perf_counter() - began,
    )
    return point, context.left


def _left_out(step: int) -> Callable[[str, UnsupportedError], None]:
    def missing(name: str, error: UnsupportedError) -> None:
        # Before the first step there is no state; later it should be there.
        if step > 0 or "optimizer" not in TRACKED[name].needs:
            raise error

    return missing


def _alignment(gradient: Tensor, norm: float, vectors: Tensor) -> Alignment | None:
    if norm == 0:
        return None
    parts = row_dots(vectors, gradient.expand_as(vectors)) / norm
    # Rounding may carry a cosine past one.
    first, space = (min(float(part), 1.0) for part in (parts[0].abs(), torch.linalg.vector_norm(parts)))
    return Alignment(first, space, len(vectors))
