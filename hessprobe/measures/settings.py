"""What a measurement is asked for, and what it hands back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from hessprobe import checks
from hessprobe.estimate import Estimate

OPERATORS = ("hessian", "ggn", "fisher", "functional")

# Damping where none is given, in units of the eigenvalues; the record says so.
DEFAULT_SHIFT = 1e-3

_BRACKET, _DELTA = 1e-3, 0.005


@dataclass(frozen=True)
class MeasureSettings:
    """How to measure.

    Attributes:
        operator: ``"hessian"``, ``"ggn"``, ``"fisher"`` or ``"functional"``, the Hessian less ``"ggn"``.
        rtol: the half-width of each interval at ``confidence`` is at most rtol * |value|; ignored with ``n_probes``.
        n_probes: fixed number of probes instead, >= 2, or None.
        seed: integer >= 0.
        per_layer: also one value for every parameter tensor (lambda-max, trace, frob).
        engine: of the products, see ``hvp.Hessian``.
        memory: bytes that products may keep, or None.
        confidence: level of the intervals.
        k: eigenpairs an end that are found together with the extreme ones.
        shift: damping of logdet and effective-dimension, > 0, in units of the eigenvalues; 1e-3 where None. Of
            universal:logdet and universal:det the power of two from twice the Frobenius norm on, where None.
        radius: measure universal:* from losses alone at this radius (and half of it), > 0; by products where None.
        data_error: tell the error that comes from the data being a sample; False saves what that takes.

    Raises:
        TypeError, ValueError: a value outside its range.

    Examples:
        >>> import hessprobe as hp
        >>> settings = hp.MeasureSettings(operator="ggn", rtol=0.05)
        >>> settings.operator, settings.rtol, settings.damping
        ('ggn', 0.05, 0.001)
    """

    operator: str = "hessian"
    rtol: float = 0.01
    n_probes: int | None = None
    seed: int = 0
    per_layer: bool = False
    engine: str = "auto"
    memory: int | None = None
    confidence: float = 0.95
    k: int = 1
    shift: float | None = None
    radius: float | None = None
    data_error: bool = True

    def __post_init__(self) -> None:
        checks.one_of("operator", self.operator, OPERATORS)
        checks.real("rtol", self.rtol, low=0, high=1, low_open=True, high_open=True)
        if self.n_probes is not None:
            checks.positive_int("n_probes", self.n_probes, minimum=2, hint="One sample has no standard error.")
        checks.resolve_seed(self.seed)
        checks.real("confidence", self.confidence, low=0, high=1, low_open=True, high_open=True)
        checks.positive_int("k", self.k)
        if self.shift is not None:
            checks.real("shift", self.shift, low=0, low_open=True)
        if self.radius is not None:
            checks.real("radius", self.radius, low=0, low_open=True)
        if not isinstance(self.data_error, bool):
            raise TypeError(f"data_error must be True or False; got {self.data_error!r}. False leaves it out.")

    @property
    def bracket_rtol(self) -> float:
        """Relative width of an eigenvalue's bracket: ``rtol``, or one per mille where the probes are fixed."""
        return self.rtol if self.n_probes is None else _BRACKET

    @property
    def bracket_delta(self) -> float:
        """Probability that a bracket fails, so that a difference of two reaches ``confidence`` as well."""
        return min(_DELTA, (1 - self.confidence) / 2)

    @property
    def damping(self) -> float:
        """The shift in use."""
        return DEFAULT_SHIFT if self.shift is None else self.shift


def settings_of(owner: str, others: Iterable[str] = (), **given: Any) -> MeasureSettings:
    """Return the settings that ``owner`` was given as keywords.

    Args:
        owner: the function or class, for the message.
        others: further arguments that it has.
        given: fields of ``MeasureSettings``.

    Raises:
        TypeError, ValueError: an unknown field (the message names the nearest), or a value outside its range.
    """
    known = [each.name for each in fields(MeasureSettings)]
    for name in given:
        if name not in known:
            raise TypeError(checks.no_argument(owner, name, dict.fromkeys((*others, *known))))
    return MeasureSettings(**given)


@dataclass(frozen=True)
class Event:
    """How far a stage has come; the last event of each stage is what an interrupted run can still report.

    Attributes:
        stage: e.g. ``"eigenvalues"``.
        done: products so far.
        total: products in all, or None where that is not known.
        value: the estimate so far, or None.
        std_error: its standard error, or None.
    """

    stage: str
    done: float
    total: float | None = None
    value: float | None = None
    std_error: float | None = None


@dataclass(frozen=True)
class Answer:
    """What the function of a measure returns that has more to say than a number.

    Attributes:
        estimate: value, error, cost.
        layers: value by parameter tensor, or None.
        arrays: further results by name.
        notes: what a reader should know, in words.
    """

    estimate: Estimate
    layers: dict[str, Estimate] | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """One measured number.

    Attributes:
        measure: registered name.
        operator: see ``MeasureSettings``.
        estimate: value, error, cost.
        unit: of the value.
        layers: value by parameter tensor, or None.
        arrays: further results by name.
        notes: what a reader should know, in words.
        engine: how products were made, and why not otherwise.
    """

    measure: str
    operator: str
    estimate: Estimate
    unit: str
    layers: dict[str, Estimate] | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    engine: str = ""
