"""A number of a record: value, errors, interval and cost.

Dataclasses as the JSON objects of a record: the fields that are declared are what is written, read and refused.

A field without default must be there. Entries that no field declares are passed over: a later version may have written
them.

The record of ``hessprobe measure``.

Numbers as text: only the digits that the error leaves.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from hessprobe.errors import RecordError
from hessprobe.estimate import Estimate
from hessprobe.records.record import MeasuredResult, build_record, cleaned, result_row

_Kind = TypeVar("_Kind")
_MEND = "Write the record again."

# Metadata of a field: its own fields stand in the object itself, none of them where it is None; or it is not written
# where it is None.
FLAT: Mapping[str, bool] = types.MappingProxyType({"flat": True})
LEFT_OUT: Mapping[str, bool] = types.MappingProxyType({"left_out": True})


def read(kind: type[_Kind], part: Mapping[str, Any], where: str) -> _Kind:
    """Return an object of a record as a dataclass.

    Args:
        kind: the dataclass.
        part: the object.
        where: the object in words, for messages: ``"the record"``, ``"results[0],"``.

    Raises:
        RecordError: an entry is missing, or of another type; names it.
    """
    hints, values = _hints(typing.cast(Any, kind)), {}
    for each in fields(typing.cast(Any, kind)):
        if each.metadata.get("flat"):
            inner = _only(hints[each.name])
            if inner is hints[each.name] or any(one.name in part for one in fields(inner)):
                values[each.name] = read(inner, part, where)
        elif each.name in part:
            values[each.name] = _value(hints[each.name], part[each.name], each.name, where)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise RecordError(f"{where} lacks the entry {each.name!r}. {_MEND}")
    return kind(**values)


def build(command: str, found: Any, **head: Any) -> dict[str, Any]:
    """Return the record of a command, ready to be written as JSON.

    Args:
        command: its name on the command line.
        found: its record as a dataclass, with the field ``results``.
        head: ``arguments``, ``seed`` and ``device``; see ``build_record``.
    """
    parts = written(found)
    return build_record(command, parts.pop("results"), **head, **parts)


def written(one: Any) -> dict[str, Any]:
    """Return a dataclass as the object of a record, in the order of its fields; nan and inf become null."""
    entries: dict[str, Any] = {}
    for each in fields(one):
        value = getattr(one, each.name)
        if each.metadata.get("flat"):
            entries |= {} if value is None else written(value)
        elif not (value is None and each.metadata.get("left_out")):
            entries[each.name] = _plain(value)
    return entries


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return written(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return cleaned(value)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _only(hint: Any) -> Any:
    """Return X of ``X | None``, and any other type as it is."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    (only,) = (each for each in typing.get_args(hint) if each is not type(None))
    return only


def _value(hint: Any, value: Any, name: str, where: str) -> Any:
    if value is None and type(None) in typing.get_args(hint):
        return None
    hint = _only(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        _require(value, Mapping, name, where)
        return read(typing.cast(Any, hint), value, _inside(where, f"{name},"))
    if origin is tuple:
        _require(value, (list, tuple), name, where)
        if arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise RecordError(f"{where} has {len(value)} numbers as {name!r}, not {len(arguments)}. {_MEND}")
            return tuple(_value(each, one, name, where) for each, one in zip(arguments, value, strict=True))
        return tuple(_entry(arguments[0], one, f"{name}[{index}]", where) for index, one in enumerate(value))
    if origin is dict:
        _require(value, Mapping, name, where)
        return {key: _entry(arguments[1], one, f"{name}, {key!r}", where) for key, one in value.items()}
    _require(value, (int, float) if hint is float else hint, name, where)
    return value


def _entry(hint: Any, value: Any, place: str, where: str) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return read(typing.cast(Any, hint), value, _inside(where, f"{place},"))
    return _value(hint, value, place, where)


def _require(value: Any, kind: Any, name: str, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecordError(f"{where} has {type(value).__name__} as {name!r}. {_MEND}")


def _inside(where: str, name: str) -> str:
    return name if where == "the record" else f"{where} {name}"


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
        return read(cls, row, where)

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
    number: Number = field(metadata=FLAT)
    notes: tuple[str, ...] = ()
    engine: str = ""
    layers: dict[str, Number] | None = field(default=None, metadata=LEFT_OUT)
    arrays: dict[str, Any] | None = field(default=None, metadata=LEFT_OUT)

    @classmethod
    def of(cls, result: MeasuredResult, confidence: float) -> Measured:
        """Return what is kept of a result, with intervals of that level; see ``result_row``."""
        return read(cls, result_row(result, confidence), "the result")


@dataclass(frozen=True, kw_only=True)
class Partial:
    """How far a stage had come when the work ended early; see ``hessprobe.measures.Progress``."""

    stage: str
    done: float
    total: float | None = None
    value: float | None = None
    std_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class MeasureRecord:
    """What ``hessprobe measure`` writes beside what every record says."""

    results: tuple[Measured, ...]
    checkpoint: dict[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    data: dict[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    flags: tuple[str, ...] | None = field(default=None, metadata=LEFT_OUT)
    errors: tuple[str, ...] | None = field(default=None, metadata=LEFT_OUT)
    partial: tuple[Partial, ...] | None = field(default=None, metadata=LEFT_OUT)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> MeasureRecord:
        """Return what a record of ``hessprobe measure`` holds.

        Raises:
            RecordError: an entry is missing, or of another type.
        """
        return read(cls, record, "the record")


SIGNIFICANT = 6
_FIXED_FROM, _FIXED_TO = -3, 6
# An arm of a bracket this small beside the other is the rounding of the products.
_NOTHING = 0.02


def number_texts(
    value: float | None, error: float | None, *others: float | None, digits: int = SIGNIFICANT
) -> list[str]:
    """Return value, error and further numbers of the same size, all to the digit that the error leaves.

    Args:
        value: the number; None or nan where there is none.
        error: its error, >= 0; the text is empty where it is 0 or None.
        others: written like the value (the ends of its interval).
        digits: most digits of the value, >= 2.
    """
    known = [abs(number) for number in (value, error) if number is not None and math.isfinite(number) and number]
    if not known:
        return [plain(value), "", *map(plain, others)]
    scale = _exponent(max(known))
    place = scale - digits + 1
    if _FIXED_FROM <= scale < _FIXED_TO:
        # No digit before the point is ever left out.
        place = min(place, 0)
    if error is not None and math.isfinite(error) and error > 0:
        place = max(_exponent(error) - 1, place)
    numbers = [_rounded(number, scale, place) for number in (value, *others)]
    return [numbers[0], _error_text(error, scale, place), *numbers[1:]]


def with_error(value: float | None, error: float | None, plus_minus: str = "±") -> str:
    """Return ``"12.34 ± 0.56"``, or the value alone where there is no error."""
    text, uncertainty = number_texts(value, error)
    return f"{text} {plus_minus} {uncertainty}" if uncertainty else text


def error_texts(number: Number, plus_minus: str = "±", digits: int = SIGNIFICANT) -> tuple[str, str, str]:
    """Return value, measurement error and data error of a result as text, each with its sign.

    The measurement error is the standard error (or the solver's error where that is larger) of the number for these
    data; of a bracket the arms, ``+0.004`` where the quantity lies between the value and that much above; ``exact`` and
    ``bound`` where it is neither. The data error is a standard error too, empty where it is not known.

    Args:
        number: of a record.
        plus_minus: the sign.
        digits: most digits of the value.
    """
    value, uncertainty = number_texts(number.value, number.error, digits=digits)
    value = {"lower bound": ">= ", "upper bound": "<= "}.get(number.kind, "") + value
    data = number.errors.data
    sampled = "" if data is None else f"{plus_minus} {number_texts(None, data)[1] or 0}"
    low, high = number.bracket or (None, None)
    if number.kind == "bracket" and number.value is not None and low is not None and high is not None:
        return value, _arms(number.value - low, high - number.value), sampled
    if uncertainty:
        return value, f"{plus_minus} {uncertainty}", sampled
    return value, "exact" if number.is_exact else "bound" if "bound" in number.kind else "", sampled


def tells_data(numbers: Iterable[Number]) -> bool:
    """Return whether any number of a table knows its data error: where none does there is no such column."""
    return any(number.errors.data is not None for number in numbers)


def errors_legend(numbers: Sequence[Number], plus_minus: str) -> list[str]:
    """Return what the columns of errors mean, in the sentences that a table needs."""
    legend = [f"{plus_minus} measurement: standard error of the number for these data"]
    if tells_data(numbers):
        legend.append(f"{plus_minus} data: standard error from the data being a sample (jackknife over examples)")
    levels = [number.bracket_confidence or 1.0 for number in numbers if number.kind == "bracket"]
    if levels:
        level = 100 * min(levels)
        legend.append(f"+ or - alone: a bracket, which holds the eigenvalue with probability {level:.4g} %")
    return legend


def measured_text(number: Number, plus_minus: str = "±", *, size: bool = False) -> str:
    """Return ``"3.1 ± 0.2"`` of a number, of a bracket ``"3.10 [3.05, 3.20]"``; with ``size`` of its absolute value."""
    sign = -1 if size and number.value is not None and number.value < 0 else 1
    value = None if number.value is None else sign * number.value
    ends = [sign * end for end in number.interval if end is not None]
    if number.kind != "bracket" or value is None or len(ends) < 2:
        return with_error(value, number.error, plus_minus)
    text, _, low, high = number_texts(value, number.error, *sorted(ends))
    return f"{text} [{low}, {high}]" if low != high else text


def _arms(below: float, above: float) -> str:
    """Return the arms of a bracket; one that is nothing beside the other is left out."""
    shown = []
    if below > _NOTHING * above:
        shown.append(f"-{number_texts(None, below)[1]}")
    if above > _NOTHING * below:
        shown.append(f"+{number_texts(None, above)[1]}")
    return " ".join(shown) or "exact"


def plain(number: float | None, digits: int = SIGNIFICANT) -> str:
    """Return a number to so many significant digits, or ``"nan"`` where there is none."""
    return "nan" if number is None else f"{number:.{digits}g}"


def products_text(count: float | None) -> str:
    """Return a number of products: fractions as they are, whole from a thousand on."""
    # Passes over some of the batches make fractions; beyond a thousand they are noise.
    if count is None or not math.isfinite(count):
        return "nan"
    return f"{count:.0f}" if count >= 1000 else f"{count:.1f}".removesuffix(".0")


def _exponent(number: float) -> int:
    return math.floor(math.log10(abs(number)))


def _rounded(number: float | None, scale: int, place: int) -> str:
    if number is None or not math.isfinite(number):
        return plain(number)
    if _FIXED_FROM <= scale < _FIXED_TO:
        return f"{number:.{max(-place, 0)}f}"
    return f"{number:.{max(scale - place, 0)}e}"


def _error_text(error: float | None, scale: int, place: int) -> str:
    if error is None or not error > 0:
        return ""
    if not math.isfinite(error):
        return plain(error)
    fixed, scientific = f"{error:.{max(-place, 0)}f}", f"{error:.1e}"
    if _FIXED_FROM <= scale < _FIXED_TO and _FIXED_FROM <= _exponent(error) < min(place, 0):
        return f"{error:#.2g}"
    readable = _FIXED_FROM <= scale < _FIXED_TO and _exponent(error) >= place
    return fixed if readable and len(fixed) <= len(scientific) else scientific
