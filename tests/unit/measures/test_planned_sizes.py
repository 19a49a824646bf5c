"""What a measure with a tolerance spends, counted."""

from __future__ import annotations

import pytest
import torch

import hessprobe as hp
from hessprobe.estimators import frobenius_norm
from hessprobe.objective.analytic import Quadratic


def rotated(values: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return (Q * values) @ Q.T


@pytest.mark.parametrize("kind", ["flat", "decaying"])
def test_a_norm_searches_no_eigenvectors_that_its_pilot_does_without(kind: str) -> None:
    d = 500
    values = torch.linspace(-1, 1, d).double() if kind == "flat" else torch.arange(1, d + 1).double() ** -1.5
    H = rotated(values)
    H = (H + H.T) / 2
    found = hp.measure("frob", Quadratic(H), rtol=0.02, seed=1, engine="double_backward")
    low, high = found.interval(0.9999)
    assert low <= float(H.norm()) <= high
    alone = frobenius_norm(hp.Hessian(Quadratic(H), engine="double_backward"), rtol=0.02, seed=1)
    assert (found.value, found.matvecs) == (pytest.approx(alone.value, rel=1e-10), alone.matvecs)
    # 119 to 170 where 16 eigenvectors were searched first.
    assert found.matvecs <= 60


def test_a_density_is_measured_as_far_as_its_band_asks_for() -> None:
    d = 2_000
    values = torch.arange(1, d + 1).double() ** -1.5
    H = Quadratic(torch.diag(values))
    found = hp.measure("density", H, seed=1, engine="double_backward", data_error=False)
    alone = hp.spectral_density(hp.Hessian(H, engine="double_backward"), seed=1)
    assert alone.half_width() <= 0.02
    assert found.matvecs == alone.matvecs <= 8 * 56
    low, high = found.interval(0.995)
    assert low <= float(values[d // 2]) <= high


def test_a_density_that_chains_do_not_reach_is_that_of_the_whole_matrix() -> None:
    d = 800
    values = torch.linspace(-1, 1, d).double()
    found = hp.spectral_density(hp.Hessian(Quadratic(torch.diag(values)), engine="double_backward"), atol=0.03)
    assert (found.samples, found.half_width()) == (0, 0.0)
    # What chains had made before, half as many products at most, is lost.
    assert d < found.matvecs <= 1.5 * d


def test_a_log_determinant_searches_no_eigenvectors_first() -> None:
    d = 1500
    values = torch.cat([torch.arange(1, 31).double() / 100, torch.linspace(-0.01, 0.02, d - 30).double()])
    found = hp.measure(
        "logdet", Quadratic(torch.diag(values)), seed=1, engine="double_backward", shift=0.01, data_error=False
    )
    # 96 eigenvectors, ten products for each, and a sweep.
    assert found.matvecs <= 500
    low, high = found.interval(0.995)
    truth = float(torch.log(values**2 + 1e-4).sum() / 2)
    assert low <= truth <= high
    assert found.half_width() <= 0.0105 * abs(truth)
