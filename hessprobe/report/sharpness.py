"""What a record says of sharpness and of what SAM sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from hessprobe.estimate import Estimate
from hessprobe.records import typed
from hessprobe.records.record import cleaned
from hessprobe.records.sharpness import Alignment, Arc, Ball, Cost, Diagnostics, Predicted, Reading, Split
from hessprobe.records.typed import Measured, Number
from hessprobe.sharpness import diagnostics, survey
from hessprobe.sharpness.names import MEANINGS

_UNITS = {"fisher-rao": "loss", "relative-flatness": "loss"}


@dataclass(frozen=True)
class _Result:
    """A reading as ``result_row`` takes it."""

    measure: str
    estimate: Estimate
    unit: str
    layers: Mapping[str, Estimate] | None
    notes: Sequence[str]
    engine: str
    operator: str = "hessian"
    arrays: Mapping[str, Tensor] = field(default_factory=dict)


def reading_of(reading: survey.Reading, confidence: float) -> Reading:
    """Return a number of a survey as its record keeps it."""
    one = reading.sharpness
    unit = _UNITS.get(reading.name, "curvature" if one is None else "loss")
    result = _Result(reading.name, reading.estimate, unit, reading.layers, reading.notes, reading.engine)
    ball = None
    if one is not None:
        predicted = None if one.predicted is None else Predicted(**cleaned(asdict(one.predicted)))
        starts = cleaned(one.starts)
        ball = Ball(rho=one.rho, norm=one.norm, adaptive=one.adaptive, m=one.m, starts=starts, predicted=predicted,
                    ratio=cleaned(one.model_ratio))  # fmt: skip
    cost = Cost(**cleaned(asdict(reading.cost)))
    measured = Measured.of(result, confidence)
    return Reading(measured=measured, meaning=MEANINGS[reading.name], cost=cost, ball=ball)


def diagnostics_of(found: diagnostics.Diagnostics, confidence: float) -> Diagnostics:
    """Return what SAM sees as its record keeps it."""
    parts = ("whole", "gauss_newton", "functional")
    return Diagnostics(
        alignment=typed.read(Alignment, _plain(found.alignment), "alignment"),
        arc=typed.read(Arc, _plain(found.arc), "arc"),
        splits=tuple(
            Split(name=each.name, **{part: Number.of_estimate(getattr(each, part), confidence) for part in parts})
            for each in found.splits
        ),
        notes=tuple(found.notes),
        cost=Cost(**cleaned(asdict(found.cost))),
    )


def _plain(values: Any) -> dict[str, Any]:
    entries: dict[str, Any] = cleaned(
        {key: one.tolist() if isinstance(one, Tensor) else one for key, one in vars(values).items()}
    )
    return entries
