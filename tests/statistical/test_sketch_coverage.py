"""Coverage of nominal 95 % intervals over 300 independent samples, on four spectra.

All probes of one stream are independent, so one long sweep cut into 300 samples of 12 chains is 300 runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracles import SPECTRA, SumOperator, drawn_spectrum, eigenvalues, symmetric
from stats import coverage
from torch import Tensor

from hessprobe.estimate import Estimate, student_quantile
from hessprobe.estimators.distribution import quantile, share_below
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.spectral import probe_law
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.operators import DenseOperator

RUNS, PROBES, DIM = 300, 12, 60

QUESTIONS: dict[str, tuple[Callable[[SpectralSketch], Estimate], Callable[[Tensor], Tensor]]] = {
    "smoothed-logdet": (lambda s: s.smoothed_logdet(eps=0.5), lambda x: torch.log(x**2 + 0.25).sum() / 2),
    "schatten-4": (lambda s: s.schatten_norm(4), lambda x: (x**4).sum() ** 0.25),
    "frobenius": (lambda s: s.frobenius_norm(), lambda x: x.norm()),
}
PSD_QUESTIONS: dict[str, tuple[Callable[[SpectralSketch], Estimate], Callable[[Tensor], Tensor]]] = {
    "logdet": (lambda s: s.logdet(shift=0.1), lambda x: torch.log(x + 0.1).sum()),
    "effective-dimension": (lambda s: s.effective_dimension(shift=0.1), lambda x: (x / (x + 0.1)).sum()),
}
CASES = [(kind, name) for kind in SPECTRA for name in (*QUESTIONS, *PSD_QUESTIONS)]
_MADE: dict[tuple[str, bool], SpectralSketch] = {}


def spectrum(kind: str, psd: bool) -> Tensor:
    values = eigenvalues(kind, DIM)
    return values.abs().sort().values if psd else values


def long_sketch(kind: str, psd: bool) -> SpectralSketch:
    if (kind, psd) not in _MADE:
        matrix = symmetric(spectrum(kind, psd))
        values, vectors = torch.linalg.eigh(matrix)
        top = vectors[:, values.abs().argsort(descending=True)[:10]].T.contiguous()
        _MADE[kind, psd] = spectral_sketch(
            DenseOperator(matrix, psd=psd), n_probes=RUNS * PROBES, steps=12, deflate=top, seed=17, method="slq"
        )
    return _MADE[kind, psd]


def cut(sketch: SpectralSketch, run: int, size: int) -> SpectralSketch:
    rows = slice(run * size, (run + 1) * size)
    return replace(
        sketch,
        norms=sketch.norms[rows],
        alphas=sketch.alphas[rows],
        betas=sketch.betas[rows],
        lengths=sketch.lengths[rows],
        chain_influence=sketch.chain_influence[rows],
    )


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_intervals_cover(kind: str, name: str) -> None:
    psd = name in PSD_QUESTIONS
    ask, truth = {**QUESTIONS, **PSD_QUESTIONS}[name]
    sketch = long_sketch(kind, psd)
    estimates = [ask(cut(sketch, run, PROBES)) for run in range(RUNS)]
    share = coverage(estimates, float(truth(spectrum(kind, psd))))
    assert 0.92 <= share <= 0.985, share
    spread = torch.tensor([e.value for e in estimates], dtype=torch.float64).std()
    bars = torch.tensor([e.errors.probe for e in estimates], dtype=torch.float64).square().mean().sqrt()
    assert 0.88 < float(bars / spread) < 1.12
    # A variance that all eigenvalues tell has many degrees of freedom; twelve chains need not pay for eleven.
    lengths = sum(e.half_width() - e.errors.solver for e in estimates) / RUNS
    assert lengths < (1.07 if kind in ("flat", "indefinite") else 1.15) * 1.96 * float(spread)


@pytest.mark.parametrize("seed", range(9))
def test_intervals_from_the_law_cover_on_drawn_spectra(seed: int) -> None:
    # Chains as long as the dimension, without their making: w^T f(A) w is a weighted mean with the shares of w.
    dim, runs, probes = 80, 400, (4, 8, 16)[seed % 3]
    values = drawn_spectrum(seed, dim, psd=False)
    scale = float(values.abs().median()) + 1e-3 * float(values.abs().max())
    f = [values, values.square(), torch.log(values.square() + scale**2)][seed // 3 % 3]
    generator = torch.Generator().manual_seed(seed)
    squares = torch.randn(runs, probes, dim, generator=generator, dtype=torch.float64).square()
    shares = (squares / squares.sum(2, keepdim=True)).mean(1)
    laws = [probe_law(f, row, dim, "sphere") for row in shares]
    halves = torch.tensor([student_quantile(0.975, law.freedom(probes)) * law.std for law in laws]) / probes**0.5
    errors = (dim * (shares @ f) - f.sum()).abs()
    ideal = probe_law(f, torch.full((dim,), 1 / dim, dtype=torch.float64), dim, "sphere").std / probes**0.5
    # 400 intervals: 2 binomial errors of 1.1 % below .945 and above .98.
    assert 0.923 <= float((errors <= halves).double().mean()) <= 0.995
    assert 0.9 < float(halves.mean()) / (1.96 * ideal) < (1.35 if probes == 4 else 1.2)


def test_data_error_is_unbiased_and_covers_the_data_distribution() -> None:
    # Batches A_b = S + x_b U with scalar x_b: over draws of the data, logdet spreads as the reported error says.
    generator = torch.Generator().manual_seed(3)
    base = symmetric(eigenvalues("decaying", 30)) + 0.5 * torch.eye(30)
    factor = torch.randn(30, 10, generator=generator, dtype=torch.float64)
    bump = factor @ factor.T / 10
    values, errors = [], []
    for _ in range(60):
        sizes = torch.rand(12, generator=generator, dtype=torch.float64)
        A = SumOperator(base + sizes[:, None, None] * bump)
        A.psd = True
        estimate = spectral_sketch(A, method="exact").logdet(shift=0.1)
        noisy = spectral_sketch(A, method="slq", n_probes=16, steps=12, seed=len(values)).logdet(shift=0.1)
        assert estimate.errors.data is not None
        assert noisy.errors.data is not None
        values.append(estimate.value)
        errors.append((estimate.errors.data**2, noisy.errors.data**2))
    exact, sampled = torch.tensor(errors, dtype=torch.float64).mean(0).sqrt().tolist()
    spread = float(torch.tensor(values, dtype=torch.float64).std())
    assert exact == pytest.approx(spread, rel=0.3)
    assert sampled == pytest.approx(exact, rel=0.05)


# A norm from three chains has an interval down to 0.
@pytest.mark.filterwarnings("ignore:frobenius is not known from 3 chains")
@pytest.mark.parametrize("question", ["frobenius", "effective-dimension"])
def test_probe_noise_is_taken_off_the_data_error(question: str) -> None:
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(10, 40, 12, generator=generator, dtype=torch.float64)
    sizes = torch.rand(10, 1, 1, generator=generator, dtype=torch.float64)
    A = SumOperator(symmetric(eigenvalues("decaying", 40)) + sizes * factors @ factors.mT / 12)
    A.psd = True
    ask = {**QUESTIONS, **PSD_QUESTIONS}[question][0]
    truth = ask(spectral_sketch(A, method="exact")).errors.data
    sketch = spectral_sketch(A, method="slq", n_probes=450, steps=12, seed=5)
    errors = [ask(cut(sketch, run, 3)).errors.data for run in range(150)]
    assert truth is not None
    # Unknown where the noise leaves nothing, which stands for 0 in the mean.
    mean_square = torch.tensor([error or 0.0 for error in errors], dtype=torch.float64).square().mean()
    assert float(mean_square.sqrt()) == pytest.approx(truth, rel=0.05)


def test_the_beta_law_of_the_band_has_its_nominal_coverage() -> None:
    # As many steps as dimensions: the chains are exact and the band is the probe error alone.
    values = eigenvalues("indefinite", 24)
    sketch = spectral_sketch(symmetric(values), method="slq", n_probes=600, steps=24, seed=2)
    grid = (values[1:] + values[:-1]) / 2
    truth = (values[:, None] <= grid).double().mean(0)
    inside = torch.zeros(len(grid), dtype=torch.float64)
    for run in range(200):
        found = cut(sketch, run, 3).density(grid=grid)
        low, high = found.band(0.9)
        inside += (low <= truth) & (truth <= high)
    share = inside / 200
    assert 0.88 < float(share.mean()) < 0.93
    assert float(share.min()) > 0.83
    assert float(share.max()) < 0.97


@pytest.mark.parametrize(("kind", "probes"), [("outliers", 2), ("flat", 8), ("indefinite", 8), ("decaying", 2)])
def test_the_density_band_covers_everywhere(kind: str, probes: int) -> None:
    sketch = long_sketch(kind, False)
    values = spectrum(kind, False)
    grid = (values[1:] + values[:-1])[::4] / 2
    truth = (values[:, None] <= grid).double().mean(0)
    inside, width = torch.zeros(len(grid)), 0.0
    for run in range(100):
        low, high = cut(sketch, run, probes).density(grid=grid).band(0.95)
        inside += (low <= truth + 1e-9) & (truth <= high + 1e-9)
        width += float((high - low).mean()) / 100
    assert float(inside.min()) >= 88  # 2.5 % of correct bands would fall below 90 at one point
    assert width < (0.45 if probes == 2 else 0.25)


@pytest.mark.parametrize("kind", ["outliers", "indefinite"])
def test_quantiles_and_shares_cover(kind: str) -> None:
    sketch, values, runs = long_sketch(kind, False), spectrum(kind, False), 80
    threshold = float(values[20:22].mean())
    wanted = [float(values[math.ceil(q * DIM) - 1]) for q in (0.1, 0.5, 0.9)]
    hits, length = torch.zeros(4), 0.0
    for run in range(runs):
        found = cut(sketch, run, 4)
        readings = [quantile(found, q, 0.95) for q in (0.1, 0.5, 0.9)] + [share_below(found, threshold, 0.95)]
        truths = [*wanted, 21 / DIM]
        hits += torch.tensor([r.low - 1e-9 <= t <= r.high + 1e-9 for r, t in zip(readings, truths, strict=True)])
        length += (readings[3].high - readings[3].low) / runs
    # 80 intervals of at least 95 %: 2.5 binomial errors below it.
    assert float(hits.min()) / runs > 0.885
    assert length < 0.35
