"""What every sharpness-aware optimizer keeps, whatever its rule."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from contracts.optim_rows.harness import (
    BASES,
    Closures,
    asked_for,
    build,
    flat_weights,
    make_module,
    parameter_groups,
    specification,
    step,
)
from contracts.optim_rows.problem import is_close
from contracts.optim_rows.row import Row
from contracts.optim_rows.table import all_rows

from hessprobe.errors import PlainStepWarning
from hessprobe.optim import available, registry
from hessprobe.optim.engine import weights

ROWS = all_rows()
STEPS = 12


def rows_that(applies: Callable[[Row], bool]) -> pytest.MarkDecorator:
    chosen = [row for row in ROWS if applies(row)]
    return pytest.mark.parametrize("row", chosen, ids=[row.id for row in chosen])


def stands_alone(row: Row) -> bool:
    return registry.get(row.name).standalone


def bases_of(row: Row) -> list[str]:
    return ["sgd"] if stands_alone(row) else list(BASES)


every_row = rows_that(lambda row: True)
SETUPS = [
    (row, base, two)
    for row in ROWS
    for base in bases_of(row)
    for two in ((False,) if row.single_group else (False, True))
]


def test_every_registered_optimizer_has_a_row():
    assert sorted({row.name for row in ROWS}) == available()
    assert len({row.id for row in ROWS}) == len(ROWS)


# Tensor by tensor, by fused calls, and with every tensor given other memory while it is displaced.
WAYS: dict[str, tuple[bool, int]] = {"loop": (False, 2**62), "foreach": (True, 2**62), "exchange": (False, 0)}


@pytest.mark.parametrize(
    ("row", "base", "two"),
    SETUPS,
    ids=[f"{row.id}-{base}-{'two-groups' if two else 'one-group'}" for row, base, two in SETUPS],
)
def test_follows_its_specification(row: Row, base: str, two: bool, monkeypatch: pytest.MonkeyPatch):
    expected = specification(row, base, two, STEPS)
    for way, (foreach, smallest) in WAYS.items():
        if way == "exchange" and (base, two) != ("sgd", not row.single_group):
            continue  # it knows nothing of the base
        monkeypatch.setattr(weights, "SMALLEST", smallest)
        module = make_module()
        optimizer = build(row, module, base, two, foreach=foreach)
        start = flat_weights(module)
        for t, target in enumerate(expected, start=1):
            step(optimizer, module, t)
            assert is_close(flat_weights(module), target) < 1e-12, f"{way}, step {t}"
        assert is_close(expected[-1], start) > 1e-3


@rows_that(lambda row: row.base_at_rho_zero)
def test_rho_zero_is_the_base_optimizer(row: Row):
    for base in bases_of(row):
        module, plain = make_module(), make_module()
        optimizer = build(row, module, base, rho=0.0, **(row.base_at_rho_zero_arguments or {}))
        reference = BASES[base](parameter_groups(plain, 0.0, False))
        for t in range(1, 8):
            step(optimizer, module, t)
            one_plain_step(reference, plain, t)
        assert torch.equal(flat_weights(module), flat_weights(plain)), base


def one_plain_step(optimizer: torch.optim.Optimizer, module: torch.nn.Module, t: int) -> None:
    Closures(module, t).backward()
    optimizer.step()


@every_row
def test_returns_the_clean_loss_and_counts_its_gradients(row: Row):
    module = make_module()
    optimizer = build(row, module)
    expected = row.evaluations if isinstance(row.evaluations, list) else [row.evaluations] * STEPS
    counted = []
    for t in range(1, STEPS + 1):
        before = module_loss(module, t)
        value = step(optimizer, module, t)
        counted.append(optimizer.last.evaluations)
        assert value.shape == ()
        assert not value.requires_grad
        if row.clean_loss:
            torch.testing.assert_close(value, before, rtol=1e-13, atol=0)
    assert counted == expected


def module_loss(module: torch.nn.Module, t: int) -> torch.Tensor:
    return Closures(module, t).loss().detach()


@every_row
def test_resumes_exactly(row: Row):
    # The base with the larger state: two vectors and a number a parameter.
    base = bases_of(row)[-1]
    module = make_module()
    optimizer = build(row, module, base)
    for t in range(1, 4):
        step(optimizer, module, t)
    stream = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    assert sorted(saved["optimizer"]) == ["param_groups", "state"]
    other = make_module()
    resumed = build(row, other, base)
    other.load_state_dict(saved["module"])
    # A loader that fills what it finds (torch.distributed.checkpoint) must find every number from the start.
    assert resumed.param_groups[0].keys() >= saved["optimizer"]["param_groups"][0].keys()
    resumed.load_state_dict(saved["optimizer"])
    for t in range(4, 9):
        step(optimizer, module, t)
        step(resumed, other, t)
    assert torch.equal(flat_weights(module), flat_weights(other))


@every_row
def test_pickle_and_deepcopy_go_on_alike(row: Row):
    module = make_module()
    optimizer = build(row, module)
    for t in range(1, 4):
        step(optimizer, module, t)
    start = flat_weights(module)
    copies = [copy.deepcopy((module, optimizer)), pickle.loads(pickle.dumps((module, optimizer)))]
    for one_module, one in (*copies, (module, optimizer)):
        for t in range(4, 7):
            step(one, one_module, t)
    for copied_module, _ in copies:
        assert torch.equal(flat_weights(copied_module), flat_weights(module))
    assert not torch.equal(flat_weights(module), start)


@rows_that(lambda row: not row.evaluates_after_step)
def test_a_failing_pass_leaves_the_weights_bit_for_bit(row: Row):
    module = make_module()
    optimizer = build(row, module)
    for t in range(1, 4):
        step(optimizer, module, t)
    counts = {"calls": 0, "wanted": 0}

    def interrupt(*_: object) -> None:
        counts["calls"] += 1
        if counts["calls"] == counts["wanted"]:
            raise KeyboardInterrupt

    handle = module.register_forward_hook(interrupt)
    before = flat_weights(module).clone()
    addresses = [p.data_ptr() for p in module.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    failed = 0
    for wanted in (1, 2, 3):
        counts.update(calls=0, wanted=wanted)
        try:
            step(optimizer, module, 4)
        except KeyboardInterrupt:
            assert torch.equal(flat_weights(module), before)
            assert_same_state(optimizer.state_dict(), state)
            failed += 1
        else:
            break
    handle.remove()
    assert failed >= 1
    assert [p.data_ptr() for p in module.parameters()] == addresses


def assert_same_state(a: object, b: object) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@rows_that(lambda row: row.still_at_lr_zero)
def test_lr_zero_keeps_the_weights_bit_for_bit(row: Row):
    module = make_module().bfloat16()
    optimizer = build(row, module)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
    before = flat_weights(module).clone()
    # Subtracting what was added is off after one or two steps.
    for t in range(1, 9):
        step_in(torch.bfloat16, optimizer, module, t)
    assert torch.equal(flat_weights(module), before)


def step_in(dtype: torch.dtype, optimizer: object, module: torch.nn.Module, t: int) -> None:
    handle = module.register_forward_pre_hook(lambda _, args: (args[0].to(dtype),))
    step(optimizer, module, t)
    handle.remove()


@every_row
def test_finite_at_a_zero_gradient(row: Row):
    module = make_module()
    optimizer = build(row, module)
    for t in (1, 2, 3):
        step(optimizer, module, t, scale=0.0)
        assert torch.isfinite(flat_weights(module)).all()


@pytest.mark.parametrize("scaled", [False, True])
@every_row
def test_a_clipped_step_is_as_long_as_its_bound(row: Row, scaled: bool):
    bound = 1e-4
    module = make_module()
    optimizer = build(row, module)
    for group in optimizer.param_groups:
        group.update(lr=1.0, weight_decay=0.0, momentum=1e-300 if group.get("momentum") else 0.0)
    before = flat_weights(module)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    step(optimizer, module, 1, clip_grad_norm=bound, scaler=scaler)
    length = float((flat_weights(module) - before).norm()) / bound
    # clip_grad_norm_ divides by the norm plus 1e-6; only WSAM's two gradients may cancel.
    assert length <= row.clip_factor * (1 + 1e-9)
    if row.clip_is_reached:
        assert length == pytest.approx(row.clip_factor, rel=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
@every_row
def test_a_step_in_two_halves_is_the_step(row: Row, scaled: bool):
    # WSAM clips two gradients of its own: a caller that clips their sum as well does something else.
    bound = None if row.name == "wsam" else 0.3
    modules = make_module(), make_module()
    whole, halves = (build(row, module) for module in modules)
    scalers = [torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None for _ in modules]
    clipped = 0
    for t in range(1, 5):
        loss = step(whole, modules[0], t, scaler=scalers[0], clip_grad_norm=bound)
        before = flat_weights(modules[1])
        closure, given = asked_for(halves, Closures(modules[1], t, 1.0, scalers[1]))
        value = halves.evaluate(closure, scaler=scalers[1], clip_grad_norm=bound, **given)
        torch.testing.assert_close(value, loss, rtol=1e-12, atol=0)
        assert torch.equal(flat_weights(modules[1]), before)
        if scalers[1] is not None:
            scalers[1].unscale_(halves)
        if bound is not None:
            clipped += bool(torch.nn.utils.clip_grad_norm_(halves.parameters(), bound) > bound)
        if scalers[1] is None:
            assert halves.step() is None
        else:
            scalers[1].step(halves)
            scalers[0].update()
            scalers[1].update()
        assert halves.t == t + 1
        assert is_close(flat_weights(modules[1]), flat_weights(modules[0])) < 1e-11
        assert not torch.equal(flat_weights(modules[1]), before)
    assert bound is None or clipped


@every_row
def test_gradients_accumulated_before_a_step_are_refused_not_dropped(row: Row):
    module = make_module()
    optimizer = build(row, module)
    step(optimizer, module, 1)
    module.zero_grad()
    Closures(module, 2).backward()
    before, found = flat_weights(module), [p.grad.clone() for p in module.parameters()]
    module.zero_grad = lambda set_to_none=True: None  # as in the second of two micro-batches
    with pytest.raises(ValueError, match=r"gradients must be empty .* opt.step\(\[closure_1, closure_2\]\)"):
        step(optimizer, module, 3)
    assert torch.equal(flat_weights(module), before)
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), found, strict=True))
    del module.zero_grad
    module.zero_grad(set_to_none=False)
    step(optimizer, module, 3)
    assert not torch.equal(flat_weights(module), before)


@rows_that(lambda row: row.accumulates is True)
def test_a_list_of_closures_accumulates_to_the_whole_batch(row: Row):
    module, other = make_module(), make_module()
    whole, parts = build(row, module), build(row, other)
    for t in range(1, 6):
        step(whole, module, t)
        parts.step(Closures(other, t).shards(3))
    assert is_close(flat_weights(other), flat_weights(module)) < 1e-11


@rows_that(lambda row: row.accumulates is False)
def test_rules_that_cannot_accumulate_say_so(row: Row):
    module = make_module()
    optimizer = build(row, module)
    closures = Closures(module, 1)
    options = {"loss": closures.loss} if optimizer.needs_loss else {}
    lists = {"per-sample": [closures.per_sample] * 2, "outputs": [closures.outputs] * 2}
    shards = lists.get(optimizer.closure_kind, closures.shards(2))
    before = flat_weights(module)
    with pytest.raises((TypeError, ValueError), match="must be given one closure"):
        optimizer.step(shards, **options)
    assert torch.equal(flat_weights(module), before)


@rows_that(lambda row: row.scale_invariant)
def test_scaling_the_loss_scales_the_direction(row: Row):
    directions = []
    for scale in (1.0, 1000.0):
        module = make_module()
        optimizer = build(row, module)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        step(optimizer, module, 1, scale=scale)
        directions.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]) / scale)
    # eps = 1e-12 beside gradients of order 1.
    assert is_close(directions[1], directions[0]) < 1e-10


@rows_that(lambda row: not row.single_group)
def test_groups_added_later_are_filled_in(row: Row):
    module, extra = make_module(), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = build(row, module)
    step(optimizer, module, 1)
    optimizer.add_param_group({"params": [extra]})
    assert optimizer.param_groups[1]["rho"] == row.rho
    step(optimizer, module, 2)
    step(optimizer, module, 3)
    assert torch.equal(extra.detach(), torch.ones(3, dtype=torch.float64))


@rows_that(lambda row: not stands_alone(row))
def test_a_plain_step_is_the_base_step_and_says_so_once(row: Row):
    module, plain = make_module(), make_module()
    optimizer = build(row, module)
    reference = BASES["sgd"](parameter_groups(plain, row.rho, False))
    for t in (1, 2, 3):
        Closures(module, t).backward()
        with pytest.warns(PlainStepWarning, match="is a step of plain SGD") if t == 1 else nullcontext():
            optimizer.step()
        one_plain_step(reference, plain, t)
    assert torch.equal(flat_weights(module), flat_weights(plain))
