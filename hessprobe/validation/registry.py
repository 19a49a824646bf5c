"""All claims by name."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib import import_module

from hessprobe.checks import nearest
from hessprobe.validation.claim import Claim

FAMILIES = (
    "estimators_mean",
    "estimators_variance",
    "estimators_exact",
    "estimators_coverage",
    "estimators_agreement",
    "universality",
    "universality_few",
    "radius",
    "radius_losses",
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
