from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from invariance_nets import classify, conv_risk, dense_risk
from torch import nn

from hessprobe.invariance import find_sites
from hessprobe.invariance.check import apply
from hessprobe.invariance.run import Runner
from hessprobe.training.models import build_model


def kinds_at(risk):
    return {(site.kind, site.where) for site in find_sites(risk).sites}


def require_preserved(risk, strength=3.7, seed=0, kinds=None):
    """Apply every transform found; outputs must stay to 1e-10 while weights do not."""
    found, runner = find_sites(risk), Runner.of(risk)
    assert found.kinds
    assert kinds is None or set(found.kinds) == set(kinds)
    before = {name: tensor.clone() for name, tensor in runner.state().items()}
    for kind in found.kinds:
        applied, state = apply(runner, found.of(kind), strength, seed)
        assert applied.distance <= 1e-10, kind
        assert any(not torch.equal(state[name], before[name]) for name in before), kind
    return found


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=5),
    st.floats(0.1, 10).filter(lambda s: abs(s - 1) > 0.01),
    st.integers(0, 99),
)
def test_rescaling_and_permutation_of_dense_networks(widths, strength, seed):
    widths[-1] = max(widths[-1], 2)
    # All units of a layer may be dead: a leak keeps them alive.
    require_preserved(dense_risk(tuple(widths), nn.LeakyReLU, seed), strength, seed)


@settings(max_examples=4, deadline=None)
@given(st.integers(2, 4), st.floats(1.5, 10), st.integers(0, 99))
def test_convolutions_with_batchnorm_pooling_and_flattening(channels, strength, seed):
    everything = ("norm-scale", "layer-rescaling", "unit-rescaling", "permutation")
    found = require_preserved(conv_risk(channels, seed), strength, seed, everything)
    assert {site.where for site in found.of("unit-rescaling")} == {"norm -> two", "two -> head"}
    assert [site.where for site in found.of("norm-scale")] == ["one -> norm"]
    # A channel is four features of the flattened image.
    (head,) = [t for s in found.of("permutation") if s.where == "two -> head" for t in s.touches if t.power == -1]
    assert head.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("batchnorm", ["batch", "recalibrate"])
def test_scale_before_batchnorm_in_other_modes(batchnorm):
    require_preserved(conv_risk(batchnorm=batchnorm))


def test_eps_must_follow_the_scale():
    risk = conv_risk(batchnorm="batch")
    applied, state = apply(Runner.of(risk), find_sites(risk).of("norm-scale"), 0.1, 0)
    assert applied.distance < 1e-12
    assert applied.with_old_eps > 1e-6
    assert float(state["norm.eps"]) == pytest.approx(1e-7)


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(6, 3, batch_first=batch_first)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    net = Net().double()
    nn.init.normal_(net.attend.in_proj_bias)
    found = require_preserved(classify(net, torch.randn(5, 4, 6).double(), 3), kinds=("qk-rescaling", "vo-rescaling"))
    assert [site.size for site in found.sites] == [3, 3]


def test_vision_transformer_has_every_kind_of_its_own():
    torch.manual_seed(0)
    arguments = {"image_size": 8, "patch": 4, "layers": 1, "d_model": 6, "n_heads": 2, "in_channels": 1, "n_classes": 3}
    risk = classify(build_model("vit", arguments).double(), torch.randn(4, 1, 8, 8).double(), 3)
    kinds = ("norm-scale", "layer-rescaling", "unit-rescaling", "permutation", "qk-rescaling", "vo-rescaling")
    found = require_preserved(risk, kinds=kinds)
    assert ("permutation", "blocks.0.mlp.0 -> blocks.0.mlp.2") in kinds_at(risk)
    reasons = {skip.reason for skip in found.skips if skip.where == "blocks.0.mlp.0"}
    assert reasons == {"GELU blocks.0.mlp.1 is not positively homogeneous"}


def test_gpt_with_tied_embeddings():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.gpt = build_model("gpt", {"vocab_size": 5, "context": 4, "layers": 1, "d_model": 4, "n_heads": 2})

        def forward(self, tokens):
            return self.gpt(tokens)[:, -1]

    risk = classify(Last().double(), torch.randint(5, (6, 4)), 5)
    found = require_preserved(risk)
    assert {"qk-rescaling", "vo-rescaling"} <= set(found.kinds)
    assert "gpt.tokens.weight is used more than once" in {skip.reason for skip in found.skips}


class Transposed(nn.Module):
    """A dense layer that stores its weight (in, out), as GPT-2 of ``transformers`` does."""

    def __init__(self, width, out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, out) / 3), nn.Parameter(torch.randn(out))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.bias.shape[0])


def test_weights_stored_the_other_way_round_and_an_empty_cache():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.all, self.out, self.up, self.down = (Transposed(*each) for each in ((6, 18), (6, 6), (6, 8), (8, 3)))

        def forward(self, x):
            parts = [part.view(*x.shape[:2], 3, 2).transpose(1, 2) for part in self.all(x).split(6, dim=2)]
            query, key, value = (torch.cat([x.new_zeros(4, 3, 0, 2), part], 2) for part in parts)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            mixed = self.out(mixed.transpose(1, 2).reshape(x.shape))
            return self.down(torch.relu(self.up(mixed))).mean(1)

    torch.manual_seed(0)
    risk = classify(Net().double(), torch.randn(4, 5, 6).double(), 3)
    kinds = ("layer-rescaling", "unit-rescaling", "permutation", "qk-rescaling", "vo-rescaling")
    found = require_preserved(risk, kinds=kinds)
    assert {site.size for site in found.of("qk-rescaling") + found.of("vo-rescaling")} == {3}
    assert ("unit-rescaling", "up -> down") in kinds_at(risk)


def test_residual_stream_is_scaled_as_a_whole():
    torch.manual_seed(0)
    net = build_model("resnet", {"blocks": 1, "width": 2, "stages": 2, "in_channels": 1, "n_classes": 3}).double()
    risk = classify(net, torch.randn(3, 1, 6, 6).double(), 3)
    require_preserved(risk)
    assert ("unit-rescaling", "bn, stages.0.bn2 -> stages.0.conv1, stages.1.conv1 and 1 more") in kinds_at(risk)


@pytest.mark.parametrize("name", ["Tanh", "GELU", "Sigmoid", "ReLU6", "Hardtanh", "Softplus", "ELU"])
def test_activations_that_are_not_homogeneous_are_named(name):
    found = find_sites(dense_risk((4, 3, 3), getattr(nn, name)))
    assert found.kinds == ("permutation",)
    reasons = [skip.reason for skip in found.skips if skip.kind == "unit-rescaling"]
    assert reasons == [f"{name} 1 is not positively homogeneous"]


@pytest.mark.parametrize("function", [torch.relu, torch.abs, lambda x: torch.nn.functional.leaky_relu(x, 0.3)])
def test_homogeneous_functions_outside_modules(function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(function(self.a(x)))

    torch.manual_seed(0)
    risk = classify(Net().double(), torch.randn(5, 4).double(), 3)
    assert ("unit-rescaling", "a -> b") in kinds_at(risk)


@pytest.mark.parametrize("dead", [False, True])
def test_outputs_refute_what_the_graph_allows(dead):
    # Sorting is homogeneous and passes the numbers 1 .. n as they are, but mixes units. Where the next layer is dead no
    # output moves at these weights; at disturbed ones it does.
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(torch.sort(self.a(x), -1).values)

    torch.manual_seed(0)
    net = Net().double()
    if dead:
        nn.init.zeros_(net.b.weight)
    found = find_sites(classify(net, torch.randn(5, 4).double(), 3))
    assert found.kinds == ("layer-rescaling",)
    assert {skip.kind for skip in found.skips if "the outputs move by" in skip.reason} == {
        "unit-rescaling",
        "permutation",
    }


def test_a_layer_without_active_units_is_still_homogeneous():
    net = dense_risk((4, 3, 3)).module
    nn.init.constant_(net[0].bias, -100.0)
    assert ("unit-rescaling", "0 -> 2") in kinds_at(classify(net, torch.randn(5, 4).double(), 3))


def test_shared_weights_are_left_alone():
    net = dense_risk((3, 3, 3, 3)).module
    net[2].weight = net[0].weight
    found = find_sites(classify(net, torch.randn(5, 3).double(), 3))
    assert found.sites == ()
    assert {skip.reason for skip in found.skips} == {"0.weight is used more than once"}


def test_module_is_left_as_it_was():
    risk = conv_risk()
    risk.module.train()
    before, modes = copy.deepcopy(risk.module.state_dict()), [m.training for m in risk.module.modules()]
    found, runner = find_sites(risk), Runner.of(risk)
    for kind in found.kinds:
        apply(runner, found.of(kind), 10.0, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in risk.module.state_dict().items())
    assert [m.training for m in risk.module.modules()] == modes
    assert risk.module.norm.eps == runner.module.norm.eps == 1e-5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in runner.module.modules())
