"""Intervals of (phi, psi, mu) measures cover as often as they say, and their parts agree with the dense oracle."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from oracles import drawn_spectrum, eigenvalues
from stats import coverage
from torch import Tensor

from hessprobe.estimate import Estimate
from hessprobe.universal import Catalogued, Spectrum, catalogue
from hessprobe.universal.law import law_error
from hessprobe.universal.plugin import finish, plug_in

REPEATS, DRAWS = 300, 400


def runs(entry: Catalogued, values: Tensor, seed: int, draws: int = DRAWS, repeats: int = REPEATS) -> list[Estimate]:
    """Estimates from independent samples of t, which for a Gaussian depend on the eigenvalues alone."""
    generator = torch.Generator().manual_seed(seed)
    scale = entry.measure.mu.scale
    law = law_error(entry.measure, Spectrum.of(values), draws, correct_bias=True) if entry.measure.skewed else None
    found = []
    for _ in range(repeats):
        z = torch.randn(draws, len(values), generator=generator, dtype=torch.float64)
        u = z / z.norm(dim=1, keepdim=True) if entry.measure.mu.name == "sphere" else scale * z
        samples = entry.measure.samples(0.5 * (u.square() @ values))
        known = 0.0 if entry.measure.norm else None
        plugged = plug_in(entry.measure, samples)
        found.append(finish(plugged, correct_bias=True, name=entry.name, draws=draws, known_square=known, law=law))
    return found


FLAT = eigenvalues("flat", 30)
CASES: dict[str, tuple[Callable[[], Catalogued], Tensor]] = {
    "trace-flat": (catalogue.trace, FLAT),
    "trace-outliers": (catalogue.trace, eigenvalues("outliers", 30)),
    "frob-flat": (catalogue.frob, FLAT),
    "frob-indefinite": (catalogue.frob, eigenvalues("indefinite", 30)),
    "logdet": (lambda: catalogue.logdet(0.3), FLAT),
    "det": (lambda: catalogue.det(0.2), FLAT),
    "tr3": (lambda: catalogue.cumulant(3), FLAT),
    "soft-max": (lambda: catalogue.soft_max(4), FLAT),
    "log-exp": (lambda: catalogue.log_exp(6.0), FLAT),
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")
def test_intervals_cover(name: str) -> None:
    make, values = CASES[name]
    entry = make()
    truth = entry.closed_form(Spectrum.of(values))
    found = runs(entry, values, seed=len(name))
    share = coverage(found, truth)
    # 300 intervals of 95 %: the share has a standard error of 1.3 %.
    assert 0.915 <= share <= 0.985, share
    numbers = torch.tensor([one.value for one in found], dtype=torch.float64)
    error = float(numbers.std())
    assert abs(float(numbers.mean()) - truth) < 4 * error / math.sqrt(REPEATS)
    claimed = torch.tensor([one.std_error for one in found], dtype=torch.float64)
    assert float(claimed.square().mean().sqrt()) == pytest.approx(error, rel=0.15)


@pytest.mark.parametrize(("order", "draws", "seed"), [(2, 32, 1), (3, 64, 2), (3, 128, 3), (4, 64, 4), (4, 256, 5)])
def test_cumulants_of_drawn_spectra_cover(order: int, draws: int, seed: int) -> None:
    # From few draws, where the sample's own error bar covers .2 to .9.
    values, entry = drawn_spectrum(seed, 25, psd=False), catalogue.cumulant(order)
    found = runs(entry, values, seed=seed, draws=draws, repeats=200)
    share = coverage(found, entry.closed_form(Spectrum.of(values)))
    assert 0.91 <= share <= 0.985, share


def test_the_error_of_a_third_cumulant_is_what_95_percent_of_many_samples_keep() -> None:
    values, draws = eigenvalues("indefinite", 20), 80
    z = torch.randn(6000, draws, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = 0.5 * z.square() @ values
    third = (t - t.mean(1, keepdim=True)).pow(3).mean(1) * draws**2 / ((draws - 1) * (draws - 2))
    kept = float((third - values.pow(3).sum()).abs().quantile(0.95))
    found = law_error(catalogue.cumulant(3).measure, Spectrum.of(values), draws, correct_bias=True)
    # Both quantiles of some thousand skewed numbers are known to 2 to 3 %.
    assert found == pytest.approx(kept / 1.96, rel=0.1)


@pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")
def test_a_norm_from_few_draws_has_the_bias_of_the_formula_and_misses_on_both_sides() -> None:
    few, repeats = 64, 1200
    truth = float(FLAT.norm())
    found = runs(catalogue.frob(), FLAT, seed=1, draws=few, repeats=repeats)
    kurtosis = 3 + 12 * float(FLAT.pow(4).sum()) / truth**4
    expected = -truth * (kurtosis + 3) / (8 * few)
    values = torch.tensor([one.value for one in found], dtype=torch.float64)
    bias = torch.tensor([one.details["bias"] for one in found], dtype=torch.float64)
    error = float(values.std()) / math.sqrt(repeats)
    assert abs(float(values.mean()) - truth) < 3 * error
    assert abs(float((values + bias).mean()) - truth - expected) < 3 * error
    assert float(bias.mean()) == pytest.approx(expected, rel=0.1)
    assert expected < -3 * error
    # Symmetric intervals miss 6 % of low values and 1 % of high ones; shares of 2.5 % have a standard error of 0.45 %.
    ends = [one.interval() for one in found]
    assert 0.012 < sum(high < truth for _, high in ends) / repeats < 0.042
    assert 0.012 < sum(low > truth for low, _ in ends) / repeats < 0.042
