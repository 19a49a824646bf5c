"""When to measure during training: every so many steps, and never beyond a share of the training's time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hessprobe import checks


@dataclass
class Pace:
    """Decides at each step whether a measurement is due and within the budget.

    Time is split into training (all that passes outside ``spend``) and measuring. The first measurement due is always
    taken, since nobody knows yet what one costs; each later one only where

        spent + expected cost <= budget * training time,

    the expected cost being that of the last one, or 0 for the second: the first one also paid for what is imported and
    prepared once. The share is therefore kept at the end of all but the first two, and a run that ends before these are
    earned goes beyond it.

    Attributes:
        every: steps between two that are due, >= 1.
        budget: share b of the training time that measuring may take, 0 < b <= 1; None sets no bound.
        clock: seconds.
        spent: seconds spent on measuring.
        expected: cost of the next measurement; None before the first.
        skipped: due measurements that the budget forbade.
    """

    every: int = 1
    budget: float | None = None
    clock: Callable[[], float] = time.perf_counter
    spent: float = 0.0
    expected: float | None = None
    skipped: int = 0
    _began: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checks.positive_int("every", self.every)
        if self.budget is not None:
            hint = "0.05 lets measuring take 5 % of the training's time."
            checks.real("budget", self.budget, low=0, low_open=True, high=1, hint=hint)

    def begin(self) -> None:
        """Start the clock of the training, where it does not run yet."""
        if self._began is None:
            self._began = self.clock()

    def wants(self, step: int) -> bool:
        """Return whether to measure at ``step``; a due one that the budget forbids is counted in ``skipped``."""
        self.begin()
        if step % self.every:
            return False
        if self.budget is None or self.expected is None:
            return True
        trained = self.clock() - (self._began or 0.0) - self.spent
        if self.spent + self.expected <= self.budget * trained:
            return True
        self.skipped += 1
        return False

    def spend(self, seconds: float) -> None:
        """Book what a measurement has cost."""
        self.expected = 0.0 if self.expected is None else seconds
        self.spent += seconds
