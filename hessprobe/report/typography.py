"""Numbers as a reader expects them in print: powers of ten, real minus signs, spaces that do not break."""

from __future__ import annotations

import datetime
import re

from hessprobe.records.typed import number_texts, plain

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_POWER = re.compile(r"(?<=\d)e([+-]?)0*(\d+)\b")
_SCIENTIFIC = re.compile(r"(-?\d(?:\.(\d+))?)e([+-]\d+)")
_HYPHEN = re.compile(r"(?<![\w.])-(?=[\d.])")
_THIN, _NO_BREAK, _TIMES, _MINUS = "\u202f", "\u00a0", "\u00d7", "\u2212"


def pretty(text: str) -> str:
    """Return the text of a number for print: ``-1.2e-06`` becomes ``−1.2 × 10⁻⁶``."""
    powered = _POWER.sub(lambda found: f"{_THIN}{_TIMES}{_THIN}10{_power(found)}", text)
    return _HYPHEN.sub(_MINUS, powered)


def numbers(value: float | None, error: float | None, *others: float | None) -> list[str]:
    """Return ``number_texts`` for print."""
    return [pretty(text) for text in number_texts(value, error, *others)]


def steady(value: float | None, error: float | None = None, digits: int = 4) -> str:
    """Return a number to the digit that its error leaves; to so many digits, zeros kept, where it has no error."""
    return "not finite" if value is None else pretty(number_texts(value, error, digits=digits)[0])


def joined(low: str, high: str, between: str) -> str | None:
    """Return ``(1.2 to 1.3) × 10⁻⁴`` of numbers for print, or None where they have not one power of ten."""
    (first, power), (last, other) = (text.rpartition(f"{_THIN}{_TIMES}{_THIN}")[::2] for text in (low, high))
    return f"({first}{between}{last}){_THIN}{_TIMES}{_THIN}{power}" if first and power == other else None


def combined(value: float | None, error: float | None) -> str | None:
    """Return ``(7.39 ± 0.26) × 10⁻⁷``, or None where value and error need no power of ten or not the same digits."""
    found = _SCIENTIFIC.fullmatch(number_texts(value, error)[0])
    if not found or not error:
        return None
    digits = len(found[2] or "")
    scaled = error / 10.0 ** int(found[3])
    if digits == 0 or scaled < 10.0**-digits:
        return None
    return pretty(f"({found[1]} ± {scaled:.{digits}f})") + pretty(f"1e{found[3]}")[1:]


def number(value: float | None, digits: int = 4) -> str:
    """Return a number to so many significant digits for print."""
    return "not finite" if value is None else pretty(plain(value, digits))


def count(value: float | None) -> str:
    """Return a whole number with its thousands apart, or a fraction to one digit."""
    if value is None:
        return "not finite"
    whole = abs(value - round(value)) < 1e-6 or abs(value) >= 100
    return f"{value:,.0f}" if whole else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """Return a time for print, to two or three digits: the next run differs in the third."""
    if value is None:
        return "unknown"
    if value >= 120:
        return f"{value / 60:.1f}{_NO_BREAK}min"
    if value < 9.5e-4:
        return f"{1e6 * value:.0f}{_NO_BREAK}µs"
    if value < 0.095:
        return f"{1e3 * value:.{1 if value < 9.5e-3 else 0}f}{_NO_BREAK}ms"
    return f"{value:.{0 if value >= 9.95 else 1 if value >= 0.995 else 2}f}{_NO_BREAK}s"


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.4g}{_NO_BREAK}%"


def share(part: float) -> str:
    """Return a share in percent to a hundredth, for columns of them."""
    return f"{100 * part:.2f}{_NO_BREAK}%"


def listed(words: list[str]) -> str:
    """Return words as in a sentence: ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def plural(number: int, noun: str) -> str:
    """Return ``1 record`` or ``2 records``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def moment(text: str) -> str:
    """Return a time as records have it, in words: ``2026-11-28 10:00 UTC``; another text stays as it is."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{time:%Y-%m-%d %H:%M}" + (" UTC" if time.utcoffset() == datetime.timedelta(0) else f" {time:%z}".rstrip())


def _power(found: re.Match[str]) -> str:
    sign = "-" if found[1] == "-" else ""
    return f"{sign}{found[2]}".translate(_SUPERSCRIPTS)
