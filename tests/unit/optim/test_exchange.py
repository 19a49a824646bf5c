"""Displacing by giving parameters other memory: same numbers, same addresses, nobody else the wiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hessprobe.optim import SAM, SAMPa
from hessprobe.optim.engine import weights

# Just large enough by itself; its bias is not.
SHAPE = (130, 130)


def closure_of(module: nn.Module, optimizer: torch.optim.Optimizer, seen: list[torch.Tensor] | None = None):
    x = torch.linspace(-1, 1, 4 * SHAPE[1]).view(4, -1)

    def closure():
        optimizer.zero_grad()
        if seen is not None:
            seen.append(module.weight.detach().clone())
        loss = module(x).square().mean()
        loss.backward()
        return loss

    return closure


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(SHAPE[1], SHAPE[0])


def was_exchanged(module: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Take a step and return whether the weight had another address in the second pass."""
    addresses = []
    handle = module.register_forward_pre_hook(lambda *_: addresses.append(module.weight.data_ptr()))
    optimizer.step(closure_of(module, optimizer))
    handle.remove()
    assert module.weight.data_ptr() == addresses[0]
    return addresses[1] != addresses[0]


def test_large_tensors_alone_in_their_memory_are_exchanged_and_stay_at_their_addresses():
    module = layer()
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.1)
    assert all(was_exchanged(module, optimizer) for _ in range(3))
    assert not weights.may_exchange(module.bias, torch.empty_like(module.bias))


@pytest.mark.parametrize("kind", [SAM, SAMPa])
def test_the_steps_are_those_of_copying_to_the_last_bit(kind, monkeypatch):
    ends = []
    for smallest in (1, 2**62):
        monkeypatch.setattr(weights, "SMALLEST", smallest)
        module = layer()
        optimizer = kind(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), rho=0.1)
        for _ in range(4):
            optimizer.step(closure_of(module, optimizer))
        ends.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
    assert torch.equal(*ends)


class TestMemoryThatSomebodyElseReads:
    """There the weights are moved in place, so that everybody sees them displaced."""

    def step(self, module: nn.Module) -> bool:
        return was_exchanged(module, SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.1))

    def test_a_flat_buffer(self):
        module, flat = layer(), torch.randn(2, *SHAPE)
        module.weight.data = flat[1]
        assert not self.step(module)

    def test_an_alias_sees_the_displacement(self):
        module = layer()
        alias, seen = module.weight.detach(), []
        module.register_forward_pre_hook(lambda *_: seen.append(torch.equal(alias, module.weight)))
        assert not self.step(module)
        assert seen == [True, True]

    def test_a_state_dict_that_is_held(self):
        module = layer()
        held = module.state_dict()
        assert not self.step(module)
        del held
        assert self.step(module)

    def test_a_numpy_array(self):
        module = layer()
        array = module.weight.detach().numpy()
        assert not self.step(module)
        del array

    def test_another_layout_than_its_memory(self):
        module = layer()
        module.weight.data = torch.randn(SHAPE[1], 2 * SHAPE[0]).T[::2]
        assert not self.step(module)


def test_a_failing_second_pass_puts_the_memory_back():
    module = layer()
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.1)
    before, address, calls = module.weight.detach().clone(), module.weight.data_ptr(), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 2:
            assert module.weight.data_ptr() != address
            raise KeyboardInterrupt
        return closure_of(module, optimizer)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert module.weight.data_ptr() == address
    assert torch.equal(module.weight, before)


def test_a_graph_kept_from_the_first_pass_is_refused_as_after_a_write_in_place():
    weight = nn.Parameter(torch.randn(SHAPE))
    optimizer = SAM(torch.optim.SGD([weight], lr=0.0), rho=0.1)
    kept, addresses = [], set()

    def closure():
        optimizer.zero_grad()
        # The input needs a gradient, so the weight is saved for it: the parameter itself, not a view of its memory.
        loss = (weight * torch.ones(SHAPE, requires_grad=True)).sum()
        loss.backward(retain_graph=True)
        kept.append(loss)
        addresses.add(weight.data_ptr())
        if len(kept) == 2:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                kept[0].backward()
        return loss

    optimizer.step(closure)
    assert len(addresses) == 2


def test_a_compiled_module_sees_the_displaced_weights():
    ends = []
    for run in (lambda module: module, lambda module: torch.compile(module, backend="eager", fullgraph=True)):
        module = layer()
        forward, x = run(module), torch.linspace(-1, 1, 4 * SHAPE[1]).view(4, -1)
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.5)

        def closure(module=module, forward=forward, x=x):
            module.zero_grad()
            loss = forward(x).square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        ends.append(module.weight.detach())
    assert torch.equal(*ends)


def test_copies_and_module_conversions_between_steps():
    module = layer()
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), rho=0.1)
    optimizer.step(closure_of(module, optimizer))
    other_module, other = copy.deepcopy((module, optimizer))
    for m, o in ((module, optimizer), (other_module, other)):
        # New memory under the same parameter object.
        m.weight.data = m.weight.data.clone()
        o.step(closure_of(m, o))
    assert torch.equal(module.weight, other_module.weight)
