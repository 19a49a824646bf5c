"""What a measure with a tolerance spends, counted."""

from __future__ import annotations

import pytest
import torch

import hessprobe as hp
from hessprobe.estimators import frobenius_norm
from hessprobe.measures import MeasureSettings
from hessprobe.measures.registry import measure_all
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
    d = 4_400
    values = torch.arange(1, d + 1).double() ** -1.5
    H = Quadratic(torch.diag(values))
    found = hp.measure("density", H, seed=1, engine="double_backward", data_error=False)
    alone = hp.spectral_density(hp.Hessian(H, engine="double_backward"), seed=1)
    assert alone.half_width() <= 0.02
    assert found.matvecs == alone.matvecs <= 4 * 56
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


def test_many_measures_of_a_matrix_that_is_written_out_cost_little_more_than_the_dearest() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 5)).double()
    data = [(torch.randn(40, 16).double(), torch.randint(5, (40,))) for _ in range(2)]
    nine = ("lambda-max", "lambda-min", "spectral-norm", "trace", "frob", "logdet", "density")
    nine += ("effective-rank", "effective-dimension")

    def products(names: tuple[str, ...]) -> float:
        H = hp.Hessian(hp.EmpiricalRisk(net, torch.nn.CrossEntropyLoss(), data), engine="double_backward")
        found = list(measure_all(names, H.risk, MeasureSettings(rtol=0.02), operator=H))
        assert len(found) == len(names)
        return sum(H.made.values())

    dearest = max(products((name,)) for name in nine)
    # Trace and norm are read from the matrix that the log-determinant writes out.
    assert products(nine) <= 1.2 * products(("logdet",)) <= 1.5 * dearest
