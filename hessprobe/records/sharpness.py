"""The record of ``hessprobe sharpness``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessprobe.records import typed
from hessprobe.records.typed import Measured, Number, Partial

_Numbers = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Evaluations of the loss, of its gradient, and products, each a pass over all batches."""

    losses: float | None = None
    gradients: float | None = None
    products: float | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the second-order model says of a rise of the loss.

    Attributes:
        value: the rise.
        first_order, second_order: its two terms.
        std_error: of the value, >= 0.
        formula: in words.
        curvature_only: the second term where the first is zero, as at a minimum.
    """

    value: float | None
    first_order: float | None = None
    second_order: float | None = None
    std_error: float | None = None
    formula: str = ""
    curvature_only: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ball:
    """What belongs to a rise of the loss at a radius.

    Attributes:
        rho: the radius.
        norm: ``"l2"`` or ``"linf"``.
        adaptive: units of the perturbation.
        m: examples that share one, or None.
        starts: the rise that each ascent found, by where it began.
        predicted: by the second-order model, or None.
        ratio: value over prediction, or None.
    """

    rho: float | None
    norm: str = "l2"
    adaptive: str = "none"
    m: int | None = None
    starts: dict[str, Any] | None = None
    predicted: Predicted | None = None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One number: a rise of the loss, or a measure of the curvature beside it, which has no ball."""

    measured: Measured = field(metadata=typed.FLAT)
    meaning: str = ""
    cost: Cost = Cost()
    ball: Ball | None = field(default=None, metadata=typed.FLAT)

    @property
    def title(self) -> str:
        """The name, with m where there is one."""
        m = None if self.ball is None else self.ball.m
        return self.measured.measure if m is None else f"{self.measured.measure}, m = {m}"


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The gradient and SAM's gradient against the top eigenvectors; see ``hessprobe.sharpness.diagnose``."""

    eigenvalues: _Numbers = ()
    residuals: _Numbers = ()
    gradient: _Numbers = ()
    sam_gradient: _Numbers = ()
    gradient_share: float | None = None
    sam_gradient_share: float | None = None
    gradient_norm: float | None = None
    sam_gradient_norm: float | None = None
    cosine: float | None = None
    rho: float | None = None


@dataclass(frozen=True, kw_only=True)
class Arc:
    """The rise of the loss between the gradient (alpha 0) and SAM's (alpha 1) and beyond, and the model's."""

    rho: float | None = None
    rho_max: float | None
    angle: float | None = None
    alphas: _Numbers
    rises: _Numbers
    model: _Numbers
    best: float | None
    at_end: bool = False


@dataclass(frozen=True, kw_only=True)
class Split:
    """A measure of the Hessian, of its Gauss-Newton part, and of the functional part."""

    name: str
    whole: Number
    gauss_newton: Number
    functional: Number


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What SAM sees at a checkpoint."""

    alignment: Alignment = Alignment()
    arc: Arc
    splits: tuple[Split, ...]
    notes: tuple[str, ...] = ()
    cost: Cost = Cost()


@dataclass(frozen=True, kw_only=True)
class SharpnessRecord:
    """What ``hessprobe sharpness`` writes beside what every record says."""

    results: tuple[Reading, ...]
    checkpoint: dict[str, Any] | None = field(default=None, metadata=typed.LEFT_OUT)
    data: dict[str, Any] | None = field(default=None, metadata=typed.LEFT_OUT)
    flags: tuple[str, ...] | None = field(default=None, metadata=typed.LEFT_OUT)
    errors: tuple[str, ...] | None = field(default=None, metadata=typed.LEFT_OUT)
    partial: tuple[Partial, ...] | None = field(default=None, metadata=typed.LEFT_OUT)
    diagnostics: Diagnostics | None = field(default=None, metadata=typed.LEFT_OUT)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> SharpnessRecord:
        """Return what a record of ``hessprobe sharpness`` holds.

        Raises:
            RecordError: an entry is missing, or of another type.
        """
        return typed.read(cls, record, "the record")
