"""All claims by name.

Checks claims, one after the other.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from typing import Any

import torch

from hessprobe.checks import nearest
from hessprobe.errors import NumericalWarning
from hessprobe.hvp import engines
from hessprobe.validation.claim import Claim, Finding, Outcome

FAMILIES = (
    "estimators_mean",
    "estimators_exact",
    "estimators_coverage",
    "estimators_agreement",
    "universality",
    "universality_few",
    "radius",
    "explicit_bias",
    "determinant",
    "invariance",
    "wen_ma_li",
    "unified_sam",
    "xsam",
    "functional_sam",
    "adasam",
    "sam_on",
    "overparameterization",
    "statistics",
)


def claims() -> tuple[Claim, ...]:
    """Return every claim, in the order of the table."""
    found: list[Claim] = []
    for family in FAMILIES:
        found += import_module(f"hessprobe.validation.claims.{family}").CLAIMS
    return tuple(found)


def select(pattern: str | None = None, *, full: bool = False) -> tuple[Claim, ...]:
    """Return the claims whose name matches.

    Args:
        pattern: with ``*``, ``?`` and ``[...]`` as in file names; a name, or a family, by itself also matches. None:
            all.
        full: also those that take minutes.

    Raises:
        ValueError: nothing matches; the message names the nearest.
    """
    known = claims()
    chosen = [one for one in known if pattern is None or _matches(one, pattern)]
    if not chosen:
        names = [one.name for one in known] + [one.family for one in known]
        raise ValueError(
            f"pattern must match a claim; got {pattern!r}.{nearest(str(pattern), names)} --list names them all."
        )
    quick = [one for one in chosen if full or not one.full]
    if not quick:
        raise ValueError(f"pattern must match a quick claim; got {pattern!r}, which takes minutes. Add --full.")
    return tuple(quick)


def _matches(claim: Claim, pattern: str) -> bool:
    return claim.family == pattern.rstrip("/") or fnmatchcase(claim.name, pattern)


def examine(claim: Claim, *, full: bool = False) -> Outcome:
    """Check one claim; a check that breaks is an outcome, not an exception."""
    check = claim.thorough if full and claim.thorough is not None else claim.check
    started = time.perf_counter()
    finding: Finding | None = None
    error = ""
    with warnings.catch_warnings():
        # Weak numbers are part of what is looked at here; the verdict deals with them.
        warnings.simplefilter("ignore", NumericalWarning)
        try:
            finding = check()
        except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as caught:
            last = traceback.extract_tb(caught.__traceback__)[-1]
            error = f"{type(caught).__name__}: {caught} ({last.name}, line {last.lineno})"
    return Outcome(claim, finding, time.perf_counter() - started, error)


def run(
    chosen: Iterable[Claim], *, full: bool = False, report: Callable[[str], None] | None = None
) -> Iterator[Outcome]:
    """Yield the outcome of each claim as it comes, or as it came in the run that is gone through again.

    Args:
        chosen: which, see ``select``.
        full: more runs and steps where a claim has that.
        report: told the name of the claim under way.
    """
    state = torch.get_rng_state()
    for claim in chosen:
        if report is not None:
            report(claim.name)
        with engines.part(claim.name):
            kept = engines.value("outcome", partial(_kept, claim, full))
        yield Outcome.again(claim, kept)
    torch.set_rng_state(state)


def _kept(claim: Claim, full: bool) -> dict[str, Any]:
    return examine(claim, full=full).kept()
