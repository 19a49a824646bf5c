"""The comparisons of optimizers: like work for everybody, honest tables."""

from __future__ import annotations

import pytest
import torch

from hessprobe.benchmarks import family, optimizers, ratios
from hessprobe.optim import SAM


def test_the_plain_way_takes_the_same_step():
    weights = []
    for make in (optimizers._plain_sam, lambda p: SAM(optimizers._sgd(p), rho=0.05).step):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(3)]
        step = make(parameters)

        def closure(parameters=parameters):
            for parameter in parameters:
                parameter.grad = None
            loss = sum(p.square().sum() + p.sin().sum() for p in parameters)
            loss.backward()
            return loss

        for _ in range(3):
            step(closure)
        weights.append(torch.cat([p.detach().flatten() for p in parameters]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-6)


def test_shapes_are_timed_against_the_fastest_peer():
    rows = optimizers.time_shapes("12 x (1024, 1024)", rounds=2)
    by_name = {row.contestant: row for row in rows}
    assert {"SGD", "hessprobe", "davda54 style"} <= by_name.keys()
    if "pytorch_optimizer" not in by_name:
        assert by_name["davda54 style"].ratio == 1.0


def test_steps_are_timed_relative_to_sgd():
    times = family.time_optimizers(["sam"], rounds=3)
    assert times["sgd"] == (1.0, 1.0, 1.0)
    assert times["sam"][1] <= times["sam"][0] <= times["sam"][2]


def test_one_run_is_trained_and_measured():
    run = family.train_and_measure("sam", seed=0, epochs=1)
    assert run.failure == ""
    assert run.test_accuracy > 0.5
    value, error = run.measures["trace"]
    assert 0 < error < 0.02 * value


def test_a_run_that_diverges_is_said_to(monkeypatch):
    monkeypatch.setattr(family, "Recipe", lambda **fields: _RECIPE(**{**fields, "lr": 1e12}))
    run = family.train_and_measure("sgd", seed=0, epochs=1)
    assert "The training loss became nan" in run.failure
    table = family.family_table([run], {"sgd": (1.0, 1.0, 1.0)})
    assert "| sgd | diverged (1 of 1) | | | | 1.00 |" in table


_RECIPE = family.Recipe


def test_means_carry_the_larger_of_the_two_errors():
    assert family._mean([1.0, 2.0, 3.0]) == "2.00 ± 0.58"
    assert family._mean([10.0, 10.0], [3.0, 4.0]) == "10.0 ± 2.5"


def test_an_error_that_is_not_known_is_not_zero():
    assert family._mean([92.857142]) == "92.86 ± n/a"
    # The error of one measured value says nothing of other seeds.
    assert family._mean([10.0], [0.3]) == "10 ± n/a"
    assert family._mean([96.978, 96.978, 96.978]) == "96.98 (all 3 equal)"
    assert ratios.quartiles([1.5]) == (None, None)
    assert ratios.quartiles([1.0, 1.5, 2.0]) == (1.0, 2.0)


@pytest.mark.parametrize("name", ["sgd", "adamw", "sam", "frob-sam"])
def test_everyone_is_in_the_list(name):
    assert name in family.optimizer_names()
