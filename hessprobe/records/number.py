"""A number of a record: value, errors, interval and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessprobe.estimate import Estimate
from hessprobe.records import codec
from hessprobe.records.record import cleaned


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The parts of an error; None where one is not known.

    Attributes:
        probe: standard error from the probes, >= 0.
        data: standard error from the data being a sample, >= 0.
        data_df: its degrees of freedom; None also for infinitely many.
        solver: bound on what the method itself is off by, >= 0.
    """

    probe: float | None = None
    data: float | None = None
    data_df: float | None = None
    solver: float | None = None


@dataclass(frozen=True, kw_only=True)
class NumberCost:
    """What a number cost.

    Attributes:
        gradients: its time in gradients of the loss over the same data, or None.
        made: products by kind.
    """

    gradients: float | None = None
    made: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number as records keep it; null, which stands for nan and inf there, is None.

    Attributes:
        value: the number.
        std_error: standard error of the measurement, >= 0.
        interval: lower and upper end.
        confidence: level of the interval, in (0, 1).
        matvecs: products it took.
        samples: probes it is made of.
        method: how it was estimated.
        kind: ``"estimate"``, ``"exact"``, ``"bracket"``, ``"lower bound"`` or ``"upper bound"``.
        seconds: time it took.
        cost: the same in gradients, and the products by kind.
        errors: the parts of its error.
        bracket: ends between which it lies with probability ``bracket_confidence``, or None.
        bracket_confidence: see ``bracket``.
        flags: what is weak about it; see ``hessprobe.cli.wording.FLAGS``.
    """

    value: float | None
    std_error: float | None = None
    interval: tuple[float | None, float | None]
    confidence: float | None = None
    matvecs: float | None = None
    samples: float | None = None
    method: str = ""
    kind: str = "estimate"
    seconds: float | None = None
    cost: NumberCost = NumberCost()
    errors: Errors = Errors()
    bracket: tuple[float | None, float | None] | None = None
    bracket_confidence: float | None = 1.0
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any], where: str = "the record") -> Number:
        """Return the number that a row of a record holds.

        Raises:
            RecordError: it lacks value or interval, or holds something else than a number there.
        """
        return codec.read(cls, row, where)

    @classmethod
    def of_estimate(cls, estimate: Estimate, confidence: float) -> Number:
        """Return an estimate as records keep it, with the interval of that level."""
        return cls.of(cleaned(estimate.row(confidence)), "the estimate")

    @property
    def error(self) -> float | None:
        """What stands behind the ±: the standard error, or the solver's error where that is larger."""
        if self.std_error is None or self.errors.solver is None:
            return self.std_error
        return max(self.std_error, self.errors.solver)

    @property
    def spread(self) -> tuple[float, float, float]:
        """Value, and how far the interval reaches below and above it; nan where there is none."""
        if self.value is None:
            return math.nan, math.nan, math.nan
        below, above = (0.0 if end is None else abs(end - self.value) for end in self.interval)
        return float(self.value), below, above

    @property
    def is_exact(self) -> bool:
        """Whether it has neither a sampling nor a solver error: it is exact up to rounding."""
        return self.kind in ("exact", "estimate") and self.value is not None and self.error == 0
