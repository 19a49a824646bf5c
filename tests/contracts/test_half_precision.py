"""Weights in bfloat16: products carry its 8 bits, what is made of them is computed in more, and the error says so."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprobe as hp
from hessprobe.errors import NumericalWarning
from hessprobe.objective.base import Objective


def risks() -> tuple[Objective, Objective]:
    """The same rounded weights and inputs in bfloat16 and in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).bfloat16()
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = torch.randint(4, (64,), generator=torch.Generator().manual_seed(2))
    made = [
        hp.EmpiricalRisk(copy.deepcopy(model).to(dtype), F.cross_entropy, [(x.to(dtype), y)])
        for dtype in (torch.bfloat16, torch.float64)
    ]
    return made[0], made[1]


def test_products_are_those_of_the_weights_to_the_digits_that_there_are():
    low, exact = risks()
    V = torch.randn(4, exact.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64).bfloat16()
    found, right = hp.Hessian(low).matvecs(V), hp.Hessian(exact).matvecs(V.double())
    assert found.dtype == torch.bfloat16
    assert float((found.double() - right).norm() / right.norm()) < 0.02


def test_a_basis_in_bfloat16_has_its_eigenvalue_in_float64_and_the_rounding_in_its_bracket():
    low, exact = risks()
    right = float(torch.linalg.eigvalsh(hp.Hessian(exact).to_dense())[-1])
    found = hp.measure("lambda-max", low, rtol=0.05)
    assert found.interval()[0] <= right <= found.interval()[1]
    assert found.value == pytest.approx(right, rel=0.01)
    # A bracket narrower than the rounding of the products would be a claim that they cannot bear.
    assert found.interval()[1] - found.interval()[0] > 2**-8 * right
    with pytest.warns(NumericalWarning, match="did not converge to tol=0.001"):
        pairs = hp.eigsh(hp.Hessian(low), k=1, rtol=0.05)
    assert pairs.values.dtype == torch.float64


@pytest.mark.parametrize("name", ["trace", "frob"])
def test_sums_over_probes_are_those_of_the_float64_matrix_within_their_interval(name: str):
    low, exact = risks()
    H = hp.Hessian(exact).to_dense()
    right = float(H.trace() if name == "trace" else H.norm())
    found = hp.measure(name, low, n_probes=100, seed=1)
    assert abs(found.value - right) <= 4 * (found.half_width(0.95) / 1.96)
    assert found.half_width(0.95) < right
