"""The budget, with a clock that the test moves: what is promised right after every measurement, whatever one costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hessprobe.report.track import track_record
from hessprobe.tracking import SharpnessTracker
from hessprobe.tracking.pace import Pace


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(pace, cost, steps, start=0, second=1.0):
    """Train for ``steps`` of a second; return the steps measured and S - b T right after each."""
    clock, measured, excess = pace.clock, [], []
    pace.begin()
    for step in range(start + 1, start + steps + 1):
        clock.now += second
        if pace.wants(step):
            seconds = cost(step)
            clock.now += seconds
            pace.spend(seconds)
            measured.append(step)
            excess.append(pace.spent - pace.budget * pace.trained)
    return measured, excess


def test_the_budget_is_a_share_of_the_training_time():
    pace = Pace(every=2, budget=0.1, clock=Clock())
    measured, excess = run(pace, lambda step: 2.0, 100)
    # 2 s each within 0.1 s a step: the first at once, each later one when it and all before it are earned.
    assert measured == [2, 40, 60, 80, 100]
    assert pace.skipped == 45
    assert (pace.spent, pace.trained) == (10.0, 100.0)
    assert pace.share == 0.1
    assert max(excess[1:]) <= 1e-12


def test_a_cost_that_triples_exceeds_once_by_the_difference_and_is_earned_back():
    pace = Pace(budget=0.1, clock=Clock())
    measured, excess = run(pace, lambda step: 3.0 if step >= 60 else 1.0, 300)
    dearer = measured.index(next(step for step in measured if step >= 60))
    assert measured[:2] == [1, 20]
    assert measured[dearer] == 60
    assert excess[dearer] == pytest.approx(3.0 - 1.0)
    assert max(excess[1:dearer] + excess[dearer + 1 :]) <= 1e-9
    # 8 s spent at step 60, and 3 s more to come.
    assert measured[dearer + 1] == 110
    assert pace.share <= 0.1


def test_the_most_expensive_of_the_last_three_says_what_to_expect():
    pace = Pace(budget=0.5, clock=Clock())
    pace.begin()
    expected = []
    for seconds in (9.0, 1.0, 4.0, 2.0, 2.0, 1.0):
        pace.spend(seconds)
        expected.append(pace.expected)
    # The first pays for imports too, and is forgotten when there is a second.
    assert expected == [9.0, 1.0, 4.0, 4.0, 4.0, 2.0]


def test_a_first_measurement_dearer_than_the_budget_is_the_only_one():
    pace = Pace(budget=0.2, clock=Clock())
    assert run(pace, lambda step: 6.4, 20)[0] == [1]
    assert pace.share == pytest.approx(6.4 / 20)
    assert pace.skipped == 19


def test_time_of_failed_measurements_counts():
    pace = Pace(budget=0.1, clock=Clock())
    pace.begin()
    assert pace.wants(1)
    pace.clock.now += 1.0
    pace.spend(1.0, finished=False)
    assert pace.expected is None
    pace.clock.now += 9.0
    assert not pace.wants(2)
    pace.clock.now += 1.0
    assert pace.wants(3)


def test_without_a_budget_every_due_step_is_measured():
    pace = Pace(every=3, clock=Clock())
    assert math.isnan(pace.share)
    assert [step for step in range(10) if pace.wants(step)] == [0, 3, 6, 9]
    assert pace.skipped == 0


def test_a_pace_goes_on_from_its_state():
    whole = Pace(budget=0.1, clock=Clock())
    steps, _ = run(whole, lambda step: 1.5, 80)
    first, second = Pace(budget=0.1, clock=Clock()), Pace(budget=0.1, clock=Clock())
    before, _ = run(first, lambda step: 1.5, 37)
    # Another process, another clock; what passes until the training begins is no training.
    second.clock.now = 1e6
    second.begin()
    second.clock.now += 50.0
    second.load_state_dict(first.state_dict())
    after, _ = run(second, lambda step: 1.5, 43, start=37)
    assert before + after == steps
    assert second.state_dict() == whole.state_dict()


class Loss(nn.Module):
    """Takes a quarter of a second of the clock a call while the model is measured, and fails when told to."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.price, self.broken = clock, 0.25, False

    def forward(self, outputs, targets):
        self.clock.now += self.price
        if self.broken:
            raise ZeroDivisionError("broken")
        return nn.functional.mse_loss(outputs, targets)


def tracked(clock, budget):
    torch.manual_seed(0)
    loss = Loss(clock)
    tracker = SharpnessTracker(nn.Linear(3, 2), loss, [(torch.ones(4, 3), torch.zeros(4, 2))], budget=budget,
                               measures=("trace",))  # fmt: skip
    tracker.pace = Pace(budget=budget, clock=clock)
    return tracker, loss


def test_a_tracker_plans_from_the_seconds_of_its_measurements():
    clock = Clock()
    tracker, loss = tracked(clock, 0.25)
    costs, prices = [], iter([1.0, 0.25, 0.25, 0.25, 0.75, 0.75, 0.25])
    loss.price = next(prices)
    tracker.pace.begin()
    for step in range(1, 1500):
        clock.now += 1.0
        before, began = tracker.pace.spent, clock.now
        earned = tracker.pace.budget * tracker.pace.trained
        expected = tracker.pace.expected
        if tracker.step(step) is None:
            assert clock.now == began
            continue
        costs.append(tracker.pace.spent - before)
        assert costs[-1] == clock.now - began > 0
        assert expected is None or before + expected <= earned
        assert tracker.pace.spent <= earned + (costs[0] if expected is None else max(costs[-1] - expected, 0.0))
        loss.price = next(prices, None)
        if loss.price is None:
            break
    assert len(costs) == 7
    assert costs[4] == pytest.approx(3 * costs[3])
    assert clock.now == pytest.approx(tracker.pace.trained + tracker.pace.spent)


def test_a_tracker_books_the_time_of_a_failure_and_says_what_is_not_earned():
    clock = Clock()
    tracker, loss = tracked(clock, 0.5)
    tracker.pace.begin()
    clock.now += 1.0
    loss.broken = True
    with pytest.raises(ZeroDivisionError, match="broken"):
        tracker.step(1)
    assert tracker.pace.spent > 0
    assert tracker.pace.expected is None
    loss.broken = False
    tracker.measure(2)
    (note,) = track_record(tracker)["notes"]
    assert note.startswith(f"measuring took {tracker.pace.spent:.3g} s, {100 * tracker.pace.share:.3g} % of the ")
    assert "50 % was asked for: the training has been too short to pay for its last point" in note
