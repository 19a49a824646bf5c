"""The rules about the ascent in a hand-written loop and under a gradient scaler: the same steps as with a closure."""

from __future__ import annotations

import pytest
import torch
from contracts.optim_rows.ascent import ROWS
from contracts.optim_rows.harness import Closures, build, flat_weights, make_module, step
from contracts.optim_rows.problem import is_close
from contracts.optim_rows.row import Row

# Shards of a batch are a matter of step([closure, ...]).
WHOLE = [row for row in ROWS if row.name != "m-sam" and row.arguments.get("shards", 1) == 1]
# It evaluates a batch again after its step.
CLOSURES_ONLY = [row for row in WHOLE if row.name == "sampa"]
BY_HAND = [row for row in WHOLE if row.name != "sampa"]


@pytest.mark.parametrize("row", BY_HAND, ids=[row.id for row in BY_HAND])
def test_a_hand_written_loop_takes_the_same_steps(row: Row):
    module, by_hand = make_module(), make_module()
    optimizer, other = build(row, module), build(row, by_hand)
    for t in range(1, 5):
        step(optimizer, module, t)
        closures = Closures(by_hand, t)
        closures.backward()
        while other.wants_ascent():
            with other.ascend():
                closures.backward()
        other.descend()
    assert is_close(flat_weights(by_hand), flat_weights(module)) == 0


@pytest.mark.parametrize("row", CLOSURES_ONLY, ids=[row.id for row in CLOSURES_ONLY])
def test_a_rule_that_evaluates_after_its_step_is_refused_by_hand(row: Row):
    module = make_module()
    optimizer, closures = build(row, module), Closures(module, 1)
    closures.backward()

    def loop() -> None:
        while optimizer.wants_ascent():
            with optimizer.ascend():
                closures.backward()
        optimizer.descend()

    with pytest.raises(RuntimeError, match=r"evaluates after its step .* use opt\.step\(closure\)"):
        loop()


@pytest.mark.parametrize("row", WHOLE, ids=[row.id for row in WHOLE])
def test_a_scaler_changes_nothing(row: Row):
    module, scaled_module = make_module(), make_module()
    optimizer, scaled = build(row, module), build(row, scaled_module)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(1, 5):
        step(optimizer, module, t)
        closures = Closures(scaled_module, t)
        scaled.step(loss=closures.loss, scaler=scaler)
        scaler.update(2.0 ** (10 + t))
    assert is_close(flat_weights(scaled_module), flat_weights(module)) < 1e-12
