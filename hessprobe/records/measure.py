"""The record of ``hessprobe measure``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessprobe.records import codec
from hessprobe.records.number import Number
from hessprobe.records.record import MeasuredResult, result_row


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measured number.

    Attributes:
        measure: registered name.
        operator: ``"hessian"``, ``"ggn"``, ``"fisher"`` or ``"functional"``.
        unit: in words.
        number: with errors and cost.
        notes: remarks for a reader.
        engine: how products were made.
        layers: one number a parameter tensor, or None.
        arrays: named arrays that belong to it, each with shape, dtype and values, or None.
    """

    measure: str
    operator: str = "hessian"
    unit: str = ""
    number: Number = field(metadata=codec.FLAT)
    notes: tuple[str, ...] = ()
    engine: str = ""
    layers: dict[str, Number] | None = field(default=None, metadata=codec.LEFT_OUT)
    arrays: dict[str, Any] | None = field(default=None, metadata=codec.LEFT_OUT)

    @classmethod
    def of(cls, result: MeasuredResult, confidence: float) -> Measured:
        """Return what is kept of a result, with intervals of that level; see ``result_row``."""
        return codec.read(cls, result_row(result, confidence), "the result")


@dataclass(frozen=True, kw_only=True)
class Partial:
    """How far a stage had come when the work ended early; see ``hessprobe.measures.Event``."""

    stage: str
    done: float
    total: float | None = None
    value: float | None = None
    std_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class MeasureRecord:
    """What ``hessprobe measure`` writes beside what every record says."""

    results: tuple[Measured, ...]
    checkpoint: dict[str, Any] | None = field(default=None, metadata=codec.LEFT_OUT)
    data: dict[str, Any] | None = field(default=None, metadata=codec.LEFT_OUT)
    flags: tuple[str, ...] | None = field(default=None, metadata=codec.LEFT_OUT)
    errors: tuple[str, ...] | None = field(default=None, metadata=codec.LEFT_OUT)
    partial: tuple[Partial, ...] | None = field(default=None, metadata=codec.LEFT_OUT)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> MeasureRecord:
        """Return what a record of ``hessprobe measure`` holds.

        Raises:
            RecordError: an entry is missing, or of another type.
        """
        return codec.read(cls, record, "the record")
