"""Argument checks. Every range is written so that nan fails it, and every message names the value and the mend."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch

from hessprobe.errors import ArgumentMessage, about


def positive_int(name: str, value: Any, *, minimum: int = 1, hint: str = "") -> int:
    """Return ``value`` as an int.

    Raises:
        TypeError: ``value`` is not an integer (a bool is not one).
        ValueError: ``value < minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(_message(name, f"an integer >= {minimum}", value, hint))
    number = int(value)
    if not number >= minimum:
        raise ValueError(_message(name, f"an integer >= {minimum}", value, hint))
    return number


def positive_ints(name: str, value: Any, hint: str = "") -> list[int]:
    """Return one or several integers >= 1 as a list, each checked under ``name``.

    Args:
        name: of the argument.
        value: an integer, or a list or tuple of them.
        hint: how to mend it.

    Raises:
        TypeError, ValueError: see ``positive_int``.
    """
    return [positive_int(name, one, hint=hint) for one in (value if isinstance(value, list | tuple) else [value])]


def real(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    hint: str = "",
) -> float:
    """Return ``value`` as a finite float within ``[low, high]``; ``low_open``/``high_open`` exclude that end.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: ``value`` is nan, infinite or outside the range.
    """
    requirement = _range_words(low, high, low_open, high_open)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_message(name, requirement, value, hint))
    number = float(value)
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    if not (above and below and math.isfinite(number)):
        raise ValueError(_message(name, requirement, value, hint))
    return number


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ValueError: it is not; the message names the nearest choice.
    """
    known = list(choices)
    if value in known:
        return str(value)
    raise ValueError(about(name, f"must be one of {', '.join(known)}; got {value!r}.{nearest(str(value), known)}"))


def nearest(value: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or ``""`` when none is near."""
    close = difflib.get_close_matches(value, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def no_argument(owner: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence on an argument that ``owner`` does not have; it names the nearest one, and all."""
    names = list(known)
    return f"{owner} has no argument {name!r}.{nearest(name, names)} It takes {', '.join(names)}."


def resolve_seed(seed: int | torch.Generator) -> int:
    """Return a non-negative integer seed; a generator gives one by a draw, which advances that generator only.

    Raises:
        TypeError: ``seed`` is neither an integer nor a ``torch.Generator``.
        ValueError: a negative integer, or one of 2**63 or more.
    """
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**62, (1,), generator=seed, device=seed.device).item())
    checked = positive_int("seed", seed, minimum=0, hint="Pass a non-negative integer or a torch.Generator.")
    if checked >= 2**63:
        raise ValueError(_message("seed", "below 2**63", seed, "Pass a smaller integer."))
    return checked


def _range_words(low: float, high: float, low_open: bool, high_open: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "a finite number"
    if high == math.inf:
        return f"a finite number {'>' if low_open else '>='} {low:g}"
    if low == -math.inf:
        return f"a finite number {'<' if high_open else '<='} {high:g}"
    return f"a number in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"


def _message(name: str, requirement: str, value: Any, hint: str) -> ArgumentMessage:
    return about(name, f"must be {requirement}; got {value!r}." + (f" {hint}" if hint else ""))
