"""A matrix with everything that the trials ask of it; made once for some twenty seeds.

What one run of an estimator says about one question, and what it should have said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.validation.drawn import FAMILIES, Array, Drawn, Source, draw, log_uniform, rotated
from hessprobe.validation.matrices import Hidden, leading

# Large enough for XTrace with 64 probes to sample, small enough for thousands of runs a minute.
_DIMS = (130, 180)
_SMALL_DIMS = (30, 60)


@dataclass(frozen=True, eq=False)
class Problem:
    """A drawn matrix A, its relatives, and numbers drawn with it.

    Attributes:
        drawn: A.
        seed: of what is drawn besides.
    """

    drawn: Drawn
    seed: int

    @classmethod
    def drawn_for(cls, family: str, seed: int) -> Problem:
        """Return the problem of a family and a seed."""
        return cls(draw(seed, family, dims=_DIMS), seed)

    @classmethod
    def small(cls, family: str, seed: int) -> Problem:
        """Return one of 30 to 60 dimensions, for many batches."""
        return cls(draw(seed, family, dims=_SMALL_DIMS), seed)

    def source(self, *parts: int) -> Source:
        """Return a random source of the problem, one for each tuple of integers >= 0."""
        return np.random.default_rng([self.seed, 1 + len(parts), *parts, *self.drawn.family.encode()])

    @property
    def size(self) -> float:
        """sum_i |lambda_i|."""
        return self.drawn.size

    @cached_property
    def plain(self) -> Hidden:
        """A as an operator of one term."""
        return self.drawn.operator()

    @cached_property
    def terms(self) -> Hidden:
        """A as a sum over batches."""
        return self.drawn.in_terms()

    @cached_property
    def with_surrogate(self) -> Hidden:
        """A as a sum over batches with a surrogate that knows its diagonal."""
        return self.drawn.in_terms(surrogate=True)

    @cached_property
    def neighbour(self) -> Drawn:
        """A + E."""
        return self.drawn.neighbour()

    @cached_property
    def neighbour_operator(self) -> Hidden:
        """A + E as an operator."""
        return self.neighbour.operator()

    @cached_property
    def absolute(self) -> Drawn:
        """|A|."""
        return self.drawn.absolute()

    @cached_property
    def absolute_operator(self) -> Hidden:
        """|A| as an operator that is known to be positive semidefinite."""
        return self.absolute.operator(psd=True)

    @cached_property
    def directions(self) -> Tensor:
        """Five leading eigenvectors of A, blurred: what a search that stopped early would have found."""
        return leading(self.plain.total, 5, blur=0.1)

    @cached_property
    def shift(self) -> float:
        """A damping for log-determinants: 0.1 % to 30 % of the largest |eigenvalue|, drawn."""
        return log_uniform(self.source(0), 1e-3, 0.3) * float(np.abs(self.drawn.values).max())

    @cached_property
    def steps(self) -> int:
        """Lanczos steps, 6 to 24, drawn."""
        return int(self.source(1).integers(6, 25))

    @cached_property
    def points(self) -> Array:
        """Three points between distinct eigenvalues of A, ascending, or as many as there are."""
        values = self.drawn.values
        reach = float(values[-1] - values[0])
        apart = np.flatnonzero(np.diff(values) > 1e-6 * reach)
        chosen = np.sort(self.source(2).permutation(apart)[:3])
        inner = (values[chosen] + values[chosen + 1]) / 2
        outer = [values[0] - 0.1 * reach, values[-1] + 0.1 * reach]
        return inner if len(inner) >= 2 else np.sort(np.concatenate([inner, outer]))

    @cached_property
    def _data_directions(self) -> Array:
        """Three symmetric matrices along which batches differ, of 3 % to 30 % of the norm of A each."""
        source = self.source(3)
        made = []
        for _ in range(3):
            basis = rotated(source, self.drawn.dim)[:, :3]
            change = (basis * source.standard_normal(3)) @ basis.T
            made.append(change * (log_uniform(source, 0.03, 0.3) * self.drawn.norm / np.linalg.norm(change)))
        return np.stack(made)

    def batches(self, count: int, run: int) -> Hidden:
        """Return the mean of ``count`` batches A + sum_j x_bj U_j with normal x: a sample of data with mean A."""
        draws = self.source(4, count, run).standard_normal((count, 3))
        changes = np.einsum("bj,jkl->bkl", draws, self._data_directions)
        return Hidden(torch.from_numpy(self.drawn.matrix + changes), blocks=self.drawn.blocks)


def gapped(gap: float, seed: int, *, bottom: bool = False) -> Problem:
    """Return a diagonal matrix whose first eigenvalue has a given relative gap to the next, one to three equal ones.

    A Lanczos run from a normal vector knows nothing of the eigenvectors, so that a diagonal matrix is any matrix.

    Args:
        gap: (lambda_1 - lambda_2) / lambda_1.
        seed: of size, bulk and scale.
        bottom: turn it round: the gap is at the smallest eigenvalue.
    """
    source = np.random.default_rng([seed, math.floor(1e9 * gap), int(bottom)])
    dim, next_ones = int(source.integers(100, 301)), int(source.integers(1, 4))
    bulk = np.linspace(source.uniform(-0.5, 0.0), source.uniform(0.3, 0.9), dim - 1 - next_ones)
    values = np.concatenate([[1.0], np.full(next_ones, 1 - gap), bulk]) * log_uniform(source, 1e-3, 1e3)
    return Problem(Drawn(f"gap {gap:g}", "axes", seed, np.diag(-values if bottom else values), {}), seed)


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
