from __future__ import annotations

import nets
import pytest
import torch
from sharp_objectives import Function, Rectifier

from hessprobe import estimators
from hessprobe.sharpness import (
    Neighborhood,
    ascent_direction,
    average_direction,
    m_sharpness,
    scale_of,
    worst_direction,
)

NEURONS = (2.0, 0.5, 3.0, 0.25, 1.5)
LAYER = (3.0,) * 5


def numbers(risk, adaptive, norm="l2"):
    near = Neighborhood(risk, adaptive=adaptive, norm=norm)
    found = {
        "worst": worst_direction(near, 0.3, steps=6)[0].value,
        "ascent": ascent_direction(near, 0.3)[0].value,
        "average": average_direction(near, 0.3, n_probes=8)[0].value,
        "m": m_sharpness(near, 0.3, 4)[0].value,
        "lambda": float(near.top.values[0]),
        "trace": near.trace.value,
        "frob": estimators.frobenius_norm(near.operator, n_probes=100).value,
    }
    found["model"] = ascent_direction(near, 0.3)[0].predicted.value
    return found


@pytest.mark.parametrize(
    ("adaptive", "factors", "norm"),
    [
        ("elementwise", NEURONS, "l2"),
        ("elementwise", NEURONS, "linf"),
        ("filter", LAYER, "l2"),
        ("layer", LAYER, "l2"),
        ("layer", LAYER, "linf"),
    ],
)
def test_adaptive_numbers_do_not_see_rescaling_and_plain_ones_do(adaptive, factors, norm):
    net = Rectifier()
    before, after = (numbers(one.risk(), adaptive, norm) for one in (net, net.rescaled(factors)))
    assert after == pytest.approx(before, rel=1e-7)


def test_plain_numbers_and_layer_scales_under_neuron_rescaling_change():
    net = Rectifier()
    for adaptive in ("none", "layer"):
        before, after = (numbers(one.risk(), adaptive) for one in (net, net.rescaled(NEURONS)))
        for name in before:
            assert abs(after[name] / before[name] - 1) > 0.02, (adaptive, name)


def test_scales_by_hand():
    risk = nets.cnn().risk()
    named = risk.layout.split(risk.theta)

    def scales(adaptive, eta=0.0):
        return risk.layout.split(scale_of(risk, adaptive, eta=eta))

    weight, bias = named["3.weight"], named["3.bias"]
    assert torch.equal(scales("elementwise")["3.weight"], weight.abs())
    assert torch.allclose(scales("filter")["3.weight"][1], weight[1].norm().expand(2, 3, 3))
    assert torch.equal(scales("filter")["3.bias"], bias.abs())
    assert torch.allclose(scales("layer")["3.weight"], weight.norm().expand(weight.shape))
    assert torch.allclose(scales("layer", 0.5)["3.bias"], (bias.norm() + 0.5).expand(2))
    assert scale_of(risk, "none") is None


def test_adaptive_curvature_is_that_of_the_scaled_matrix():
    risk = nets.mlp().risk()
    near = Neighborhood(risk, adaptive="elementwise")
    C = risk.theta.abs()
    dense = C[:, None] * nets.full_hessian(risk) * C
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert float(near.top.values[0]) == pytest.approx(top, rel=1e-5, abs=float(near.top.errors[0]))
    assert near.trace.value == pytest.approx(float(dense.trace()), rel=1e-9)
    assert torch.allclose(near.operator.to_dense(), dense, atol=1e-12)


def test_adaptive_ball_contains_what_worst_finds():
    risk = nets.mlp().risk()
    one = worst_direction(risk, 0.2, adaptive="elementwise", norm="linf")[0]
    assert float(one.direction.abs().max()) <= 0.2
    moved = risk.theta + risk.theta.abs() * one.direction
    assert float(risk.loss(moved) - risk.loss()) == pytest.approx(one.value, rel=1e-10)


def test_bad_scales_are_refused():
    zero = Function([lambda x: (x**2).sum()], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"theta must hold a weight other than 0 for adaptive='layer'; got zeros only"):
        scale_of(zero, "layer")
    assert scale_of(zero, "layer", eta=0.1).tolist() == [0.1, 0.1]
    with pytest.raises(ValueError, match=r"adaptive must be one of none, elementwise, filter, layer; got 'filtre'"):
        scale_of(zero, "filtre")
    with pytest.raises(ValueError, match=r"eta must be a finite number >= 0; got -1"):
        scale_of(zero, "layer", eta=-1)
