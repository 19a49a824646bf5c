"""Buffers, random numbers, scaled gradients, hand-written loops, distributed checkpoints, compiled phases."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from hessprobe.optim import GAM, GSAM, SAM, WSAM, MomentumSAM, VaSSO


def closure_of(module, optimizer, x, y, scaler=None):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    return closure


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=generator, dtype=dtype), torch.arange(16) % 3


def weights(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).clone()


class BehindTheCounter(nn.SyncBatchNorm):
    """Writes its statistics as the kernels of several GPUs do: unseen by the version counter of the buffers."""

    def forward(self, x):
        batch_mean, batch_var = x.mean(0), x.var(0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.data.lerp_(batch_mean, share)
            self.running_var.data.lerp_(batch_var, share)
        return (x - batch_mean) / (batch_var + self.eps).sqrt() * self.weight + self.bias


class TestBuffers:
    def network(self, momentum, layer=nn.BatchNorm1d):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), layer(5, momentum=momentum), nn.Linear(5, 3)).double()

    # SyncBatchNorm takes its means over GPUs; on a CPU, where torch refuses that, its layer is there with one process.
    @pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.SyncBatchNorm, BehindTheCounter])
    @pytest.mark.parametrize("momentum", [0.1, None])
    @pytest.mark.parametrize("optimizer_class", [SAM, GSAM])
    def test_statistics_are_updated_once_a_step(self, momentum, optimizer_class, layer):
        x, y = data()
        module = self.network(momentum, layer)
        optimizer = optimizer_class(torch.optim.SGD(module.parameters(), lr=0.3), rho=1.0, model=module)
        for _ in range(4):
            plain = copy.deepcopy(module)
            plain(x)
            optimizer.step(closure_of(module, optimizer, x, y))
            for name, buffer in plain.named_buffers():
                assert torch.equal(dict(module.named_buffers())[name], buffer), name
        assert int(module[1].num_batches_tracked) == 4

    def test_without_the_model_every_pass_counts(self):
        x, y = data()
        module = self.network(0.1)
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.3), rho=1.0)
        optimizer.step(closure_of(module, optimizer, x, y))
        assert int(module[1].num_batches_tracked) == 2

    def test_instance_norm_and_a_buffer_of_ones_own(self):
        class Average(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("mean", torch.zeros(5, dtype=torch.float64))

            def forward(self, x):
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
                return x - self.mean

        x, y = data()
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 5), Average(), nn.Linear(5, 3)).double()
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.3), rho=1.0, model=module)
        plain = copy.deepcopy(module)
        plain(x)
        optimizer.step(closure_of(module, optimizer, x, y))
        assert torch.equal(module[1].mean, plain[1].mean)


class TestRandomness:
    def run(self, rng, rho, seed=0):
        x, y = data()
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.3), rho=rho, rng=rng)
        torch.manual_seed(seed)
        for _ in range(3):
            optimizer.step(closure_of(module, optimizer, x, y))
        return weights(module), torch.get_rng_state()

    def test_same_masks_make_rho_zero_the_base_and_advance_once(self):
        x, y = data()
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
        torch.manual_seed(0)
        for _ in range(3):
            closure_of(module, optimizer, x, y)()
            optimizer.step()
        replayed, state = self.run("same", 0.0)
        assert torch.equal(replayed, weights(module))
        assert torch.equal(state, torch.get_rng_state())
        assert not torch.equal(self.run("fresh", 0.0)[0], weights(module))


class TestScaler:
    def network(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    @pytest.mark.parametrize("make", [SAM, GSAM, VaSSO, WSAM], ids=lambda c: c.__name__)
    def test_same_trajectory_as_without(self, make):
        x, y = data(torch.float32)
        paths = []
        for scale in (None, 2.0**14):
            module = self.network()
            optimizer = make(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), rho=0.2)
            scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
            for _ in range(6):
                optimizer.step(closure_of(module, optimizer, x, y, scaler), scaler=scaler)
                if scaler is not None:
                    scaler.update()
            paths.append(weights(module))
        # A power of two scales without rounding.
        torch.testing.assert_close(paths[1], paths[0], rtol=2e-6, atol=1e-7)

    @pytest.mark.parametrize("bad_pass", [1, 2])
    def test_an_infinite_gradient_skips_the_step_and_lowers_the_scale(self, bad_pass):
        x, y = data(torch.float32)
        module = self.network()
        optimizer = VaSSO(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), rho=0.2, theta=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer.step(closure_of(module, optimizer, x, y, scaler), scaler=scaler)
        scaler.update()
        before, state = weights(module), copy.deepcopy(optimizer.state_dict())
        calls = 0

        def closure():
            nonlocal calls
            calls += 1
            loss = closure_of(module, optimizer, x, y, scaler)()
            if calls == bad_pass:
                module[0].weight.grad[0, 0] = float("inf")
            return loss

        optimizer.step(closure, scaler=scaler)
        scaler.update()
        assert optimizer.last.skipped
        assert scaler.get_scale() == 512.0
        assert torch.equal(weights(module), before)
        for index, entry in state["state"].items():
            for name, value in entry.items():
                assert torch.equal(optimizer.state_dict()["state"][index][name], value)
        assert optimizer.param_groups[0]["sam_step"] == 1
        optimizer.step(closure_of(module, optimizer, x, y, scaler), scaler=scaler)
        scaler.update()
        assert not torch.equal(weights(module), before)

    def test_stepping_through_the_scaler_is_refused(self):
        x, y = data(torch.float32)
        module = self.network()
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        closure = closure_of(module, optimizer, x, y, scaler)
        closure()
        before = weights(module)
        with pytest.raises(
            RuntimeError, match=r"SAM must be stepped with opt.step\(closure, scaler=scaler\); got scaler.step"
        ):
            scaler.step(optimizer, closure)
        assert torch.equal(weights(module), before)
        optimizer.step(closure, scaler=scaler)
        assert not torch.equal(weights(module), before)


class TestByHand:
    def network(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    @pytest.mark.parametrize("make", [SAM, GSAM, VaSSO, WSAM], ids=lambda c: c.__name__)
    def test_equals_step(self, make):
        x, y = data()
        one, two = self.network(), self.network()
        optimizer = make(torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9), rho=0.2)
        manual = make(torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.9), rho=0.2)
        for _ in range(4):
            optimizer.step(closure_of(one, optimizer, x, y))
            manual.zero_grad()
            nn.functional.cross_entropy(two(x), y).backward()
            while manual.wants_ascent():
                with manual.ascend():
                    nn.functional.cross_entropy(two(x), y).backward()
            manual.descend()
        assert torch.equal(weights(one), weights(two))
        assert manual.last.evaluations == 2

    def test_an_exception_inside_restores(self):
        x, y = data()
        module = self.network()
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2)
        before = weights(module)
        nn.functional.cross_entropy(module(x), y).backward()

        def body() -> None:
            with optimizer.ascend():
                assert not torch.equal(weights(module), before)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            body()
        assert torch.equal(weights(module), before)

    def test_wrong_order_is_named(self):
        x, y = data()
        module = self.network()
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2)
        nn.functional.cross_entropy(module(x), y).backward()
        with pytest.raises(RuntimeError, match="SAM wants another evaluation before descend"):
            optimizer.descend()
        nn.functional.cross_entropy(module(x), y).backward()
        with optimizer.ascend():
            nn.functional.cross_entropy(module(x), y).backward()
        with pytest.raises(RuntimeError, match="SAM wants no further ascend"), optimizer.ascend():
            pass

    def test_the_two_phases_of_other_packages(self):
        x, y = data()
        one, two = self.network(), self.network()
        optimizer = SAM(torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9), rho=0.2)
        phased = SAM(torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.9), rho=0.2)
        for _ in range(3):
            optimizer.step(closure_of(one, optimizer, x, y))
            nn.functional.cross_entropy(two(x), y).backward()
            phased.first_step(zero_grad=True)
            nn.functional.cross_entropy(two(x), y).backward()
            phased.second_step(zero_grad=True)
        assert torch.equal(weights(one), weights(two))
        assert all(p.grad is None for p in two.parameters())
        with pytest.raises(RuntimeError, match=r"second_step\(\) must follow first_step\(\)"):
            phased.second_step()

    @pytest.mark.parametrize("end", ["second_step", "step", "descend"])
    @pytest.mark.parametrize("make", [SAM, GAM], ids=lambda c: c.__name__)
    def test_however_a_phase_ends_the_step_is_taken(self, make, end):
        x, y = data()
        one, two = self.network(), self.network()
        optimizer = make(torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9), rho=0.2)
        phased = make(torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.9), rho=0.2)
        for _ in range(3):
            optimizer.step(closure_of(one, optimizer, x, y), clip_grad_norm=0.05)
            phased.zero_grad()
            nn.functional.cross_entropy(two(x), y).backward()
            for _ in range(optimizer.last.evaluations - 1):
                phased.first_step()
                nn.functional.cross_entropy(two(x), y).backward()
            getattr(phased, end)(clip_grad_norm=0.05)
            assert torch.equal(weights(one), weights(two))

    def test_a_phase_that_ends_too_early_or_in_a_closure_is_refused(self):
        x, y = data()
        module = self.network()
        optimizer = GAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2)
        before = weights(module)
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.first_step()
        nn.functional.cross_entropy(module(x), y).backward()
        with pytest.raises(RuntimeError, match=r"must not be called inside a step by hand; .* second_step\(\)"):
            optimizer.step(closure_of(module, optimizer, x, y))
        with pytest.raises(RuntimeError, match="GAM wants another evaluation before descend"):
            optimizer.step()
        assert torch.equal(weights(module), before)
        optimizer.step(closure_of(module, optimizer, x, y))
        assert not torch.equal(weights(module), before)

    @pytest.mark.parametrize("on_base", [False, True])
    def test_schedulers_and_hooks_see_the_step(self, on_base):
        x, y = data()
        module = self.network()
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2)
        seen = []
        optimizer.register_step_post_hook(lambda *_: seen.append(1))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer.base_optimizer if on_base else optimizer, 1)
        nn.functional.cross_entropy(module(x), y).backward()
        with optimizer.ascend():
            nn.functional.cross_entropy(module(x), y).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.descend()
            schedule.step()
        assert seen == [1]

    @pytest.mark.parametrize("momentum", [0.1, None])
    @pytest.mark.parametrize("phases", [False, True])
    def test_statistics_are_updated_once(self, momentum, phases):
        x, y = data()
        module = TestBuffers().network(momentum)
        optimizer = GAM(torch.optim.SGD(module.parameters(), lr=0.3), rho=1.0, model=module)
        for _ in range(3):
            plain = copy.deepcopy(module)
            plain(x)
            nn.functional.cross_entropy(module(x), y).backward()
            for _ in range(3):
                if phases:
                    optimizer.first_step()
                with nullcontext() if phases else optimizer.ascend():
                    nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
            for name, buffer in plain.named_buffers():
                assert torch.equal(dict(module.named_buffers())[name], buffer), name

    def test_statistics_of_the_only_pass_stay(self):
        x, y = data()
        module = TestBuffers().network(0.1)
        base = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
        optimizer = MomentumSAM(base, rho=1.0, model=module)
        optimizer.step(closure_of(module, optimizer, x, y))
        before = [buffer.clone() for buffer in module.buffers()]
        with optimizer.ascend():
            nn.functional.cross_entropy(module(x), y).backward()
        optimizer.descend()
        assert not any(torch.equal(old, new) for old, new in zip(before, module.buffers(), strict=True))


class TestShardsOfABatch:
    """What holds for one closure holds for each of several."""

    @pytest.mark.parametrize("accumulate", ["global", "per_microbatch"])
    def test_statistics_see_every_shard_once(self, accumulate):
        x, y = data()
        module = TestBuffers().network(0.1)
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.3), rho=1.0, model=module, accumulate=accumulate)
        parts = [slice(0, 8), slice(8, 16)]
        for _ in range(3):
            plain = copy.deepcopy(module)
            for part in parts:
                plain(x[part])
            optimizer.step([closure_of(module, optimizer, x[part], y[part]) for part in parts])
            for name, buffer in plain.named_buffers():
                assert torch.equal(dict(module.named_buffers())[name], buffer), name

    def test_same_masks_in_both_passes_and_other_masks_for_each_shard(self):
        x, y = data()
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        seen = []
        module[1].register_forward_hook(lambda _, inputs, output: seen.append((output != 0) | (inputs[0] == 0)))
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.3, rng="same")
        torch.manual_seed(7)
        optimizer.step([closure_of(module, optimizer, x[:8], y[:8]), closure_of(module, optimizer, x[8:], y[8:])])
        first, second, again_first, again_second = seen
        assert torch.equal(first, again_first)
        assert torch.equal(second, again_second)
        assert not torch.equal(first, second)
        state = torch.get_rng_state()
        torch.manual_seed(7)
        module(x[:8])
        module(x[8:])
        assert torch.equal(state, torch.get_rng_state())
