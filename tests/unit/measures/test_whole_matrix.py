"""Measures of a matrix small enough for d products: exact, at that cost, and not bought twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hessprobe as hp
from hessprobe.measures import MeasureSettings, measure_all
from hessprobe.objective.analytic import Quadratic

SWEPT = ("logdet", "effective-dimension", "density")


@pytest.fixture(scope="module")
def risk() -> hp.EmpiricalRisk:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 9)).double()
    x, y = torch.randn(24, 6).double(), torch.randint(0, 9, (24,))
    return hp.EmpiricalRisk(net, nn.functional.cross_entropy, [(x[:12], y[:12]), (x[12:], y[12:])])


@pytest.fixture(scope="module")
def values(risk: hp.EmpiricalRisk) -> torch.Tensor:
    return torch.linalg.eigvalsh(hp.Hessian(risk).to_dense())


@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_of_a_small_network_is_the_matrix(risk: hp.EmpiricalRisk, values: torch.Tensor, name: str) -> None:
    truth = {
        "logdet": float(torch.log(values**2 + 1e-6).sum() / 2),
        "effective-dimension": float((values**2 / (values**2 + 1e-6)).sum()),
        "density": float(values[(len(values) - 1) // 2]),
    }[name]
    assert risk.dim == 533
    estimate = hp.measure(name, risk, engine="double_backward")
    assert (estimate.kind, estimate.matvecs, estimate.flags) == ("exact", 533, ())
    # A median may lie anywhere near 0; it is as exact as the eigenvalues are.
    scale = float(values.abs().max()) if name == "density" else abs(truth)
    assert estimate.value == pytest.approx(truth, rel=1e-8, abs=1e-8 * scale)
    assert estimate.half_width() <= 1e-8 * scale


def test_the_norm_comes_with_the_sweep(risk: hp.EmpiricalRisk, values: torch.Tensor) -> None:
    how = MeasureSettings(engine="double_backward")
    found = {one.measure: one.estimate for one in measure_all(["frob", "logdet"], risk, how)}
    assert found["frob"].value == pytest.approx(float(values.norm()), rel=1e-8)
    assert [one.matvecs for one in found.values()] == [533, 533]


def test_a_diagonal_that_the_trace_is_made_of_is_not_bought_again() -> None:
    generator = torch.Generator().manual_seed(0)
    H = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    risk = Quadratic(H + H.T)
    (result,) = measure_all(["diagonal"], risk, MeasureSettings(rtol=1e-4, engine="double_backward"))
    # A pilot of 12, and the products of the matrix.
    assert result.estimate.matvecs <= 12 + 40
    torch.testing.assert_close(result.arrays["diagonal"], (H + H.T).diagonal(), rtol=1e-12, atol=1e-12)
