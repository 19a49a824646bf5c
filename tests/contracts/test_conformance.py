"""hessprobe in the cases in which curvature tools give wrong numbers without a word; one row a case, in the table."""

from __future__ import annotations

import pytest
import torch

from hessprobe.benchmarks.conformance import CASES, HESSPROBE, QUANTITIES, RULES, Tool, check, problems

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", list(BY_NAME))
def test_case(name):
    verdict = check(BY_NAME[name], HESSPROBE)
    assert verdict.status == "right", verdict


def test_the_table_is_well_formed():
    assert len(BY_NAME) == len(CASES)
    for case in CASES:
        assert case.quantity in QUANTITIES
        assert case.rule in RULES
        assert (case.truth is None) == (case.rule in ("repeatable", "unchanged"))
        assert case.must_hold.endswith(".")
    assert set(HESSPROBE.answers) == set(QUANTITIES)


@pytest.mark.parametrize("name", [case.name for case in CASES if case.rule == "equal" and not case.refusal])
def test_an_answer_that_is_off_is_wrong(name):
    case = BY_NAME[name]

    def off(problem):
        # The last column of a grid are losses; nodes of a density move, so do eigenvalues of the matrix 0.
        answer = HESSPROBE.answers[case.quantity](problem).clone()
        column = {"grid": 2, "density": 0}.get(case.quantity)
        part = answer if column is None else answer[:, column]
        part += 0.05 * part + (0.01 if name.startswith("zero") else 0)
        return answer

    assert check(case, Tool("off", "0", {case.quantity: off})).status == "wrong"


def test_a_tool_that_touches_the_module_or_the_generator_is_wrong():
    def touching(problem):
        answer = HESSPROBE.answers["hvp"](problem)
        with torch.no_grad():
            problem.module[0].bias[0] += 1e-12
        return answer

    def drawing(problem):
        torch.rand(1)
        return HESSPROBE.answers["hvp"](problem)

    def switching(problem):
        problem.module.train()
        return HESSPROBE.answers["hvp"](problem)

    def freezing(problem):
        answer = HESSPROBE.answers["hvp"](problem)
        problem.module.requires_grad_(False)
        return answer

    state = torch.random.get_rng_state()

    for wrong, words in (
        (touching, "0.bias was changed"),
        (drawing, "global generator"),
        (switching, "the mode of"),
        (freezing, "requires_grad of"),
    ):
        verdict = check(BY_NAME["left-alone"], Tool("x", "0", {"trace": wrong}))
        torch.random.set_rng_state(state)
        assert verdict.status == "wrong"
        assert words in verdict.note


def test_a_refusal_is_right_only_where_it_names_its_reason():
    def refuse(problem):
        raise RuntimeError("no second derivative of Dropout")

    tool = Tool("x", "0", {"hvp": refuse})
    assert check(BY_NAME["dropout"], tool).status == "right"
    assert check(BY_NAME["ragged-batches"], tool).status == "refused"
    assert check(BY_NAME["batchnorm-training"], tool).status == "refused"
    assert check(BY_NAME["both-ends"], tool).status == "missing"


def test_costs_are_counted():
    def greedy(problem):
        torch.zeros(256, 512, 64, dtype=torch.float64)
        return HESSPROBE.answers["hvp"](problem)

    def chatty(problem):
        for _ in range(5000):
            torch.ones(1).item()
        return HESSPROBE.answers["density"](problem)

    assert check(BY_NAME["many-probes"], Tool("x", "0", {"hvp": greedy})).status == "wrong"
    assert check(BY_NAME["host-syncs"], Tool("x", "0", {"density": chatty})).status == "wrong"


def test_repeating_is_with_another_state_of_the_global_generator():
    def careless(problem):
        with torch.random.fork_rng():
            return torch.rand(1)

    assert check(BY_NAME["own-generator"], Tool("x", "0", {"trace": careless})).status == "wrong"


def test_short_intervals_do_not_cover():
    def short(problem):
        ends = HESSPROBE.answers["trace-intervals"](problem)
        middle = ends.mean(1, keepdim=True)
        return middle + 0.7 * (ends - middle)

    assert check(BY_NAME["coverage-outliers"], Tool("x", "0", {"trace-intervals": short})).status == "wrong"


def test_a_tolerance_that_is_not_kept_is_wrong():
    def loose(problem):
        return 1.06 * HESSPROBE.answers["trace-to-tolerance"](problem)

    assert check(BY_NAME["trace-to-tolerance"], Tool("x", "0", {"trace-to-tolerance": loose})).status == "wrong"


@pytest.mark.parametrize("name", ["gradient-reversal", "straight-through", "penalty-on-data", "half-detached-backward"])
def test_what_autograd_says_of_a_loss_whose_gradient_lies_is_wrong(name):
    assert check(BY_NAME[name], Tool("autograd", "0", {"hvp": problems.hvp})).status == "wrong"
