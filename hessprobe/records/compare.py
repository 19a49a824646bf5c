"""The record of ``hessprobe compare``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessprobe.records import typed
from hessprobe.records.typed import Measured, Number


@dataclass(frozen=True, kw_only=True)
class Value:
    """A measure of one checkpoint, which is called by its label."""

    checkpoint: str
    measured: Measured = field(metadata=typed.FLAT)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of a checkpoint to the baseline in one measure.

    Attributes:
        measure: its name.
        checkpoint, baseline: labels.
        number: the difference, with its own error.
        verdict: see ``hessprobe.comparison.names``.
        p: of no difference, two-sided.
        stands: whether it holds for all differences together (Holm).
        beyond_data: whether it is also beyond what other data would change; None where that is not known.
        correlation: of the sampling errors of the two values.
        independent_std_error: the standard error without probes in common.
        gain: by what factor common probes make it smaller.
    """

    measure: str
    checkpoint: str
    baseline: str
    number: Number = field(metadata=typed.FLAT)
    verdict: str
    p: float | None = None
    stands: bool = True
    beyond_data: bool | None = None
    correlation: float | None = None
    independent_std_error: float | None = None
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """The rank correlation of a measure with a generalisation gap over the checkpoints.

    Attributes:
        measure, gap: what is correlated.
        tau: Kendall's tau.
        interval: of tau.
        confidence: level of the interval.
        count: checkpoints.
        method: of the interval.
        undecided, pairs: pairs of checkpoints whose order by the measure is within error, and all.
        verdict: in words.
    """

    measure: str
    gap: str
    tau: float | None
    interval: tuple[float | None, float | None]
    confidence: float | None = None
    count: int = 0
    method: str = ""
    undecided: int = 0
    pairs: int = 0
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the checkpoints that are compared.

    Attributes:
        label: short and unlike all others.
        path: of the file.
        dim: number of parameters; None where it could not be loaded.
        checkpoint: what it says of itself.
        rescalings: kinds of rescaling that act in it; None where that is not known.
        gaps: generalisation gaps by name, where asked for.
        errors: what went wrong, one sentence each.
    """

    label: str
    path: str
    dim: int | None = None
    checkpoint: dict[str, Any] | None = None
    rescalings: tuple[str, ...] | None = None
    gaps: dict[str, float | None] | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """Whether rescalings that act in the networks change the measures: which act, which of the measures they move."""

    kinds: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    invariant: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class CompareRecord:
    """What ``hessprobe compare`` writes beside what every record says."""

    results: tuple[Value, ...]
    data: dict[str, Any] | None = field(default=None, metadata=typed.LEFT_OUT)
    checkpoints: tuple[Member, ...] = ()
    baseline: str | None = field(default=None, metadata=typed.LEFT_OUT)
    differences: tuple[Difference, ...]
    correlations: tuple[Correlation, ...] | None = field(default=None, metadata=typed.LEFT_OUT)
    rescaling: Rescaling | None = field(default=None, metadata=typed.LEFT_OUT)
    flags: tuple[str, ...] | None = field(default=None, metadata=typed.LEFT_OUT)
    errors: tuple[str, ...] | None = field(default=None, metadata=typed.LEFT_OUT)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> CompareRecord:
        """Return what a record of ``hessprobe compare`` holds.

        Raises:
            RecordError: an entry is missing, or of another type.
        """
        return typed.read(cls, record, "the record")
