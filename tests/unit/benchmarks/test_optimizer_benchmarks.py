"""The comparisons of optimizers: like work for everybody, honest tables."""

from __future__ import annotations

import pytest
import torch

from hessprobe.benchmarks import family, optimizers, ranking, ratios
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
    table = ranking.family_table([run], {"sgd": (1.0, 1.0, 1.0)})
    assert "| sgd | diverged (1 of 1) | | | | 1.00 |" in table


_RECIPE = family.Recipe


def test_means_carry_the_larger_of_the_two_errors():
    assert ranking._mean([1.0, 2.0, 3.0]) == "2.00 ± 0.58"
    assert ranking._mean([10.0, 10.0], [3.0, 4.0]) == "10.0 ± 2.5"


def test_an_error_that_is_not_known_is_not_zero():
    assert ranking._mean([92.857142]) == "92.86 ± n/a"
    # The error of one measured value says nothing of other seeds.
    assert ranking._mean([10.0], [0.3]) == "10 ± n/a"
    assert ranking._mean([96.978, 96.978, 96.978]) == "96.98 (all 3 equal)"
    assert ratios.quartiles([1.5]) == (None, None)
    assert ratios.quartiles([1.0, 1.5, 2.0]) == (1.0, 2.0)


@pytest.mark.parametrize("name", ["sgd", "adamw", "sam", "frob-sam"])
def test_everyone_is_in_the_list(name):
    assert name in family.optimizer_names()


def drawn(name, accuracy, frob, *, spread=0.002, worse_in=None, own=None, failure=""):
    """Return three runs of one optimizer in two settings, accuracies apart by ``spread``."""
    other = list(family.SETTINGS)[1]
    runs = []
    for seed, shift in enumerate((-spread, 0.0, spread)):
        measures = {"lambda-max": (1.0, 0.0), "trace": (10.0, 0.0), "frob": (frob * (1 + shift), 0.0), **(own or {})}
        there = {"test_accuracy": (worse_in or accuracy) + shift, "train_accuracy": 1.0, "measures": measures}
        run = family.TrainedOptimizer(name, seed, accuracy + shift, 1.0, measures, failure, {other: there})
        runs.append(run)
    return runs


def test_the_three_to_try_first_follow_from_accuracy_cost_and_flatness():
    runs = [
        *drawn("sgd", 0.90, 9.0),
        *drawn("adamw", 0.99, 1.0),  # no rule
        *drawn("xsam", 0.950, 3.0),
        *drawn("looksam", 0.930, 5.0),
        *drawn("sam-interval", 0.940, 4.0),
        *drawn("friendly-sam", 0.949, 2.0),
        *drawn("gsam", 0.9495, 2.5),
        *drawn("asam", 0.920, 0.5),  # flattest, and not as accurate
        *drawn("esam", 0.980, 1.0, worse_in=0.80),  # below SGD in one setting
        *drawn("sam", 0.9005, 1.0, spread=0.02),  # not above SGD by more than its noise
    ]
    times = dict.fromkeys({run.optimizer for run in runs}, (2.5, 2.4, 2.6))
    times |= {"looksam": (1.5, 1.4, 1.6), "sam-interval": (1.3, 1.2, 1.4)}
    text = ranking.recommendation(runs, times)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["xsam", "sam-interval", "friendly-sam"]
    assert rows[0][2:] == ["+5.0 ± 0.1", "3", "2.50"]
    assert "Of 8 rules 6 were eligible" in text
    assert "Means over 2 settings" in text


def test_where_none_is_more_accurate_the_three_are_the_flattest_the_cheapest_of_the_flat_and_the_most_accurate():
    runs = [
        *drawn("sgd", 0.90, 9.0, spread=0.02),
        *drawn("xsam", 0.91, 3.0, spread=0.02),
        *drawn("looksam", 0.895, 5.0, spread=0.02),
        *drawn("sam-interval", 0.895, 6.0, spread=0.02),
        *drawn("sam", 0.90, 1.0, spread=0.02),
        *drawn("asam", 0.70, 0.5, spread=0.02),
    ]
    times = dict.fromkeys({run.optimizer for run in runs}, (2.5, 2.4, 2.6))
    times |= {"looksam": (1.5, 1.4, 1.6), "sam-interval": (1.3, 1.2, 1.4)}
    text = ranking.recommendation(runs, times)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[4:7]]
    assert text.startswith(
        "No rule lies above SGD by more than its noise in these runs: what differs is how flat it ends.\n"
    )
    assert [row[0] for row in rows] == ["sam", "looksam", "xsam"]
    assert [row[3] for row in rows] == ["1", "5", "3"]
    assert "SGD ends at a Frobenius norm of 9. Of 5 rules 4 were eligible: not below SGD" in text


def test_a_rule_about_normalization_layers_has_no_place_where_there_are_none():
    places = [setting for setting in family.SETTINGS if family.has_a_place("sam-on", setting)]
    assert places == ["LayerNorm, wrong labels", "LayerNorm, clean"]
    assert all(family.has_a_place("sam", setting) for setting in family.SETTINGS)
    runs = [*drawn("sgd", 0.9, 1.0), *drawn("sam-on", 0.9, 1.0)]
    (row,) = (line for line in ranking.settings_table(runs).splitlines() if line.startswith("| sam-on |"))
    assert row.count("has no normalization layer") == 2


def test_without_runs_that_tell_rules_from_noise_nothing_is_recommended():
    times = dict.fromkeys(("sgd", "sam"), (1.0, 1.0, 1.0))
    assert ranking.recommendation([*drawn("sgd", 0.9, 1.0), *drawn("sam", 0.86, 1.0)], times) == ""
    # Below by more than the noise, and by less than what is marked.
    assert ranking.recommendation([*drawn("sgd", 0.9, 1.0), *drawn("sam", 0.895, 1.0)], times) == ""
    assert ranking.recommendation(drawn("sam", 0.9, 1.0), times) == ""
    assert ranking.recommendation([drawn("sgd", 0.9, 1.0)[0], drawn("sam", 0.95, 1.0)[0]], times) == ""


def test_runs_that_are_all_equal_are_level():
    runs = [*drawn("sgd", 0.9, 1.0, spread=0.0), *drawn("sam", 0.9, 1.0, spread=0.0)]
    assert "| sam | the flattest | +0.0 ± 0.0 |" in ranking.recommendation(
        runs, dict.fromkeys(("sgd", "sam"), (1.0,) * 3)
    )


def test_a_rule_lowers_its_measure_where_the_interval_says_so_at_equal_accuracy():
    first, other = list(family.SETTINGS)[:2]

    def runs_of(**changes):
        sam = drawn("sam", 0.95, 4.0)
        return [*sam, *drawn("frob-sam", **{"accuracy": 0.95, "frob": 3.9, **changes})]

    assert ranking.flattening_verdict(runs_of()) == (
        f"- frob-sam lowers frob below SAM's at equal accuracy in {first}; {other}.\n"
    )
    # Two points of accuracy lost in the second setting, then a measure that is not told from SAM's in either.
    assert ranking.flattening_verdict(runs_of(worse_in=0.93)).endswith(f"in {first}.\n")
    none = "- **frob-sam does not lower frob below SAM's at equal accuracy in any of these settings.**\n"
    assert ranking.flattening_verdict(runs_of(frob=3.98, spread=0.01)) == none
    assert ranking.flattening_verdict(drawn("sam", 0.95, 4.0)) == ""
