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


@pytest.mark.parametrize(("name", "most"), [("logdet", 500), ("density", 4 * 64)])
def test_a_sweep_searches_no_eigenvectors_first(name: str, most: int) -> None:
    d = 1500
    values = torch.cat([torch.arange(1, 31).double() / 100, torch.linspace(-0.01, 0.02, d - 30).double()])
    found = hp.measure(
        name, Quadratic(torch.diag(values)), seed=1, engine="double_backward", shift=0.01, data_error=False
    )
    # 96 eigenvectors, ten products for each, and a sweep.
    assert found.matvecs <= most
    low, high = found.interval(0.995)
    ascending = values.sort().values
    truth = {"logdet": float(torch.log(values**2 + 1e-4).sum() / 2), "density": float(ascending[d // 2 - 1])}[name]
    assert low <= truth <= high
    if name == "logdet":
        assert found.half_width() <= 0.0105 * abs(truth)
