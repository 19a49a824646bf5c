from __future__ import annotations

import math

import pytest

from hessprobe.training.recipe import lr_factor


def test_cosine_halves_in_the_middle_and_ends_at_zero():
    assert [lr_factor("cosine", step, 4) for step in range(5)] == pytest.approx(
        [(1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75, 1)], abs=1e-15
    )


def test_warm_up_rises_linearly_to_the_peak_and_the_rest_follows():
    values = [lr_factor("cosine", step, 8, warmup=4) for step in range(9)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[4:] == pytest.approx([lr_factor("cosine", step, 4) for step in range(5)], abs=1e-15)
    assert [lr_factor("constant", step, 8, warmup=2) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_multistep_falls_at_its_shares_of_the_run():
    values = [lr_factor("multistep", step, 10, milestones=(0.5, 0.8), gamma=0.1) for step in range(10)]
    assert values == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


def test_no_steps():
    assert lr_factor("cosine", 0, 0) == 1.0
