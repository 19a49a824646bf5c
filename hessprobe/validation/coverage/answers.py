"""What one run of an estimator says about one question, and what it should have said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.validation.coverage.problem import Problem
from hessprobe.validation.spectra import FAMILIES, Array

# What these say is not that the interval may miss: the data error is another number, a tolerance another promise.
NEUTRAL = frozenset(
    {
        "budget-exhausted",
        "data-error-noisy",
        "data-error-unresolved",
        "multiplicity-unverified",
        "rounding-limited",
        "tolerance-missed",
        "warm-start",
        "wide-bracket",
    }
)
# Intervals without width are those of exact answers, whose last digits are rounding.
_ROUNDING = 1e-11


@dataclass(frozen=True)
class Answer:
    """Intervals of one run; several where the question has several parts (layers, entries of a diagonal).

    Attributes:
        value, low, high, truth: (K,) each.
        flagged: the result says of itself that it may not hold.
    """

    value: Array
    low: Array
    high: Array
    truth: Array
    flagged: bool

    def covered(self, scale: float) -> Array:
        """Return which intervals hold the truth, (K,) bool, up to rounding on the scale of the matrix."""
        slack = _ROUNDING * scale
        held: Array = (self.low - slack <= self.truth) & (self.truth <= self.high + slack)
        return held


Answers = Iterator[tuple[str, Answer]]
Run = Callable[[Problem, int, int], Answers]


@dataclass(frozen=True)
class Trial:
    """One estimator, run once a seed.

    Attributes:
        name: of the trial.
        questions: what a run answers, by name.
        run: (problem, size, seed) -> the answers.
        sizes: probes, or what the size of the sample is here.
        size: what the sizes count, in a word or two.
        families: of the matrices.
        make: (family, seed) -> the problem.
        nominal: level of the intervals.
        floor: the least coverage of a cell without a flag.
    """

    name: str
    questions: tuple[str, ...]
    run: Run
    sizes: tuple[int, ...] = (8, 16, 64)
    size: str = "probes"
    families: tuple[str, ...] = tuple(FAMILIES)
    make: Callable[[str, int], Problem] = Problem.drawn_for
    nominal: float = 0.95
    floor: float = 0.92


def one(estimate: Estimate, truth: float, *, confidence: float = 0.95, include_data: bool = False) -> Answer:
    """Return the answer of one estimate."""
    if include_data and estimate.errors.data is None:
        # It refuses to say: an interval that holds nothing, and says so.
        nothing = np.array([np.nan])
        return Answer(np.array([estimate.value]), nothing, nothing, np.array([truth]), True)
    low, high = estimate.interval(confidence, include_data=include_data)
    flags = set(estimate.flags) - (NEUTRAL if not include_data else NEUTRAL - {"data-error-noisy"})
    return Answer(np.array([estimate.value]), np.array([low]), np.array([high]), np.array([truth]), bool(flags))


def several(estimates: list[Estimate], truths: list[float] | Array, *, confidence: float = 0.95) -> Answer:
    """Return the answer of several estimates, flagged where one of them is."""
    ends = np.array([estimate.interval(confidence) for estimate in estimates]).reshape(-1, 2)
    values = np.array([estimate.value for estimate in estimates])
    flagged = any(set(estimate.flags) - NEUTRAL for estimate in estimates)
    return Answer(values, ends[:, 0], ends[:, 1], np.asarray(truths, dtype=float), flagged)


def layer_estimates(estimate: Estimate, names: list[str]) -> list[Estimate]:
    """Return the layers of an estimate as a measure reports them."""
    found: Mapping[str, Mapping[str, Any]] = estimate.details["blocks"]
    return [
        Estimate(
            found[name]["value"],
            ErrorParts(probe=found[name]["std_error"]),
            df=found[name].get("df", estimate.df),
            flags=tuple(found[name].get("flags", ())),
        )
        for name in names
    ]
