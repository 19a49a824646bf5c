"""``step``: closures, restoring, non-finite losses, clipping, shards, schedules, groups."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from hessprobe.errors import NonFiniteError
from hessprobe.optim import GAM, GSAM, SAM, SAMSPS, WSAM, AsyncSAM, Cosine, Extragradient, LikeLr, Linear, VaSSO

X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3)
Y = torch.arange(8) % 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def closure_of(module: nn.Module, optimizer: torch.optim.Optimizer, rows: slice = slice(None), factor: float = 1.0):
    def closure():
        optimizer.zero_grad()
        loss = factor * nn.functional.cross_entropy(module(X[rows]), Y[rows])
        loss.backward()
        return loss

    return closure


def sgd(module: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).clone()


def test_one_step_on_a_quadratic_by_hand():
    w0, h = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
    w = nn.Parameter(w0.clone())
    optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=0.5)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (w * h * w).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    e = 0.5 * (h * w0) / math.sqrt(73)
    expected = w0 - 0.1 * h * (w0 + e)
    assert float(loss) == 20.5
    torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=0)


def test_a_layer_skipped_in_the_second_pass_is_restored_and_stepped():
    module = network()
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.0), rho=0.5)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        hidden = module[0](X) if calls == 1 else module[0](X).detach()
        loss = nn.functional.cross_entropy(module[2](torch.tanh(hidden)), Y)
        loss.backward()
        return loss

    before = weights(module)
    optimizer.step(closure)
    assert calls == 2
    assert torch.equal(weights(module), before)


def test_a_parameter_no_pass_reaches_is_left_alone():
    module, idle = network(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = SAM(torch.optim.AdamW([*module.parameters(), idle], lr=0.1, weight_decay=0.5))
    optimizer.step(closure_of(module, optimizer))
    assert idle.grad is None
    assert torch.equal(idle.detach(), torch.ones(2, dtype=torch.float64))


def test_views_into_a_flat_buffer_stay_views():
    flat = torch.randn(6, dtype=torch.float64)
    parameter = nn.Parameter(flat[:6].view(2, 3))
    parameter.data = flat.view(2, 3)
    optimizer = SAM(torch.optim.SGD([parameter], lr=0.1))

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert parameter.data_ptr() == flat.data_ptr()
    assert torch.equal(parameter.detach().view(-1), flat)


@pytest.mark.parametrize("bad_pass", [1, 2])
def test_a_nan_loss_leaves_everything_as_it_was(bad_pass: int):
    module = network()
    optimizer = VaSSO(sgd(module), theta=0.5)
    optimizer.step(closure_of(module, optimizer))
    before, memory = weights(module), optimizer.state_dict()["state"][0]["sam_direction"].clone()
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        return closure_of(module, optimizer, factor=math.nan if calls == bad_pass else 1.0)()

    where = "displaced weights" if bad_pass == 2 else "at the weights"
    with pytest.raises(NonFiniteError, match=f"{where} is nan in step 2, with rho 0.1; the weights are as before"):
        optimizer.step(closure)
    assert torch.equal(weights(module), before)
    assert torch.equal(optimizer.state_dict()["state"][0]["sam_direction"], memory)


def test_clipping_bounds_the_final_direction():
    module = network()
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=1.0))
    before = weights(module)
    optimizer.step(closure_of(module, optimizer), clip_grad_norm=0.01)
    assert float((weights(module) - before).norm()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("scale", [None, 1.0, 1024.0])
@pytest.mark.parametrize("bound", [0.5, 1.0, 100.0])
def test_clipping_neither_lengthens_a_step_of_the_rule_that_sizes_its_own_nor_depends_on_a_scaler(bound, scale):
    # L = |w|^2 / 2 from (3, 4) with rho = 0: the step size is L / |g|^2 = 1/2 of the gradient before clipping.
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = SAMSPS([w], rho=0.0, gamma_max=100.0, weight_decay=0.0)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer.step(loss=lambda: w.square().sum() / 2, clip_grad_norm=bound, scaler=scaler)
    assert float(optimizer.last.extra["step_size"]) == pytest.approx(0.5)
    assert float((w.detach() - torch.tensor([3.0, 4.0])).norm()) == pytest.approx(0.5 * min(bound, 5.0), rel=1e-6)


@pytest.mark.parametrize(("scale", "by_hand"), [(None, False), (1.0, False), (1024.0, False), (None, True)])
def test_a_remembered_gradient_is_not_clipped(scale, by_hand):
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = Extragradient(torch.optim.SGD([w], lr=0.1), form="past")
    if by_hand:
        (w.square().sum() / 2).backward()
        optimizer.descend(clip_grad_norm=1.0)
    else:
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer.step(loss=lambda: w.square().sum() / 2, clip_grad_norm=1.0, scaler=scaler)
    assert optimizer.state[w]["sam_past"].tolist() == [3.0, 4.0]
    torch.testing.assert_close(w.detach(), torch.tensor([2.94, 3.92]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", [SAM, GAM])
def test_a_loop_of_first_steps_asks_when_it_is_done(rule):
    whole, module = network(), network()
    one, other = (rule(torch.optim.SGD(each.parameters(), lr=0.1)) for each in (whole, module))
    one.step(closure_of(whole, one))
    closure = closure_of(module, other)
    closure()
    while other.wants_ascent():
        other.first_step()
        closure()
    other.second_step()
    assert torch.equal(weights(module), weights(whole))


@pytest.mark.parametrize(("decouple", "bound"), [(True, 0.19), (False, 0.17)])
@pytest.mark.parametrize("by_hand", [False, True])
def test_wsam_clips_both_of_its_gradients(decouple: bool, bound: float, by_hand: bool):
    module = network()
    optimizer = WSAM(torch.optim.SGD(module.parameters(), lr=1.0), rho=0.5, decouple=decouple)
    w, closure = weights(module), closure_of(module, optimizer)
    closure()
    g = clipped(gradient(module))
    closure()
    if by_hand:
        with optimizer.ascend():
            closure()
            gt = clipped(gradient(module))
        optimizer.descend(clip_grad_norm=0.01)
    else:
        e = 0.5 * gradient(module) / gradient(module).norm()
        other = network()
        nn.utils.vector_to_parameters(w + e, other.parameters())
        closure_of(other, torch.optim.SGD(other.parameters(), lr=1.0))()
        gt = clipped(gradient(other))
        optimizer.zero_grad()
        optimizer.step(closure, clip_grad_norm=0.01)
    moved = w - weights(module)
    torch.testing.assert_close(moved, g + 9.0 * (gt - g), rtol=0, atol=1e-5)
    assert 0.01 < float(moved.norm()) < bound


def gradient(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()])


def clipped(vector: torch.Tensor) -> torch.Tensor:
    return 0.01 * vector / vector.norm()


def test_a_remembered_gradient_is_not_the_one_left_in_grad():
    module = network()
    optimizer = AsyncSAM(sgd(module), ascent="descent")
    optimizer.step(closure_of(module, optimizer))
    kept = [optimizer.state[p]["sam_past"].clone() for p in module.parameters()]
    assert all(value.any() for value in kept)
    optimizer.zero_grad(set_to_none=False)
    for parameter, value in zip(module.parameters(), kept, strict=True):
        assert torch.equal(optimizer.state[parameter]["sam_past"], value)


class TestShards:
    def test_global_accumulation_is_the_whole_batch(self):
        whole, parts = network(), network()
        one, two = GSAM(sgd(whole)), GSAM(sgd(parts))
        for _ in range(5):
            a = one.step(closure_of(whole, one))
            b = two.step(
                [closure_of(parts, two, slice(0, 6)), closure_of(parts, two, slice(6, 8))], weights=[0.75, 0.25]
            )
            torch.testing.assert_close(a, b, rtol=1e-13, atol=0)
        torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-12, atol=1e-14)
        assert two.last.evaluations == 4

    def test_each_microbatch_along_its_own_gradient(self):
        module, reference = network(), network()
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.3, accumulate="per_microbatch")
        optimizer.step([closure_of(module, optimizer, slice(0, 4)), closure_of(module, optimizer, slice(4, 8))])
        halves = []
        for rows in (slice(0, 4), slice(4, 8)):
            copy = network()
            SAM(torch.optim.SGD(copy.parameters(), lr=0.1), rho=0.3).step(
                closure_of(copy, SAM(torch.optim.SGD(copy.parameters(), lr=0.1)), rows)
            )
            halves.append(weights(copy))
        torch.testing.assert_close(weights(module), (halves[0] + halves[1]) / 2, rtol=1e-12, atol=1e-14)
        assert not torch.equal(weights(module), weights(reference))

    def test_refuses_what_it_cannot_average(self):
        module = network()
        optimizer = VaSSO(sgd(module), accumulate="per_microbatch")
        closure = closure_of(module, optimizer)
        with pytest.raises(ValueError, match="accumulate must be 'global' for VaSSO, which remembers vectors"):
            optimizer.step([closure, closure])
        with pytest.raises(ValueError, match=r"weights must be 2 numbers that sum to 1; got \[0.3, 0.3\]"):
            optimizer.step([closure, closure], weights=[0.3, 0.3])
        with pytest.raises(TypeError, match=r"closure must be a function or a non-empty list of functions; got \[\]"):
            optimizer.step([])


class TestGroups:
    def test_unperturbed_groups_stay_in_place_during_the_ascent(self):
        module = network()
        seen = []
        groups = [{"params": module[0].parameters(), "perturb": False}, {"params": module[2].parameters(), "rho": 0.5}]
        optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.1)
        module.register_forward_hook(lambda *_: seen.append(weights(module)))
        optimizer.step(closure_of(module, optimizer))
        moved = seen[1] - seen[0]
        first = sum(p.numel() for p in module[0].parameters())
        assert torch.equal(moved[:first], torch.zeros(first, dtype=torch.float64))
        # eps = 1e-12 beside a gradient norm of 0.06.
        assert float(moved.norm()) == pytest.approx(0.5, rel=1e-10)

    def test_zero_grad_and_groups_are_those_of_the_base(self):
        module = network()
        base = sgd(module)
        optimizer = SAM(base, rho=0.2)
        assert optimizer.param_groups is base.param_groups
        assert optimizer.state is base.state
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "rho": 0.7})
        assert [group["rho"] for group in base.param_groups] == [0.2, 0.7]

    def test_a_negative_radius_of_a_group_is_refused(self):
        module = network()
        with pytest.raises(ValueError, match="rho must be a finite number >= 0; got -1"):
            SAM(torch.optim.SGD([{"params": module.parameters(), "rho": -1.0}], lr=0.1))


class TestSchedules:
    def run(self, rho, steps: int) -> list[float]:
        module = network()
        optimizer = SAM(sgd(module), rho=rho)
        radii = []
        for _ in range(steps):
            optimizer.step(closure_of(module, optimizer))
            radii.append(optimizer.param_groups[0]["rho"])
        return radii

    def test_linear_and_cosine(self):
        assert self.run(Linear(0.0, 0.4, steps=5), 5) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
        half = 0.2 + 0.2 * math.cos(math.pi / 4)
        assert self.run(Cosine(0.4, 0.0, steps=5), 5) == pytest.approx([0.4, half, 0.2, 0.4 - half, 0.0])

    def test_any_function_of_step_and_rate(self):
        assert self.run(lambda t, lr: t * lr, 3) == pytest.approx([0.1, 0.2, 0.3])

    def test_a_run_longer_than_the_schedule_is_refused(self):
        with pytest.raises(ValueError, match="The rho schedule must cover the run; got steps=2 and this is step 3"):
            self.run(Linear(0.1, 0.2, steps=2), 3)

    def test_the_radius_lies_between_its_ends_as_the_rate_does_between_its_own(self):
        schedule = LikeLr(0.4, 0.1, lr_max=0.5, lr_min=0.1)
        assert [schedule(1, lr) for lr in (0.5, 0.2, 0.1)] == pytest.approx([0.4, 0.175, 0.1])

    def test_follows_the_learning_rate_and_resumes(self):
        def make():
            module = network()
            optimizer = SAM(sgd(module), rho=LikeLr(0.4, 0.1, lr_max=0.1))
            return module, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

        module, optimizer, schedule = make()
        for _ in range(5):
            optimizer.step(closure_of(module, optimizer))
            schedule.step()
        other, resumed, later = make()
        other.load_state_dict(module.state_dict())
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        later.load_state_dict(schedule.state_dict())
        for one, opt, plan in ((module, optimizer, schedule), (other, resumed, later)):
            for _ in range(4):
                opt.step(closure_of(one, opt))
                plan.step()
        assert torch.equal(weights(module), weights(other))
        assert resumed.param_groups[0]["rho"] == optimizer.param_groups[0]["rho"] < 0.2


@pytest.mark.parametrize("on_base", [False, True], ids=["wrapper", "base"])
def test_schedulers_do_not_warn(on_base: bool):
    module = network()
    base = sgd(module)
    optimizer = SAM(base)
    schedule = torch.optim.lr_scheduler.StepLR(base if on_base else optimizer, 1, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.step(closure_of(module, optimizer))
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.1 / 8


def test_plain_checkpoints_load_and_go_back():
    module = network()
    base = torch.optim.AdamW(module.parameters(), lr=0.01)
    closure_of(module, base)()
    base.step()
    optimizer = SAM(torch.optim.AdamW(module.parameters(), lr=0.01), rho=0.3)
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.param_groups[0]["rho"] == 0.3
    optimizer.step(closure_of(module, optimizer))
    plain = torch.optim.AdamW(module.parameters(), lr=0.01)
    plain.load_state_dict(optimizer.state_dict())
    closure_of(module, plain)()
    plain.step()
    assert int(plain.state[next(module.parameters())]["step"]) == 3


def test_diagnostics():
    module = network()
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.0), rho=0.3, diagnostics=True)
    optimizer.step(closure_of(module, optimizer))
    last = optimizer.last
    points = []
    for displacement in (0.0, 1.0):
        copy = network()
        closure = closure_of(copy, optimizer)
        if displacement:
            first = points[0][1]
            ends = torch.cumsum(torch.tensor([p.numel() for p in copy.parameters()]), 0).tolist()
            for p, end in zip(copy.parameters(), ends, strict=True):
                p.data += (0.3 * first / first.norm())[end - p.numel() : end].view_as(p)
        loss = closure_of(copy, torch.optim.SGD(copy.parameters()))()
        points.append((loss.detach(), torch.cat([p.grad.reshape(-1) for p in copy.parameters()])))
        del closure
    (clean, g), (perturbed, gp) = points
    torch.testing.assert_close(last.loss, clean)
    torch.testing.assert_close(last.gap, perturbed - clean)
    torch.testing.assert_close(last.gradient_norm, g.norm())
    torch.testing.assert_close(last.perturbed_gradient_norm, gp.norm())
    torch.testing.assert_close(last.cosine, g @ gp / (g.norm() * gp.norm()))
    assert float(last.displacement_norm) == pytest.approx(0.3)
    assert (last.evaluations, last.forwards, last.skipped) == (2, 0, False)


class TestRefusals:
    def test_a_closure_without_backward_is_named(self):
        module = network()
        optimizer = SAM(sgd(module))
        with pytest.raises(ValueError, match="closure must call backward on the loss; after it no parameter"):
            optimizer.step(lambda: nn.functional.cross_entropy(module(X), Y))

    def test_a_closure_that_returns_nothing_is_named(self):
        module = network()
        optimizer = SAM(sgd(module))
        with pytest.raises(TypeError, match="closure must return the loss, a tensor of one number; got NoneType"):
            optimizer.step(lambda: closure_of(module, optimizer)() and None)

    @pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
    def test_radius(self, rho: float):
        with pytest.raises(ValueError, match="rho must be a finite number >= 0"):
            SAM(sgd(network()), rho=rho)

    def test_bases(self):
        with pytest.raises(TypeError, match=r"base_optimizer must take its gradients from \.grad; got LBFGS"):
            SAM(torch.optim.LBFGS(network().parameters()))
        # Its groups have a rho already, which would have been the radius.
        with pytest.raises(TypeError, match=r"base_optimizer must have no 'rho' of its own .*; got Adadelta\."):
            SAM(torch.optim.Adadelta(network().parameters()))
        with pytest.raises(TypeError, match=r"base_optimizer must be a constructed torch optimizer; got the class SGD"):
            SAM(torch.optim.SGD)
        with pytest.raises(TypeError, match="base_optimizer must be a plain optimizer; got SAM, already"):
            SAM(SAM(sgd(network())))
