"""Probes inside the blocks of single modules: same trace and diagonal, without the noise from between layers."""

from __future__ import annotations

import nets
import pytest
import torch
from stats import assert_agrees
from torch import nn

from hessprobe.estimators import diagonal, trace
from hessprobe.estimators.task import block_diagonal
from hessprobe.hvp import Hessian
from hessprobe.operators import Counted, DenseOperator


def _hessian(activation: type[nn.Module]) -> tuple[Hessian, torch.Tensor]:
    risk = nets.mlp((24, 24, 24, 24), activation).risk()
    return Hessian(risk, engine="double_backward"), nets.full_hessian(risk)


def test_a_piecewise_linear_network_is_exact() -> None:
    H, matrix = _hessian(nn.ReLU)
    assert H.surrogate is not None
    estimate = trace(block_diagonal(H), n_probes=2, method="hutchinson", control_variate=True, data_error=False)
    assert estimate.method == "hutchinson+surrogate"
    assert estimate.value == pytest.approx(float(matrix.trace()), rel=1e-12)
    # Nothing is left to sample.
    assert estimate.errors.probe < 1e-12 * estimate.value
    entries = diagonal(H, n_probes=2, blockwise=True)
    torch.testing.assert_close(entries.values, matrix.diagonal(), rtol=1e-10, atol=1e-13)
    # And that is seen before anything is.
    found = trace(H, rtol=1e-3, data_error=False)
    assert found.method == "exact"
    assert found.value == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert found.matvecs < 8


def test_a_smooth_network_is_estimated() -> None:
    H, matrix = _hessian(nn.Tanh)
    truth = float(matrix.trace())
    inside = block_diagonal(H)
    estimates = [trace(inside, n_probes=8, method="hutchinson", seed=seed) for seed in range(40)]
    for estimate in estimates:
        assert_agrees(estimate, truth, 0.3 * truth)
    scores = torch.tensor([(e.value - truth) / e.errors.probe for e in estimates if e.errors.probe > 0])
    assert float(scores.abs().max()) < 4
    assert float(scores.square().mean()) < 3


def test_groups_are_modules_and_bounded() -> None:
    H, _ = _hessian(nn.Tanh)
    blocks = block_diagonal(H)
    assert blocks is not None
    assert blocks.groups == (slice(0, 35), slice(35, 59))
    names = {f"layer{i}.weight": slice(i, i + 1) for i in range(20)}
    many = block_diagonal(DenseOperator(torch.eye(20), blocks=names))
    assert many is not None
    assert [g.stop - g.start for g in many.groups] == [3, 3, 3, 3, 3, 3, 2]
    assert block_diagonal(DenseOperator(torch.eye(4))) is None


def test_a_pass_costs_a_product_a_block() -> None:
    H, _ = _hessian(nn.Tanh)
    counted = Counted(H)
    diagonal(counted, n_probes=3, blockwise=True, control_variate=False)
    assert counted.matvec_count == pytest.approx(6)
