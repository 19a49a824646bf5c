"""When to measure during training: every so many steps, within a budget of the training's time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hessprobe import checks

# The most expensive of so many measurements says what to expect: costs differ from point to point.
_RECENT = 3


@dataclass
class Pace:
    """Decides at each step whether a measurement is due and within the budget.

    Time is split into measuring (what ``spend`` records) and training (all else that passes, such as validation).
    With S the seconds spent on measuring, T those of the training and b the budget, a due measurement is taken

    - at once, where none has been finished yet and S <= b T: the cost of the first is not known in advance;
    - later only where S + expected <= b T, the expected cost being that of the most expensive of the last three, in
      measured seconds. The first counts in full in S, but in the expected cost of the second only, because it includes
      one-time imports and preparation. A measurement that does not fit is skipped, and the next due one is checked
      again; one that costs more than the whole budget so far waits until T has grown enough.

    Guaranteed: right after every measurement but the first, S <= b T, if it cost no more than expected; if it cost
    more, S exceeds b T by no more than the difference, and nothing is measured until S <= b T holds again. The share of
    the whole run is smaller: S / (S + T) <= b / (1 + b). A run with T < S / b after its first measurement ends above
    its budget.

    Attributes:
        every: steps between two that are due, >= 1.
        budget: share b of the training time that measuring may take, 0 < b <= 1; None sets no bound.
        clock: seconds.
        spent: S, of all measurements, also of those that failed or were asked for beside the pace.
        recent: cost in seconds of the last few that were finished.
        skipped: due measurements that the budget forbade.
    """

    every: int = 1
    budget: float | None = None
    clock: Callable[[], float] = time.perf_counter
    spent: float = 0.0
    recent: tuple[float, ...] = ()
    skipped: int = 0
    _finished: int = field(default=0, repr=False)
    _carried: float = field(default=0.0, repr=False)
    _began: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checks.positive_int("every", self.every)
        if self.budget is not None:
            hint = "0.05 lets measuring take 5 % of the training's time."
            checks.real("budget", self.budget, low=0, low_open=True, high=1, hint=hint)

    @property
    def expected(self) -> float | None:
        """Seconds that the next measurement is expected to cost; None before the first."""
        return max(self.recent) if self.recent else None

    @property
    def trained(self) -> float:
        """T: seconds of training since the clock was started, and before the run was last stopped."""
        if self._began is None:
            return self._carried
        return self._carried + self.clock() - self._began

    @property
    def share(self) -> float:
        """S / T so far; nan before any time has passed."""
        trained = self.trained
        return self.spent / trained if trained > 0 else math.nan

    def begin(self) -> None:
        """Start the clock of the training, where it does not run yet."""
        if self._began is None:
            self._began = self.clock()

    def wants(self, step: int) -> bool:
        """Return whether to measure at ``step``; a due one that the budget forbids is counted in ``skipped``."""
        self.begin()
        if step % self.every:
            return False
        if self.budget is None or self.spent + (self.expected or 0.0) <= self.budget * self.trained:
            return True
        self.skipped += 1
        return False

    def spend(self, seconds: float, *, finished: bool = True) -> None:
        """Record the cost of a measurement, and take it out of the time of the training.

        Args:
            seconds: of the measurement, right after it.
            finished: False for one that failed: its time counts, but says little about the cost of the next.
        """
        if self._began is not None:
            self._began += seconds
        self.spent += seconds
        if finished:
            # The first one's cost, of imports too, goes as soon as there is another.
            kept = () if self._finished == 1 else self.recent
            self.recent = (*kept, seconds)[-_RECENT:]
            self._finished += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the times so far as plain numbers."""
        numbers = {"trained": self.trained, "spent": self.spent, "skipped": self.skipped, "finished": self._finished}
        return {**numbers, "recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; the time between saving and loading does not count as training."""
        self._carried, self.spent = float(state["trained"]), float(state["spent"])
        self.skipped, self._finished = int(state["skipped"]), int(state["finished"])
        self.recent = tuple(map(float, state["recent"]))
        if self._began is not None:
            self._began = self.clock()
