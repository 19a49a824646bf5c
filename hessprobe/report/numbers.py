"""Numbers as text: only the digits that the error leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hessprobe.records.number import Number

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
