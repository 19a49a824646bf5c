"""Gradients that are there before a step: which are refused, which are used up, and that none is lost or marked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hessprobe.optim import SAM
from hessprobe.optim.engine.gradients import any_nonzero


def weight(shape: str) -> nn.Parameter:
    torch.manual_seed(0)
    made = {
        "transposed": lambda: torch.randn(5, 3).t(),
        "channels last": lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "a number": lambda: torch.randn(()),
        "plain": lambda: torch.randn(4),
    }
    return nn.Parameter(made[shape]().double())


def loss_of(w: nn.Parameter) -> torch.Tensor:
    return (w**4).sum() + w.sum()


def closure_of(optimizer: torch.optim.Optimizer, w: nn.Parameter, clears: bool = True):
    def closure():
        if clears:
            optimizer.zero_grad()
        loss = loss_of(w)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("shape", ["transposed", "channels last", "a number", "plain"])
def test_a_backward_before_a_closure_that_clears_changes_nothing(shape: str):
    steps = []
    for logged in (False, True):
        w = weight(shape)
        optimizer = SAM(torch.optim.SGD([w], lr=0.01))
        if logged:
            loss_of(w).backward()
        optimizer.step(closure_of(optimizer, w))
        steps.append(w.detach().clone())
    assert torch.equal(*steps)


@pytest.mark.parametrize("shape", ["transposed", "channels last", "a number", "plain"])
def test_a_refusal_puts_the_gradients_back_and_is_repeated(shape: str):
    w = weight(shape)
    optimizer = SAM(torch.optim.SGD([w], lr=0.01))
    optimizer.step(closure_of(optimizer, w))
    optimizer.zero_grad()
    loss_of(w).backward()
    before, found = w.detach().clone(), w.grad.clone()
    for _ in range(2):
        with pytest.raises(ValueError, match="gradients must be empty"):
            optimizer.step(closure_of(optimizer, w, clears=False))
        assert torch.equal(w.grad, found)
        assert torch.equal(w.detach(), before)


def test_a_closure_that_fails_leaves_the_gradients_as_they_were():
    w = weight("plain")
    optimizer = SAM(torch.optim.SGD([w], lr=0.01))
    optimizer.step(closure_of(optimizer, w))
    optimizer.zero_grad()
    loss_of(w).backward()
    found = w.grad.clone()

    def broken():
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        optimizer.step(broken)
    assert torch.equal(w.grad, found)


def test_gradients_that_the_base_has_used_are_used_up():
    w = weight("plain")
    base = torch.optim.SGD([w], lr=0.01)
    loss_of(w).backward()
    base.step()
    before = w.detach().clone()
    SAM(base).step(loss=lambda: loss_of(w))
    assert not torch.equal(w.detach(), before)


@pytest.mark.parametrize("where", [None, 0, 2])
def test_one_entry_that_is_not_zero_is_seen_in_any_tensor(where: int | None):
    tensors = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(())]
    if where is not None:
        tensors[where].view(-1)[-1] = -1e-30
    assert any_nonzero(tensors) == (where is not None)


def two_networks():
    one, two = weight("plain"), nn.Parameter(weight("plain").detach() + 0.5)
    optimizers = [SAM(torch.optim.SGD([w], lr=0.01), rho=0.1) for w in (one, two)]

    def closure():
        loss = ((one * two) ** 2).sum() + loss_of(one)
        loss.backward()
        return loss

    return one, two, optimizers, closure


def test_two_optimizers_may_share_a_closure_that_clears_nothing():
    paths = []
    for clears in (False, True):
        one, two, optimizers, closure = two_networks()
        for _ in range(3):
            for optimizer in optimizers:
                if clears:
                    one.grad = two.grad = None
                optimizer.step(closure)
        paths.append(torch.stack([one, two]).detach())
    assert torch.equal(*paths)


def test_what_somebody_accumulated_is_refused_also_after_a_step_of_another_optimizer():
    _, two, (first, second), closure = two_networks()
    first.step(closure)
    second.step(closure)
    second.zero_grad()
    loss_of(two).backward()
    first.step(closure)
    with pytest.raises(ValueError, match="gradients must be empty"):
        second.step(closure)


def test_a_step_that_is_refused_still_uses_up_what_it_left_elsewhere():
    one, _, (first, second), closure = two_networks()
    loss_of(one).backward()
    with pytest.raises(ValueError, match="gradients must be empty"):
        first.step(closure)
    second.step(closure)
    with pytest.raises(ValueError, match="gradients must be empty"):
        first.step(closure)


def test_optimizers_that_are_gone_are_not_kept():
    import gc

    from hessprobe.optim.engine import gradients

    gc.collect()
    before = len(gradients._ALL)
    _, _, optimizers, _ = two_networks()
    assert len(gradients._ALL) == before + 2
    del optimizers
    gc.collect()
    assert len(gradients._ALL) == before
