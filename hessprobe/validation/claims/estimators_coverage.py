"""Intervals hold what they promise: how often nominal 95 % intervals contain the truth, on four spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from hessprobe.estimate import Estimate
from hessprobe.estimators import frobenius_norm, logdet, trace
from hessprobe.validation.claim import Claim, Finding, Part, agrees, at_least, seen
from hessprobe.validation.matrices import SPECTRA, Hidden, eigenvalues, leading, rotated

_DIM = 100
# What the estimators promise of their nominal 95 % intervals: 92 to 98 % of them contain the truth.
_NOMINAL, _LEAST, _MISSED = 0.95, 0.92, 0.02
_FLAGGED = "heavy-tailed"

Question = tuple[str, float, Callable[[int], Estimate]]


def covered(label: str, truth: float, found: list[Estimate]) -> list[Part]:
    """Return whether the share of intervals with the truth in them lies in the promised band.

    Both ends with the binomial standard error that a share there has. Where most results say of themselves that their
    intervals cover less than they should, nothing is claimed.
    """
    hits = [low <= truth <= high for low, high in (estimate.interval(_NOMINAL) for estimate in found)]
    n, share = len(hits), sum(hits) / len(hits)
    if _flagged(found) > 0.5:
        return [seen(f"with the truth, {label}, flagged {_FLAGGED}", share, math.sqrt(share * (1 - share) / n))]
    return [
        at_least(f"with the truth, {label}", _LEAST, share, math.sqrt(_LEAST * (1 - _LEAST) / n)),
        at_least(f"without it, {label}", _MISSED, 1 - share, math.sqrt(_MISSED * (1 - _MISSED) / n)),
    ]


def calibrated(label: str, found: list[Estimate]) -> Part:
    """Return the mean reported variance over the variance of the values, with the error of that ratio."""
    values = np.array([estimate.value for estimate in found])
    reported = np.array([estimate.std_error**2 for estimate in found])
    real = float(values.var(ddof=1))
    n = len(values)
    squares = (values - values.mean()) ** 2
    error = math.hypot(
        float(reported.std(ddof=1)) / real, float(squares.std(ddof=1)) * float(reported.mean()) / real**2
    )
    return agrees(label, 1.0, float(reported.mean()) / real, error / math.sqrt(n))


def _flagged(found: list[Estimate]) -> float:
    return sum(_FLAGGED in estimate.flags for estimate in found) / len(found)


def _run(question: Question, seeds: int) -> list[Estimate]:
    return [question[2](seed) for seed in range(seeds)]


def _hidden(kind: str) -> Hidden:
    return Hidden(rotated(eigenvalues(kind, _DIM)))


def _trace_questions(kind: str, estimate: Callable[..., Estimate]) -> Iterator[Question]:
    A = _hidden(kind)
    truth = float(A.total.trace())
    rows = leading(A.total, 10, blur=0.1)
    ways: dict[str, dict[str, Any]] = {
        "Hutchinson, 20": {"method": "hutchinson", "n_probes": 20},
        "deflated, 20": {"method": "hutchinson", "n_probes": 20, "deflate": rows},
        "XTrace, 16": {"method": "xtrace", "n_probes": 16},
    }
    for label, how in ways.items():
        yield f"{label}, {kind}", truth, partial(_seeded, estimate, A, how)


def _seeded(estimate: Callable[..., Estimate], A: Hidden, how: dict[str, Any], seed: int) -> Estimate:
    return estimate(A, seed=seed, **how)


def trace_coverage(seeds: int, estimate: Callable[..., Estimate] = trace, kinds: tuple[str, ...] = SPECTRA) -> Finding:
    """Hutchinson with and without deflation, and XTrace."""
    parts: list[Part] = []
    for kind in kinds:
        for question in _trace_questions(kind, estimate):
            found = _run(question, seeds)
            parts += covered(question[0], question[1], found)
            if not question[0].startswith("XTrace"):
                parts.append(calibrated(f"reported over real variance, {question[0]}", found))
    return Finding(tuple(parts), None, "Where a few eigenvalues of one sign carry the trace the result is flagged.")


def frobenius_coverage(seeds: int, estimate: Callable[..., Estimate] = frobenius_norm) -> Finding:
    """The norm, deflated by inexact eigenvectors and not."""
    parts: list[Part] = []
    for kind in SPECTRA:
        A = _hidden(kind)
        norm = float(A.total.norm())
        for label, how in (
            ("40", {"n_probes": 40}),
            ("deflated, 20", {"n_probes": 20, "deflate": leading(A.total, 10, blur=0.1)}),
        ):
            found = _run((label, norm, partial(_seeded, estimate, A, how)), seeds)
            parts += covered(f"{label}, {kind}", norm, found)
    return Finding(tuple(parts))


def logdet_coverage(seeds: int, estimate: Callable[..., Estimate] = logdet) -> Finding:
    """The damped log-determinant of positive spectra, the smoothed one of indefinite ones."""
    parts: list[Part] = []
    for kind in SPECTRA:
        values, A = eigenvalues(kind, _DIM), _hidden(kind)
        if float(values[0]) > 0:
            truth, how = float(torch.log(values + 0.1).sum()), {"shift": 0.1, "lower": 0.0}
        else:
            truth, how = float(torch.log(values**2 + 1).sum() / 2), {"eps": 1.0}
        fixed = {**how, "n_probes": 16, "steps": 16, "method": "slq", "deflate": leading(A.total, 10)}
        found = _run((kind, truth, partial(_seeded, estimate, A, fixed)), seeds)
        parts += [
            *covered(kind, truth, found),
            seen(f"largest quadrature error, {kind}", max(e.errors.solver for e in found)),
        ]
    return Finding(tuple(parts))


CLAIMS = (
    Claim(
        "estimators/trace-coverage",
        "Nominal 95 % intervals of the trace contain it in 92 to 98 % of runs unless flagged as heavy-tailed, and the "
        "reported variance is the real one.",
        "derived here",
        partial(trace_coverage, 200),
        partial(trace_coverage, 600),
    ),
    Claim(
        "estimators/frobenius-coverage",
        "Nominal 95 % intervals of the Frobenius norm contain it in 92 to 98 % of runs unless flagged.",
        "derived here",
        partial(frobenius_coverage, 150),
        partial(frobenius_coverage, 400),
    ),
    Claim(
        "estimators/logdet-coverage",
        "Nominal 95 % intervals of the log-determinant contain it in 92 to 98 % of runs unless flagged.",
        "derived here",
        partial(logdet_coverage, 80),
        partial(logdet_coverage, 200),
    ),
)
