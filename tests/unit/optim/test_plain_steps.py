"""``step()`` without a closure: the base optimizer alone, which is said once to whoever never used the rule."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from hessprobe.errors import PlainStepWarning
from hessprobe.optim import SAM, LookSAM

X = torch.linspace(-1, 1, 24).view(8, 3)
Y = torch.arange(8) % 2


def build(make=SAM, **options):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = make(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.5, model=module, **options)

    def backward():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(X), Y)
        loss.backward()
        return loss

    return module, optimizer, backward


def test_a_forgotten_closure_is_told_once_for_each_optimizer_where_it_was_forgotten():
    for _ in range(2):
        _, optimizer, backward = build()
        backward()
        with pytest.warns(PlainStepWarning) as told:
            optimizer.step()
        assert str(told[0].message) == (
            "SAM.step() without a closure is a step of plain SGD; call opt.step(closure), or opt.first_step() and "
            "opt.second_step() after a backward each; in the "
            "Trainer of transformers use hessprobe.optim.integrations.SAMTrainer."
        )
        assert told[0].filename == __file__
        for again in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            again.step()


@pytest.mark.parametrize("enabled", [False, True], ids=["off", "on"])
def test_a_scaler_hides_no_forgotten_closure(enabled):
    _, optimizer, backward = build()
    backward()
    scaler = torch.amp.GradScaler("cpu", enabled=enabled)
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match="scaler=scaler") if enabled else pytest.warns(PlainStepWarning):
        scaler.step(optimizer)


def by_closure(optimizer, backward):
    optimizer.step(backward)


def by_loss(optimizer, backward):
    module = optimizer.model
    optimizer.step(loss=lambda: nn.functional.cross_entropy(module(X), Y))


def by_phases(optimizer, backward):
    backward()
    optimizer.first_step(zero_grad=True)
    backward()
    optimizer.second_step(zero_grad=True)


def by_hand(optimizer, backward):
    backward()
    while optimizer.wants_ascent():
        with optimizer.ascend():
            backward()
    optimizer.descend()


def by_phases_and_a_trainer_that_steps(optimizer, backward):
    by_phases(optimizer, backward)
    optimizer.step()


@pytest.mark.parametrize("make", [SAM, lambda *a, **k: LookSAM(*a, k=2, **k)], ids=["SAM", "LookSAM"])
@pytest.mark.parametrize("used", [by_closure, by_loss, by_hand, by_phases, by_phases_and_a_trainer_that_steps])
def test_whoever_has_used_the_rule_may_take_plain_steps(used, make):
    _, optimizer, backward = build(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used(optimizer, backward)
        backward()
        optimizer.step()


def test_a_checkpoint_that_has_the_state_made_is_no_training_and_leaves_the_warning_to_the_first_that_is():
    module, optimizer, backward = build()
    get_optimizer_state_dict(module, optimizer)
    backward()
    with pytest.warns(PlainStepWarning):
        optimizer.step()
