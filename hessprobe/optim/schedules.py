"""The radius rho over the steps of a run; its position is the step counter, which every checkpoint holds.

The probability of a SAM step over the steps of a run (SS-SAM).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from hessprobe import checks


@dataclass(frozen=True)
class Linear:
    """rho_t = start + (end - start) (t - 1)/(steps - 1) for t = 1, ..., steps.

    Attributes:
        start, end: radii >= 0.
        steps: length of the run, >= 1; a longer run is refused.

    Examples:
        >>> from hessprobe.optim import Linear
        >>> rho = Linear(0.1, 0.0, steps=5)
        >>> [round(rho(t, lr=0.1), 3) for t in range(1, 6)]
        [0.1, 0.075, 0.05, 0.025, 0.0]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.steps)

    def __call__(self, t: int, lr: float) -> float:
        """Return rho of step ``t`` >= 1."""
        _require_within(t, self.steps)
        return self.start + (self.end - self.start) * _progress(t, self.steps)


@dataclass(frozen=True)
class Cosine:
    """rho_t = end + (start - end)(1 + cos(pi (t - 1)/(steps - 1)))/2 for t = 1, ..., steps.

    Attributes:
        start, end: radii >= 0.
        steps: length of the run, >= 1; a longer run is refused.

    Examples:
        >>> from hessprobe.optim import Cosine
        >>> rho = Cosine(0.1, 0.0, steps=5)
        >>> [round(rho(t, lr=0.1), 3) for t in range(1, 6)]
        [0.1, 0.085, 0.05, 0.015, 0.0]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.steps)

    def __call__(self, t: int, lr: float) -> float:
        """Return rho of step ``t`` >= 1."""
        _require_within(t, self.steps)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * _progress(t, self.steps)))


@dataclass(frozen=True)
class LikeLr:
    """rho_t = rho_min + (rho_max - rho_min)(lr_t - lr_min)/(lr_max - lr_min): the radius follows the learning rate.

    Attributes:
        rho_max, rho_min: radii >= 0 at the highest and lowest learning rate.
        lr_max, lr_min: learning rates, lr_max > lr_min >= 0.

    References:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training (GSAM), ICLR 2022.

    Examples:
        >>> from hessprobe.optim import LikeLr
        >>> rho = LikeLr(rho_max=0.2, rho_min=0.1, lr_max=1.0)
        >>> [round(rho(t, lr), 3) for t, lr in enumerate((1.0, 0.5, 0.0), 1)]
        [0.2, 0.15, 0.1]
    """

    rho_max: float
    rho_min: float
    lr_max: float
    lr_min: float = 0.0

    def __post_init__(self) -> None:
        _check_ends(self.rho_max, self.rho_min, 1)
        checks.real("lr_min", self.lr_min, low=0)
        checks.real("lr_max", self.lr_max, low=self.lr_min, low_open=True)

    def __call__(self, t: int, lr: float) -> float:
        """Return rho at learning rate ``lr``."""
        return self.rho_min + (self.rho_max - self.rho_min) * (lr - self.lr_min) / (self.lr_max - self.lr_min)


Schedule: TypeAlias = Callable[[int, float], float]


def _check_ends(start: float, end: float, steps: int) -> None:
    for radius in (start, end):
        checks.real("rho", radius, low=0)
    checks.positive_int("steps", steps)


def _progress(t: int, steps: int) -> float:
    return (t - 1) / (steps - 1) if steps > 1 else 0.0


def _require_within(t: int, steps: int) -> None:
    if t > steps:
        raise ValueError(
            f"The rho schedule must cover the run; got steps={steps} and this is step {t}. "
            "Give the schedule the number of steps of the whole run."
        )


Probability: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class PiecewiseProbability:
    """p(t) = before for t <= switch, after from then on.

    Attributes:
        before, after: probabilities.
        switch: last step of the first piece, >= 0.
    """

    before: float
    after: float
    switch: int

    def __post_init__(self) -> None:
        _check(self.before, self.after)
        checks.positive_int("switch", self.switch, minimum=0)

    def __call__(self, t: int) -> float:
        """Return p of step ``t`` >= 1."""
        return self.before if t <= self.switch else self.after


@dataclass(frozen=True)
class LinearProbability:
    """p(t) = start + (end - start)(t - 1)/(steps - 1), and ``end`` after the last step.

    Attributes:
        start, end: probabilities.
        steps: length of the run, >= 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check(self.start, self.end)
        checks.positive_int("steps", self.steps)

    def __call__(self, t: int) -> float:
        """Return p of step ``t`` >= 1."""
        return self.start + (self.end - self.start) * _share_done(t, self.steps)


@dataclass(frozen=True)
class TrigonometricProbability:
    """p(t) = end + (start - end)(1 + cos(pi (t - 1)/(steps - 1)))/2, and ``end`` after the last step.

    Attributes:
        start, end: probabilities.
        steps: length of the run, >= 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check(self.start, self.end)
        checks.positive_int("steps", self.steps)

    def __call__(self, t: int) -> float:
        """Return p of step ``t`` >= 1."""
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * _share_done(t, self.steps)))


def _check(*probabilities: float) -> None:
    for value in probabilities:
        checks.real("probability", value, low=0, high=1)


def _share_done(t: int, steps: int) -> float:
    return min(1.0, (t - 1) / (steps - 1)) if steps > 1 else 1.0
