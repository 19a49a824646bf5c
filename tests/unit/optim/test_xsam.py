"""XSAM's search and its arc."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessprobe.errors import NumericalWarning
from hessprobe.optim import XSAM
from hessprobe.optim.rules.xsam import _slerp

H = torch.diag(torch.tensor([5.0, 2.0, 1.0, 0.3], dtype=torch.float64))
START = (0.2, -0.4, 0.9, 1.5)


class Quadratic:
    """L(w) = w'Hw/2, counting its calls."""

    def __init__(self) -> None:
        self.w = nn.Parameter(torch.tensor(START, dtype=torch.float64))
        self.backwards, self.forwards = 0, 0

    def value(self, w: Tensor) -> Tensor:
        return w @ H @ w / 2

    def closure(self) -> Tensor:
        self.backwards += 1
        self.w.grad = None
        value = self.value(self.w)
        value.backward()
        return value

    def loss(self) -> Tensor:
        self.forwards += 1
        return self.value(self.w)

    def optimizer(self, lr: float = 0.0, rho: float = 0.15, **options: Any) -> XSAM:
        return XSAM(torch.optim.SGD([self.w], lr=lr), rho, **options)


def by_hand(rho: float, radius: float, steps: int, alpha_max: float) -> tuple[float, Tensor, Callable[[float], Tensor]]:
    """Return alpha*, the direction for the base and the arc, from the formula."""
    w = torch.tensor(START, dtype=torch.float64)
    e, g = torch.zeros_like(w), H @ w
    for _ in range(steps):
        e = e + rho / steps * g / g.norm()
        g = H @ (w + e)
    v0, v1 = e / e.norm(), g / g.norm()
    psi = torch.arccos(v0 @ v1)

    def arc(a: float) -> Tensor:
        return (torch.sin((1 - a) * psi) * v0 + torch.sin(a * psi) * v1) / torch.sin(psi)

    grid = [i / 10 for i in range(round(alpha_max * 10) + 1)]
    at = [(w + radius * arc(a)) @ H @ (w + radius * arc(a)) for a in grid]
    best = grid[int(torch.stack(at).argmax())]
    return best, g.norm() * arc(best), arc


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("given", [None, 0.2])
def test_takes_the_highest_loss_of_the_arc(steps: int, given: float | None):
    problem = Quadratic()
    optimizer = problem.optimizer(steps=steps, rho_max=given, alpha_max=10.0)
    optimizer.step(problem.closure, loss=problem.loss)
    alpha, direction, arc = by_hand(0.15, given or 0.3, steps, 10.0)
    assert 1 < alpha < 10
    assert optimizer.last.extra["alpha"] == pytest.approx(alpha)
    assert problem.w.grad is not None
    torch.testing.assert_close(problem.w.grad, direction, rtol=1e-12, atol=1e-13)
    for a in (0.0, 0.7, 1.9):
        assert float(arc(a).norm()) == pytest.approx(1, abs=1e-12)


def test_searches_once_an_epoch_by_forward_passes_alone():
    problem = Quadratic()
    optimizer = problem.optimizer(lr=0.01, steps_per_epoch=4, alpha_max=10.0)
    counts = []
    for _ in range(9):
        optimizer.step(problem.closure, loss=problem.loss)
        counts.append((optimizer.last.evaluations, optimizer.last.forwards))
    assert counts == [(2, 101), (2, 0), (2, 0), (2, 0)] * 2 + [(2, 101)]
    assert (problem.backwards, problem.forwards) == (18, 303)


def test_without_loss_the_search_uses_the_closure():
    problem = Quadratic()
    optimizer = problem.optimizer(alpha_max=10.0)
    optimizer.step(problem.closure)
    assert optimizer.last.evaluations == 103
    assert optimizer.last.extra["alpha"] == by_hand(0.15, 0.3, 1, 10.0)[0]


def test_alpha_is_in_the_checkpoint():
    problem = Quadratic()
    optimizer = problem.optimizer(alpha_max=10.0)
    optimizer.step(problem.closure, loss=problem.loss)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["sam_alpha"] == optimizer.last.extra["alpha"]
    other = Quadratic()
    resumed = other.optimizer(alpha_max=10.0)
    resumed.load_state_dict(saved)
    resumed.step(other.closure, loss=other.loss)
    assert resumed.last.forwards == 0
    assert resumed.last.extra["alpha"] == optimizer.last.extra["alpha"]


def test_says_once_that_the_best_alpha_is_the_largest_tried():
    problem = Quadratic()
    optimizer = problem.optimizer(steps_per_epoch=1)
    with pytest.warns(NumericalWarning, match=r"best alpha is the largest tried, 2\. Raise alpha_max"):
        optimizer.step(problem.closure, loss=problem.loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(problem.closure, loss=problem.loss)
    assert optimizer.last.extra["alpha"] == 2.0


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
class TestArc:
    def test_tends_to_a_straight_line_for_a_small_angle(self, alpha: float):
        for angle in (0.0, 1e-9, 1e-7):
            first, second = _slerp(torch.tensor(angle, dtype=torch.float64), alpha)
            assert float(first) == pytest.approx(1 - alpha, abs=1e-12)
            assert float(second) == pytest.approx(alpha, abs=1e-12)

    def test_is_the_gradient_where_the_directions_are_opposed(self, alpha: float):
        first, second = _slerp(torch.tensor(math.pi, dtype=torch.float64), alpha)
        assert (float(first), float(second)) == (0.0, 1.0)


def test_a_gradient_that_turns_round_keeps_its_length():
    # L = |w|: one step past 0 the gradient is opposed to the ascent.
    w = nn.Parameter(torch.tensor([-0.1], dtype=torch.float64))

    def closure() -> Tensor:
        w.grad = None
        value = -w.abs().sum()
        value.backward()
        return value

    XSAM(torch.optim.SGD([w], lr=0.0), 0.3, alpha=1.5).step(closure)
    assert w.grad is not None
    assert w.grad.tolist() == [-1.0]


def test_groups_that_are_not_perturbed_step_along_the_gradient():
    problem = Quadratic()
    still = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    groups = [{"params": [problem.w]}, {"params": [still], "perturb": False}]
    optimizer = XSAM(torch.optim.SGD(groups, lr=0.0), 0.15, alpha_max=10.0)

    def loss() -> Tensor:
        return problem.value(problem.w) + 40 * still.square().sum()

    def closure() -> Tensor:
        problem.w.grad = still.grad = None
        value = loss()
        value.backward()
        return value

    optimizer.step(closure, loss=loss)
    alpha, direction, _ = by_hand(0.15, 0.3, 1, 10.0)
    assert optimizer.last.extra["alpha"] == alpha
    assert problem.w.grad is not None
    assert still.grad is not None
    torch.testing.assert_close(problem.w.grad, direction, rtol=1e-12, atol=1e-13)
    assert still.grad.item() == pytest.approx(80 * 0.7)


def test_the_search_leaves_batch_statistics_as_one_pass_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    reference = nn.BatchNorm1d(4)
    with torch.no_grad():
        reference(model[0](x))
    optimizer = XSAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, model=model, alpha_max=40.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        optimizer.step(closure, loss=lambda: model(x).square().mean())
    assert optimizer.last.forwards == 401
    assert torch.equal(model[1].running_mean, reference.running_mean)
    assert torch.equal(model[1].num_batches_tracked, torch.tensor(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1; got 0"),
        ({"rho_max": 0.0}, "rho_max must be a finite number > 0; got 0"),
        ({"alpha": -0.1}, r"alpha must be a finite number >= 0; got -0\.1"),
        ({"alpha_max": float("nan")}, "alpha_max must be a finite number > 0; got nan"),
        ({"alpha_step": 3.0}, r"alpha_step must be a number in \(0, 2\]; got 3\.0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be an integer >= 1; got 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Quadratic().optimizer(**arguments)
