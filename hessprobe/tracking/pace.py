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

        spent + cost of the last one <= budget * training time,

    so that the share is kept again from the second on, and over the whole run.

    Attributes:
        every: steps between two that are due, >= 1.
        budget: share b of the training time that measuring may take, 0 < b <= 1; None sets no bound.
        clock: seconds.
    """

    every: int = 1
    budget: float | None = None
    clock: Callable[[], float] = time.perf_counter
    spent: float = 0.0
    last: float | None = None
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
        if self.budget is None or self.last is None:
            return True
        trained = self.clock() - (self._began or 0.0) - self.spent
        if self.spent + self.last <= self.budget * trained:
            return True
        self.skipped += 1
        return False

    def spend(self, seconds: float) -> None:
        """Book what a measurement has cost."""
        self.last = seconds
        self.spent += seconds
