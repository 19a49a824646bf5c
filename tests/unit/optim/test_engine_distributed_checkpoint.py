"""Resuming through ``torch.distributed.checkpoint``, and compiling the phases of a step."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from hessprobe.optim import SAM, VaSSO
from hessprobe.optim.engine import Displacement, TensorList
from hessprobe.optim.engine.weights import Weights
from hessprobe.optim.rules.intermittent import sharp_direction, with_sharp_part

X = torch.linspace(-1, 1, 24).view(8, 3)
Y = torch.arange(8) % 2


def build(make, base):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return module, make(base(module.parameters(), lr=0.05))


def run(module, optimizer, steps):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(X), Y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def momentum_sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("base", [momentum_sgd, torch.optim.AdamW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("make", [SAM, lambda b: VaSSO(b, theta=0.3)], ids=["SAM", "VaSSO"])
def test_distributed_checkpoint_resumes_exactly(make, base, tmp_path):
    module, optimizer = build(make, base)
    run(module, optimizer, 5)
    weights, state = get_state_dict(module, optimizer)
    with warnings.catch_warnings():
        # torch says that a checkpoint without a process group is of one process: it is.
        warnings.simplefilter("ignore")
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / "run", no_dist=True)
        other, resumed = build(make, base)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        target = dict(zip(("model", "optimizer"), get_state_dict(other, resumed), strict=True))
        dcp.load(target, checkpoint_id=tmp_path / "run", no_dist=True)
    set_state_dict(other, resumed, model_state_dict=target["model"], optim_state_dict=target["optimizer"])
    run(module, optimizer, 5)
    run(other, resumed, 5)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.t == optimizer.t == 11


@pytest.mark.parametrize(
    ("foreach", "backend"), [(False, "eager"), (True, "eager"), (True, "aot_eager")], ids=["loop", "foreach", "aot"]
)
def test_the_phases_compile_without_graph_breaks(foreach: bool, backend: str):
    """Ascending, restoring, combining gradients as GSAM and LookSAM do; the base step is torch's own."""
    shapes = [(4, 3), (4,)]
    parameters, first, second = ([torch.randn(shape) for shape in shapes] for _ in range(3))

    def phases(
        weights: list[torch.Tensor], first: list[torch.Tensor], second: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        engine = Weights()
        engine.bind(weights, foreach=foreach)
        here, there = TensorList(first, foreach), TensorList(second, foreach)
        factor = 0.1 / (here.norm() + 1e-12)
        engine.displace(Displacement(here, [factor] * len(first), is_uniform=True))
        displaced = [w.clone() for w in weights]
        engine.displace(there.unit().times(0.2))
        again = [w.clone() for w in weights]
        engine.restore()
        surrogate = there.clone().add_(here.minus(here.project(there)), alpha=-0.4)
        reused = with_sharp_part(surrogate, sharp_direction(there, here), 0.7)
        return displaced, again, reused.tensors

    expected = phases([p.clone() for p in parameters], first, second)
    compiled = torch.compile(phases, fullgraph=True, backend=backend)
    live = [p.clone() for p in parameters]
    for ours, theirs in zip(compiled(live, first, second), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for a, b in zip(live, parameters, strict=True):
        assert torch.equal(a, b)
