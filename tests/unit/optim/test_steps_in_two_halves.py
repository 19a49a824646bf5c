"""``evaluate`` and ``step()``: what loops that clip and step by themselves find between the two."""

from __future__ import annotations

import copy

import pytest
import torch
from contracts.optim_rows.harness import Closures, flat_weights, make_module

from hessprobe.optim import GSAM, SAM, LookSAM


def sam(module: torch.nn.Module, kind: type = SAM):
    return kind(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), rho=0.05)


def test_the_gradient_in_between_is_the_one_at_the_displaced_weights():
    module = make_module()
    optimizer = sam(module)
    closures = Closures(module, 1)
    closures.backward()
    start = flat_weights(module)
    gradient = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    there = start + 0.05 * gradient / gradient.norm()
    torch.nn.utils.vector_to_parameters(there, module.parameters())
    closures.backward()
    wanted = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    torch.nn.utils.vector_to_parameters(start.clone(), module.parameters())
    optimizer.evaluate(closures.backward)
    found = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert optimizer.t == 1
    optimizer.step()
    torch.testing.assert_close(flat_weights(module), start - 0.1 * found, rtol=1e-12, atol=1e-14)
    assert optimizer.t == 2


def test_clipping_in_between_touches_nothing_that_is_remembered():
    module, other = make_module(), make_module()
    clipped, plain = sam(module, LookSAM), sam(other, LookSAM)
    for optimizer, one in ((clipped, module), (plain, other)):
        optimizer.evaluate(Closures(one, 1).backward)
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1e-3)
    clipped.step()
    plain.step()
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        for name, value in plain.state[q].items():
            if name.startswith("sam_"):
                assert torch.equal(clipped.state[p][name], value), name


def test_an_overflow_is_skipped_by_the_scaler_and_the_next_step_is_taken():
    module = make_module()
    optimizer, scaler = sam(module, GSAM), torch.amp.GradScaler("cpu", init_scale=256.0)
    start = flat_weights(module)

    def overflowing():
        loss = Closures(module, 1, scaler=scaler).backward()
        next(iter(module.parameters())).grad.fill_(torch.inf)
        return loss

    optimizer.evaluate(overflowing, scaler=scaler)
    assert optimizer.last.skipped
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 128.0
    assert torch.equal(flat_weights(module), start)
    assert optimizer.t == 1
    optimizer.evaluate(Closures(module, 1, scaler=scaler).backward, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.t == 2
    other = make_module()
    sam(other, GSAM).step(Closures(other, 1).backward)
    torch.testing.assert_close(flat_weights(module), flat_weights(other), rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match=r"must be stepped with opt\.step\(closure, scaler=scaler\)"):
        scaler.step(optimizer)  # no half is open: the gradients are still scaled


def test_a_half_that_is_not_ended_is_forgotten_and_a_closure_in_its_place_refused():
    module, other = make_module(), make_module()
    optimizer, reference = sam(module, LookSAM), sam(other, LookSAM)
    optimizer.evaluate(Closures(module, 7).backward)
    with pytest.raises(RuntimeError, match=r"got one that evaluate\(\) has begun\. End it with step\(\)\."):
        optimizer.step(Closures(module, 1).backward)
    optimizer.evaluate(Closures(module, 1).backward)
    optimizer.step()
    reference.step(Closures(other, 1).backward)
    assert torch.equal(flat_weights(module), flat_weights(other))


def test_a_closure_that_fails_leaves_no_half_open():
    module = make_module()
    optimizer = sam(module)
    calls = []

    def failing():
        calls.append(flat_weights(module))
        if len(calls) == 2:
            raise KeyError("the loader")
        return Closures(module, 1).backward()

    with pytest.raises(KeyError, match="the loader"):
        optimizer.evaluate(failing)
    assert torch.equal(flat_weights(module), calls[0])
    assert not torch.equal(calls[1], calls[0])
    assert optimizer.step(Closures(module, 1).backward) is not None


def test_a_copy_made_in_between_has_no_half():
    module = make_module()
    optimizer = sam(module)
    optimizer.evaluate(Closures(module, 1).backward)
    copied_module, copied = copy.deepcopy((module, optimizer))
    assert copied.step(Closures(copied_module, 1).backward) is not None
    optimizer.step()
    torch.testing.assert_close(flat_weights(copied_module), flat_weights(module), rtol=1e-12, atol=1e-14)


def test_two_halves_count_as_one_call_for_a_scheduler():
    module = make_module()
    optimizer = sam(module)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for t in (1, 2):
        optimizer.evaluate(Closures(module, t).backward)
        optimizer.step()
        scheduler.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.025
