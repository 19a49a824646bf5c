"""log E exp(rate u^T H u) on the sphere against Kummer's function, moments, and at sizes no series reaches."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import special

from hessprobe.universal.spectra import Spectrum, log_sphere_exponential, sphere_moments


def spectrum(values: list[float], weights: list[float]) -> Spectrum:
    return Spectrum(torch.tensor(values, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64))


@pytest.mark.parametrize("rate", [0.01, 1.0, 30.0, 150.0, 199.0, 205.0, 250.0, 400.0, 600.0])
@pytest.mark.parametrize(("d", "outliers"), [(2, 1), (3, 2), (20, 1), (400, 1), (2000, 3)])
def test_two_eigenvalues_are_kummers_function(d: int, outliers: int, rate: float) -> None:
    # u_1^2 + ... + u_k^2 is Beta(k/2, (d - k)/2): its moment-generating function is M(k/2, d/2, rate).
    found = log_sphere_exponential(spectrum([1.0, 0.0], [outliers, d - outliers]), rate)
    assert found == pytest.approx(math.log(float(special.hyp1f1(outliers / 2, d / 2, rate))), rel=1e-9, abs=1e-11)


def test_an_indefinite_spectrum_by_its_moments() -> None:
    mixed = spectrum([2.0, 1.0, 0.0, -0.5, -1.0], [1.0, 1.0, 2.0, 1.0, 1.0])
    moments = sphere_moments(mixed, 60)
    series = math.fsum(moment * 3.0**p / math.factorial(p) for p, moment in enumerate(moments))
    assert log_sphere_exponential(mixed, 3.0) == pytest.approx(math.log(series), rel=1e-12)


def test_one_eigenvalue_only() -> None:
    assert log_sphere_exponential(spectrum([-0.7], [9.0]), 4.0) == pytest.approx(-2.8, rel=1e-12)
    assert log_sphere_exponential(spectrum([0.0], [3.0]), 4.0) == pytest.approx(0.0, abs=1e-12)


def test_sizes_of_a_network() -> None:
    # 270 000 parameters: the series in the moments would take as many steps squared, here and at every jackknife.
    network = spectrum([300.0, 20.0, 3.0, 1e-3, -1.0], [1.0, 1.0, 3.0, 270_000.0, 5.0])
    per_rate = [log_sphere_exponential(network, rate) / rate for rate in (1.0, 100.0, 450.0, 1e4, 1e9)]
    assert per_rate == sorted(per_rate)
    assert per_rate[0] == pytest.approx((300 + 20 + 9 + 270 - 5) / 270_010, rel=0.02)
    assert per_rate[-1] == pytest.approx(300.0, rel=1e-3)
