"""Training by Lightning, automatic and by hand, against loops in plain torch in float64."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from hessprobe.optim import GSAM, KSAM, SAM, SAMSPS, EigenSAM, MicroBatchSAM, SAMPa
from hessprobe.optim.integrations import SAMModule

RHO = 0.2
STEPS = 4


@pytest.fixture(scope="module")
def pl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("pytorch_lightning")


def data(n=20):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=generator).double(), torch.randint(4, (n,), generator=generator)


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)).double()


def base_of(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def scheduled(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)


def automatic(pl, rule):
    class Logging(pl.LightningModule):
        def log(self, name, value, **_):
            self.logged.append(float(value.detach()))

    class Net(SAMModule, Logging):
        def __init__(self):
            super().__init__()
            self.net, self.logged, self.norms, self.forwards = network(), [], [], 0

        def training_step(self, batch, _):
            self.forwards += 1
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def on_before_optimizer_step(self, optimizer):
            self.norms.append(math.sqrt(sum(float(p.grad.pow(2).sum()) for p in self.parameters())))

        def configure_optimizers(self):
            optimizer = rule(self)
            schedule = scheduled(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Net()


def run(pl, module, *, size=4, resume=None, **options):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=r".*lr_scheduler\.step.*")
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            **{"enable_checkpointing": False, "max_epochs": 2, **options},
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=resume)
    return trainer


def by_hand(*, size=4, count=1, bound=None, epochs=2):
    """Train by SAM in plain torch; return the network, the losses and the norms before clipping."""
    net = network()
    base = base_of(net.parameters())
    schedule = scheduled(base)
    parameters, (x, y) = list(net.parameters()), data()
    losses, norms = [], []
    for _ in range(epochs):
        parts = [slice(i, i + size) for i in range(0, len(x), size)]
        for step in range(0, len(parts), count):

            def gradients(own=parts[step : step + count]):
                found = [nn.functional.cross_entropy(net(x[i]), y[i]) for i in own]
                return found, torch.autograd.grad(sum(found) / count, parameters)

            found, first = gradients()
            losses += [one.item() for one in found]
            statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
            norm = math.sqrt(sum(float(g.pow(2).sum()) for g in first))
            before = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for p, g in zip(parameters, first, strict=True):
                    p.add_(g, alpha=RHO / (norm + 1e-12))
            _, second = gradients()
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(statistics[name])
                for p, old, g in zip(parameters, before, second, strict=True):
                    p.copy_(old)
                    p.grad = g.clone()
            norms.append(math.sqrt(sum(float(g.pow(2).sum()) for g in second)))
            if bound is not None:
                torch.nn.utils.clip_grad_norm_(parameters, bound)
            base.step()
            schedule.step()
    return net, losses, norms


def distance(one, other):
    a, b = one.state_dict(), other.state_dict()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def sam(module, kind=SAM, **options):
    return kind(base_of(module.parameters()), rho=RHO, model=module, **options)


@pytest.mark.parametrize(("count", "bound"), [(1, None), (1, 0.1), (2, 0.1), (3, None)])
def test_automatic_optimization_takes_the_steps_of_a_loop_by_hand(pl, count, bound):
    # Five batches: with 2 and 3 the last step of an epoch has fewer.
    module = automatic(pl, sam)
    trainer = run(pl, module, accumulate_grad_batches=count, gradient_clip_val=bound)
    net, losses, norms = by_hand(count=count, bound=bound)
    assert distance(module.net, net) < 1e-12
    assert distance(net, network()) > 1e-3
    assert module.logged == pytest.approx(losses, rel=1e-12)
    assert module.norms == pytest.approx(norms, rel=1e-12)  # once a step, before clipping
    assert bound is None or max(norms) > bound
    assert trainer.global_step == len(norms) == 2 * math.ceil(5 / count)
    assert module.forwards == 20


@pytest.mark.parametrize("count", [1, 2])
def test_a_scaler_changes_no_step(pl, count):
    # The way of 16-mixed on a GPU; in float64 autocast casts nothing, and a power of two rounds nothing.
    from pytorch_lightning.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    module = automatic(pl, sam)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    run(pl, module, plugins=plugins, accumulate_grad_batches=count, gradient_clip_val=0.1)
    assert distance(module.net, by_hand(count=count, bound=0.1)[0]) < 1e-12
    assert scaler.get_scale() == 2.0**12


@pytest.mark.parametrize("kind", [SAMPa, EigenSAM, GSAM])
def test_rules_with_more_points_or_a_loss_equal_their_steps_with_closures(pl, kind):
    module = automatic(pl, partial(sam, kind=kind))
    run(pl, module, accumulate_grad_batches=1)
    net = network()
    optimizer = sam(net, kind)
    schedule, (x, y) = scheduled(optimizer), data()
    for _ in range(2):
        for i in range(0, len(x), 4):

            def loss(i=i):
                return nn.functional.cross_entropy(net(x[i : i + 4]), y[i : i + 4])

            def closure(loss=loss):
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return value

            optimizer.step(closure, **({"loss": loss} if optimizer.needs_loss else {}))
            schedule.step()
    assert distance(module.net, net) < 1e-12


def test_rules_that_own_their_step_are_taken(pl):
    module = automatic(pl, lambda net: SAMSPS(net.parameters(), rho=RHO, model=net))
    run(pl, module)
    assert distance(module.net, network()) > 1e-3


def test_a_training_goes_on_from_its_checkpoint(pl, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    module = automatic(pl, partial(sam, kind=SAMPa))
    run(pl, module, enable_checkpointing=True, callbacks=[saver], accumulate_grad_batches=2)
    resumed = automatic(pl, partial(sam, kind=SAMPa))
    run(pl, resumed, resume=str(tmp_path / "epoch=0.ckpt"), accumulate_grad_batches=2)
    assert distance(resumed.net, module.net) == 0
    assert len(resumed.norms) == 3


def test_what_does_not_fit_is_refused(pl):
    for rule, what in (
        (partial(sam, kind=KSAM), "KSAM must be stepped in a loop of your own, as it needs the loss of every example"),
        (partial(sam, kind=MicroBatchSAM), "accumulate must be 'global' with accumulate_grad_batches=2"),
        (partial(sam, rng="same"), "rng must be 'fresh' with accumulate_grad_batches=2; got 'same'"),
    ):
        with pytest.raises((TypeError, ValueError), match=what):
            run(pl, automatic(pl, rule), accumulate_grad_batches=2)
    module = automatic(pl, sam)
    module.on_train_batch_start = lambda batch, batch_idx: None
    with pytest.raises(RuntimeError, match=r"got 0 of the 1 of this step\. Call super\(\)\.on_train_batch_start"):
        run(pl, module)


def test_without_the_module_accumulated_gradients_are_refused(pl):
    class Plain(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return sam(self)

    module = Plain()
    assert run(pl, module).global_step == 10
    with pytest.raises(ValueError, match="gradients must be empty"):
        run(pl, Plain(), accumulate_grad_batches=2)


@pytest.mark.parametrize("way", ["closure", "first_step", "second_step", "ascend"])
def test_by_hand_it_is_counted_once_and_equals_the_loop(pl, way):
    class Manual(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization, self.hooks = network(), False, 0

        def on_before_optimizer_step(self, optimizer):
            self.hooks += 1

        def loss(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch, _):
            opt = self.optimizers()

            def closure():
                opt.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            if way == "closure":
                opt.step(closure)
            else:
                closure()
                if way == "ascend":
                    while opt.wants_ascent():
                        with opt.ascend():
                            self.manual_backward(self.loss(batch))
                    opt.descend()
                else:
                    opt.first_step()
                    self.manual_backward(self.loss(batch))
                    opt.step() if way == "first_step" else opt.second_step()
            self.lr_schedulers().step()

        def configure_optimizers(self):
            optimizer = sam(self)
            return [optimizer], [scheduled(optimizer)]

    module = Manual()
    trainer = run(pl, module)
    net, _, norms = by_hand()
    assert distance(module.net, net) < 1e-12
    assert trainer.global_step == len(norms)
    assert module.hooks == (2 if way == "closure" else 1) * len(norms)


def test_a_step_with_a_closure_is_typed_as_a_tensor():
    from typing import get_overloads

    assert [one.__annotations__["return"] for one in get_overloads(SAM.step)] == ["None", "Tensor"]


def test_the_libraries_are_imported_when_they_are_asked_for():
    import subprocess
    import sys

    code = (
        "import sys, hessprobe.optim.integrations as here\n"
        "from hessprobe.optim.integrations import AcceleratedBackward, SAMModule\n"
        "assert dir(here) == ['AcceleratedBackward', 'SAMModule', 'SAMTrainer']\n"
        "print(sorted({'transformers', 'accelerate', 'pytorch_lightning', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
