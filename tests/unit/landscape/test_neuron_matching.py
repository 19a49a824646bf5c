"""Matching of hidden units: permutations are found again, the function stays, other networks are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hessprobe.errors import UnsupportedError
from hessprobe.invariance import find_sites
from hessprobe.landscape import match
from hessprobe.objective import EmpiricalRisk
from hessprobe.training.models import build_model


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 4, 3),
    )  # fmt: skip


def resnet():
    return build_model("resnet", {"blocks": 1, "width": 4, "in_channels": 1, "n_classes": 3, "stages": 2}, seed=0)


CASES = {"mlp": (mlp, (7, 4)), "cnn": (cnn, (3, 1, 6, 6)), "resnet": (resnet, (3, 1, 6, 6))}


def risk_of(name, seed=0, state=None, **options):
    make, shape = CASES[name]
    module = make().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3 * (tensor.ndim > 1) + 0.1)
    if state is not None:
        module.load_state_dict({key: state[key] for key in module.state_dict()})
    x = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return EmpiricalRisk(module, nn.CrossEntropyLoss(), [(x, torch.arange(len(x)) % 3)], **options)


@pytest.mark.parametrize("name", list(CASES))
def test_a_permuted_network_is_put_back(name):
    target = risk_of(name)
    state, generator = dict(target.module.state_dict()), torch.Generator().manual_seed(2)
    sites = find_sites(target).of("permutation")
    # Of a residual network both the streams and what lies inside the blocks.
    assert len(sites) == {"mlp": 2, "cnn": 2, "resnet": 4}[name]
    for site in sites:
        state = site.move(state, 1.0, generator)
    shuffled = risk_of(name, state=state)
    assert float((shuffled.theta - target.theta).norm()) > 0.1
    assert float(shuffled.loss()) == pytest.approx(float(target.loss()), rel=1e-12)
    before = {key: tensor.clone() for key, tensor in shuffled.module.state_dict().items()}
    found, moved = match(target, shuffled)
    assert found.keys() == target.module.state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in target.module.state_dict().items())
    assert sum(moved.values()) > 0
    assert all(torch.equal(shuffled.module.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", list(CASES))
def test_matching_keeps_the_function_and_comes_nearer(name):
    one, two = risk_of(name), risk_of(name, seed=1)
    found, _ = match(one, two)
    near = risk_of(name, state=found)
    assert float(near.loss()) == pytest.approx(float(two.loss()), rel=1e-10)
    assert float((near.theta - one.theta).norm()) < float((two.theta - one.theta).norm())


def test_what_cannot_be_matched_says_so():
    module = nn.Linear(4, 3).double()
    data = [(torch.ones(2, 4, dtype=torch.float64), torch.tensor([0, 1]))]
    risk = EmpiricalRisk(module, nn.CrossEntropyLoss(), data)
    with pytest.raises(UnsupportedError, match=r"^Neurons cannot be matched: .* Leave the matching out"):
        match(risk, risk)
    part = risk_of("mlp", params=["0.*"])
    with pytest.raises(UnsupportedError, match=r"'1\.bias' is not among the parameters of the line"):
        match(part, part)
