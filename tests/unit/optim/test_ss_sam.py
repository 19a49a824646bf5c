"""SS-SAM: how often it perturbs, and the probabilities over a run."""

from __future__ import annotations

import re

import pytest
import torch

from hessprobe.optim import SSSAM
from hessprobe.optim.schedules import LinearProbability, PiecewiseProbability, TrigonometricProbability


def gradients(optimizer: SSSAM, w: torch.nn.Parameter, steps: int) -> list[int]:
    def closure() -> torch.Tensor:
        w.grad = None
        loss = (w * w).sum()
        loss.backward()
        return loss

    taken = []
    for _ in range(steps):
        optimizer.step(closure)
        taken.append(optimizer.last.evaluations)
    return taken


def make(seed: int = 0, **arguments) -> tuple[SSSAM, torch.nn.Parameter]:
    w = torch.nn.Parameter(torch.ones(2))
    return SSSAM(torch.optim.SGD([w], lr=0.0), seed=seed, **arguments), w


def test_a_share_p_of_the_steps_takes_two_gradients():
    taken = gradients(*make(probability=0.3), steps=1000)
    # 300 expected, standard deviation 14.5.
    assert abs(sum(taken) - 1000 - 300) < 4 * 14.5
    assert set(taken) == {1, 2}


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = gradients(*make(seed=5), steps=40)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert gradients(*make(seed=5), steps=40) == first
    assert gradients(*make(seed=6), steps=40) != first


def test_the_probability_follows_the_step():
    taken = gradients(*make(probability=PiecewiseProbability(0.0, 1.0, switch=4)), steps=8)
    assert taken == [1] * 4 + [2] * 4


def test_the_shapes_of_p():
    linear, wave = LinearProbability(0.0, 1.0, 5), TrigonometricProbability(1.0, 0.0, 5)
    assert [linear(t) for t in range(1, 7)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    expected = [1.0, 0.5 + 0.5 * 0.5**0.5, 0.5, 0.5 - 0.5 * 0.5**0.5, 0.0, 0.0]
    assert [wave(t) for t in range(1, 7)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, "probability must be a number in [0, 1]; got 1.5"),
        ({"gamma": -1.0}, "gamma must be a finite number >= 0; got -1.0"),
    ],
)
def test_ss_sam_refuses(arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**arguments)


def test_a_function_that_leaves_the_unit_interval_is_refused_before_anything_moves():
    optimizer, w = make(probability=lambda t: 0.4 * t)
    with pytest.raises(ValueError, match=re.escape("probability must be a number in [0, 1]; got 1.2")):
        gradients(optimizer, w, 3)
    assert torch.equal(w.detach(), torch.ones(2))


@pytest.mark.parametrize("build", [PiecewiseProbability, LinearProbability, TrigonometricProbability])
def test_schedules_refuse_what_is_no_probability(build: type):
    with pytest.raises(ValueError, match=re.escape("probability must be a number in [0, 1]; got -0.1")):
        build(-0.1, 0.5, 3)
