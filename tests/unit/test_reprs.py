"""What is shown of risks, operators and trackers: one line of what matters, without computing anything."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hessprobe as hp
from hessprobe.hvp import FunctionalPart
from hessprobe.objective import Quadratic
from hessprobe.operators.algebra import Shifted

DATA = [(torch.ones(5, 3), torch.zeros(5, dtype=torch.long)), (torch.ones(3, 3), torch.zeros(3, dtype=torch.long))]
RISK = "EmpiricalRisk(Sequential, loss=CrossEntropyLoss, dim=8, examples=8, batches=2, dtype=torch.float32, device=cpu)"


class Counting(nn.Linear):
    calls = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        Counting.calls += 1
        return super().forward(input)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Counting(3, 2))


def risk() -> hp.EmpiricalRisk:
    return hp.EmpiricalRisk(model(), nn.CrossEntropyLoss(), DATA)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda one: one, RISK),
        (hp.Hessian, f"Hessian(dim=8, engine='auto', risk={RISK})"),
        (
            lambda one: hp.Hessian(one, engine="double_backward"),
            f"Hessian(dim=8, engine='double_backward', risk={RISK})",
        ),
        (hp.GaussNewton, f"GaussNewton(dim=8, engine='auto', risk={RISK})"),
        (hp.Fisher, f"Fisher(dim=8, engine='auto', risk={RISK})"),
        (
            lambda one: FunctionalPart(one, engine="double_backward"),
            f"FunctionalPart(dim=8, engine='double_backward', risk={RISK})",
        ),
        (lambda one: Shifted(hp.Hessian(one), 0.1), "Shifted(dim=8, dtype=torch.float32, device=cpu)"),
        (
            lambda one: hp.EmpiricalRisk(model(), None, DATA, forward=lambda m, b: (m(b[0]).sum(), len(b[0]))),
            RISK.replace("CrossEntropyLoss", "forward"),
        ),
    ],
)
def test_risks_and_operators_are_shown_in_a_line(make, shown: str) -> None:
    made = make(risk())
    before = Counting.calls
    assert repr(made) == shown
    assert Counting.calls == before


def test_an_engine_that_was_chosen_is_shown() -> None:
    matrix = hp.Hessian(risk(), engine="auto")
    matrix.matvecs(torch.ones(1, 8))
    assert matrix.engine.name != "auto"
    assert repr(matrix).startswith(f"Hessian(dim=8, engine={matrix.engine.name!r}, risk=")


def test_other_objectives_and_trackers() -> None:
    quadratic = Quadratic(torch.eye(2, dtype=torch.float64))
    assert repr(quadratic) == "Quadratic(dim=2, batches=1, dtype=torch.float64, device=cpu)"
    tracker = hp.SharpnessTracker(model(), nn.CrossEntropyLoss(), DATA, every=5, measures=["trace"])
    shown = "SharpnessTracker(Sequential, measures=('trace',), every=5, budget=None, points="
    assert repr(tracker) == f"{shown}0)"
    tracker.step(5)
    assert repr(tracker) == f"{shown}1, last at step 5)"
