"""Small batches put together: the same losses in fewer calls, and only where nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hessprobe.landscape import axis, evaluate, random_plane
from hessprobe.landscape.points import ACTIVATION_BYTES, Points, merged
from hessprobe.objective import EmpiricalRisk


def risk_of(sizes, loss=None, labels=None):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    generator = torch.Generator().manual_seed(1)
    data = []
    for size in sizes:
        y = torch.randint(3, (size,), generator=generator)
        y = y if labels is None else labels(y)
        data.append((torch.randn(size, 5, generator=generator), y))
    return EmpiricalRisk(module, loss or nn.CrossEntropyLoss(), data)


def with_ignored(labels):
    labels[0] = -100
    return labels


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (nn.CrossEntropyLoss(), None),
        (nn.CrossEntropyLoss(reduction="sum"), None),
        (nn.CrossEntropyLoss(), with_ignored),
    ],
)
def test_merged_batches_have_the_loss_of_all(loss, labels):
    risk = risk_of((7, 3, 5), loss, labels)
    terms = list(risk.terms())
    (whole,) = merged(terms, [10, 10, 10])
    theta = risk.theta + 0.1
    truth = sum(term.weight * term(theta).double() for term in terms)
    assert float(whole.weight * whole(theta).double()) == pytest.approx(float(truth), rel=1e-6)
    assert (whole.examples, whole.weight, whole.size) == (15, pytest.approx(1.0), sum(term.size for term in terms))


def spread_of_outputs(outputs, targets):
    """A loss that compares the examples of a batch, as contrastive ones do."""
    return nn.functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs))) + 0 * targets.sum()


def test_a_loss_that_compares_examples_keeps_its_batches():
    risk, grid = risk_of((4, 4, 4), spread_of_outputs), axis(4, -1, 1)
    plane = random_plane(risk)
    found = evaluate(risk, plane, (grid, grid))
    i, j = found.center
    truth = [[float(risk.loss(plane.point((x, y)))) for y in grid] for x in grid]
    assert found.values["loss"] == pytest.approx(np.array(truth), rel=1e-5)
    assert found.values["loss"][i, j] == float(risk.loss())


def test_groups_hold_what_the_cache_does_and_no_more():
    terms = list(risk_of((4, 4, 4, 4)).terms())
    half = ACTIVATION_BYTES // 2
    assert [term.examples for term in merged(terms, [half] * 4)] == [8, 8]
    assert merged(terms, [half + 1] * 4) is None
    assert [term.examples for term in merged(terms, [1, 1, half * 2, 1])] == [8, 4, 4]


def test_what_differs_stays_apart():
    first, second = risk_of((4, 4)).terms()
    assert merged([first, replace(second, inputs=second.inputs.double())], [1, 1]) is None
    assert merged([replace(first, separable=False), second], [1, 1]) is None
    assert merged([first, replace(second, inputs={"x": second.inputs})], [1, 1]) is None


def test_a_plane_of_small_batches_is_that_of_single_passes():
    risk, grid = risk_of((4, 4, 4)), axis(4, -1, 1)
    plane = random_plane(risk)
    points = Points(risk, ("loss", "error"))
    points.at([plane.point((0.3, 0.1)), plane.point((0.2, 0.1))])
    assert len(list(points._terms())) == 1
    found = evaluate(risk, plane, (grid, grid), ("loss", "error"))
    single = evaluate(risk, plane, (grid, grid), ("loss", "error"), mode="loop")
    assert found.values["loss"] == pytest.approx(single.values["loss"], rel=1e-5)
    assert found.values["error"] == pytest.approx(single.values["error"], abs=1e-12)
