from __future__ import annotations

import oracles
import pytest
import torch

from hessprobe.operators import DenseOperator
from hessprobe.sharpness.worst import maximise, quadratic_model


def model(b, T, z):
    return b @ z + z @ T @ z / 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rho", [0.01, 1.0, 30.0])
def test_maximiser_satisfies_the_conditions_that_characterise_it(seed, rho):
    generator = torch.Generator().manual_seed(seed)
    shift = (-4.0, 0.0, 4.0)[seed % 3]
    T = oracles.symmetric(torch.randn(5, generator=generator).double() + shift, seed)
    b = torch.randn(5, generator=generator).double()
    z = maximise(b, T, rho)
    length = float(z.norm())
    assert length <= rho * (1 + 1e-9)
    mu = float(z @ (T @ z + b)) / length**2
    assert torch.allclose(T @ z + b, mu * z, atol=1e-7 * (1 + rho))
    assert mu >= max(float(torch.linalg.eigvalsh(T).max()), 0.0) - 1e-7
    assert abs(length - rho) < 1e-9 * rho or abs(mu) < 1e-7


def test_hard_case_is_filled_by_the_top_eigenvector():
    T, b = torch.diag(torch.tensor([3.0, 1.0]).double()), torch.tensor([0.0, 1.0]).double()
    z = maximise(b, T, 2.0)
    # (3 - 1) z_2 = 1, and z_1^2 = 4 - z_2^2.
    assert z.abs().tolist() == pytest.approx([(4 - 0.25) ** 0.5, 0.5], rel=1e-12)
    assert float(model(b, T, z)) == pytest.approx(3 * 3.75 / 2 + 0.5 + 0.125)


def test_no_gradient_and_no_positive_curvature_stay_at_zero_or_go_to_the_top():
    T = torch.diag(torch.tensor([2.0, 1.0]).double())
    assert maximise(torch.zeros(2).double(), T, 0.5).abs().tolist() == pytest.approx([0.5, 0.0])
    assert maximise(torch.zeros(2).double(), -T, 0.5).tolist() == [0.0, 0.0]
    assert maximise(torch.zeros(2).double(), 0 * T, 0.5).tolist() == [0.0, 0.0]


def test_krylov_space_finds_the_maximum_over_the_whole_space():
    A = oracles.symmetric(oracles.eigenvalues("outliers", 60))
    g = torch.randn(60, generator=torch.Generator().manual_seed(1)).double()
    top = torch.linalg.eigh(A).eigenvectors[:, -1:].T.contiguous()
    for rho in (0.01, 0.5, 20.0):
        found = quadratic_model(DenseOperator(A), g, top)
        z, first, second = found.best(rho)
        whole = maximise(g, A, rho)
        assert first + second == pytest.approx(float(model(g, A, whole)), rel=2e-3)
        u = found.lift(z)
        assert first + second == pytest.approx(float(model(g, A, u)), rel=1e-10)
