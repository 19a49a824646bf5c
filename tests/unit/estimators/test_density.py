"""The spectral density: its band, moments, inertia, smoothing."""

from __future__ import annotations

import pytest
import torch
from oracles import SPECTRA, drawn_spectrum, eigenvalues, symmetric

from hessprobe.estimators.density import fine_grid
from hessprobe.estimators.spectral_density import spectral_density
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.krylov.quadrature import cdf_bounds
from hessprobe.operators import DenseOperator


def leading(kind: str, dim: int, count: int) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(symmetric(eigenvalues(kind, dim)))
    return vectors[:, values.abs().argsort(descending=True)[:count]].T.contiguous()


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("deflated", [0, 8])
def test_the_band_contains_the_distribution_function(kind: str, deflated: int) -> None:
    values = eigenvalues(kind, 120)
    deflate = leading(kind, 120, deflated) if deflated else None
    found = spectral_density(symmetric(values), n_probes=16, steps=30, seed=1, method="slq", deflate=deflate)
    truth = (values[:, None] <= found.grid).double().mean(0)
    low, high = found.band(0.9999)
    assert bool(((low <= truth + 1e-9) & (truth <= high + 1e-9)).all())
    assert float((high - low).max()) < 0.45
    assert float((high - low).mean()) < 0.25
    assert bool((found.cdf_low <= found.cdf_high).all())
    assert float(found.cdf[0]) < 0.06
    assert float(found.cdf[-1]) > 0.94


@pytest.mark.parametrize("kind", SPECTRA)
def test_the_rigorous_part_contains_what_the_probes_see_at_every_node(kind: str) -> None:
    values = eigenvalues(kind, 60)
    matrix = symmetric(values)
    few = spectral_sketch(matrix, n_probes=4, steps=12, seed=6, method="slq")
    full = spectral_sketch(matrix, n_probes=4, steps=60, seed=6, method="slq")
    nodes = few.density().nodes.unique()
    seen = full.density(grid=nodes)
    band = few.density(grid=nodes)
    assert float((seen.cdf_high - seen.cdf_low).max()) < 0.05
    assert bool((band.cdf_low <= seen.cdf_high + 1e-9).all())
    assert bool((seen.cdf_low <= band.cdf_high + 1e-9).all())
    assert 0.02 < float((band.cdf_high - band.cdf_low).mean()) < 0.3


@pytest.mark.parametrize("kind", SPECTRA)
def test_moments(kind: str) -> None:
    values = eigenvalues(kind, 100)
    found = spectral_density(
        symmetric(values), n_probes=64, steps=10, seed=2, method="slq", deflate=leading(kind, 100, 10)
    )
    for order, moment in enumerate(found.moments, start=1):
        truth = float((values**order).mean())
        assert abs(moment.value - truth) < 4 * moment.errors.probe + moment.errors.solver + 1e-9 * abs(truth)
        assert moment.errors.probe < 0.1 * float((values.abs() ** order).mean())
    assert found.matvecs == 64 * 10 + 10


def test_inertia_is_within_its_bounds_and_they_are_informative() -> None:
    values = eigenvalues("indefinite", 150)
    found = spectral_density(symmetric(values), n_probes=16, steps=60, seed=3, zero=0.2, method="slq")
    assert found.zero == 0.2
    for share, truth in (
        (found.positive, (values > 0.2).double().mean()),
        (found.negative, (values < -0.2).double().mean()),
        (found.near_zero, (values.abs() <= 0.2).double().mean()),
    ):
        low, high = share.interval(0.999)
        assert low <= float(truth) <= high
        assert high - low < 0.25
        assert share.errors.solver > 0
    assert found.positive.value + found.negative.value + found.near_zero.value == pytest.approx(1.0, abs=0.02)


def test_an_exact_density_counts_eigenvalues() -> None:
    values = eigenvalues("outliers", 40)
    found = spectral_density(symmetric(values), zero=0.05, method="exact")
    low, high = found.band()
    truth = (values[:, None] <= found.grid).double().mean(0)
    torch.testing.assert_close(low, truth)
    torch.testing.assert_close(high, truth)
    assert found.positive.value == pytest.approx(float((values > 0.05).double().mean()))
    assert found.near_zero.value == pytest.approx(float((values.abs() <= 0.05).double().mean()))
    assert found.near_zero.kind == "exact"
    torch.testing.assert_close(found.nodes, values)


@pytest.mark.parametrize("kind", SPECTRA)
def test_the_density_integrates_to_one_and_follows_the_spectrum(kind: str) -> None:
    values = eigenvalues(kind, 200)
    found = spectral_density(symmetric(values), n_probes=16, steps=40, grid=800, method="slq")
    cell = found.grid[1] - found.grid[0]
    assert float(found.density.sum() * cell) == pytest.approx(1.0, abs=0.02)
    assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((found.density >= -1e-12).all())
    smooth = spectral_density(symmetric(values), n_probes=16, steps=40, grid=800, width=0.5, method="slq")
    bell = torch.exp(-0.5 * ((smooth.grid[:, None] - values) / 0.5) ** 2).mean(1) / (0.5 * (2 * torch.pi) ** 0.5)
    assert float((smooth.density - bell).abs().max()) < 0.1 * float(bell.max())


def test_an_outlier_stays_a_line() -> None:
    values = eigenvalues("outliers", 200)
    found = spectral_density(symmetric(values), n_probes=32, steps=40, grid=600, method="slq")
    near = (found.grid > 48) & (found.grid <= 51)
    cell = float(found.grid[1] - found.grid[0])
    assert float(found.density[near].sum()) * cell == pytest.approx(1 / 200, rel=0.6)
    assert float(found.density[(found.grid > 42) & (found.grid < 48)].max()) < 1e-6
    bulk = found.widths[found.nodes.abs() < 0.3]
    assert float(bulk.min()) == pytest.approx(cell)


def test_degenerate_operators() -> None:
    zero = spectral_density(torch.zeros(8, 8).double(), n_probes=8, method="slq")
    assert (zero.near_zero.value, zero.positive.value, zero.negative.value) == (1.0, 0.0, 0.0)
    eye = spectral_density(2 * torch.eye(8).double(), n_probes=8, method="slq")
    assert (eye.near_zero.value, eye.positive.value) == pytest.approx((0.0, 1.0))
    assert eye.ends == pytest.approx((2.0, 2.0))
    assert bool(torch.isfinite(eye.density).all())


def test_given_grid_and_bad_arguments() -> None:
    sketch = spectral_sketch(symmetric(eigenvalues("flat", 30)))
    points = torch.tensor([0.0, 1.0, 2.5])
    assert torch.equal(sketch.density(grid=points).grid, points.double())
    with pytest.raises(ValueError, match=r"grid must be finite, ascending points .* got shape \(3,\)"):
        sketch.density(grid=points.flip(0))
    with pytest.raises(ValueError, match="grid must be an integer >= 2; got 1"):
        sketch.density(grid=1)
    with pytest.raises(ValueError, match="width must be a finite number > 0; got 0"):
        sketch.density(width=0)
    with pytest.raises(ValueError, match="zero must be a finite number >= 0; got -1"):
        sketch.density(zero=-1)
    with pytest.raises(ValueError, match="confidence must be a number in"):
        sketch.density().band(1.0)


def test_two_sided_bounds_at_one_point_use_the_chain() -> None:
    sketch = spectral_sketch(symmetric(eigenvalues("indefinite", 80)), n_probes=8, steps=20, seed=1, method="slq")
    found = sketch.density(zero=0.0)
    bounds = [cdf_bounds(*sketch.chain(c), 0.0) for c in range(8)]
    mean = torch.tensor([(low + high) / 2 for low, high in bounds]).mean()
    assert found.negative.value == pytest.approx(
        float(torch.tensor([low for low, _ in bounds]).mean() + mean - torch.tensor([b[0] for b in bounds]).mean()),
        abs=0.2,
    )


def test_a_fine_grid_is_dense_near_zero_and_keeps_the_density_whole() -> None:
    sketch = spectral_sketch(symmetric(eigenvalues("outliers", 60)), n_probes=4, steps=20, seed=6, method="slq")
    even, fine = sketch.density(), sketch.density(grid=fine_grid(sketch, 512, 64))
    extra = set(fine.grid.tolist()) - set(even.grid.tolist())
    assert len(fine.grid) == 512 + len(extra)
    radius = max(abs(end) for end in fine.ends)
    assert 0.0 in extra
    assert min(abs(x) for x in extra if x) == pytest.approx(1e-6 * radius)
    for found in (even, fine):
        cells = (found.grid[2:] - found.grid[:-2]) / 2
        assert float((found.density[1:-1] * cells).sum()) == pytest.approx(1.0, abs=0.02)
    # The same function on more points, smoothed to the same width.
    where = torch.isin(fine.grid, even.grid)
    assert torch.equal(fine.cdf[where], even.cdf)
    assert fine.widths.tolist() == pytest.approx(even.widths.tolist(), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_a_positive_semidefinite_operator_has_no_mass_below_zero(seed: int) -> None:
    values = drawn_spectrum(seed, 80, psd=True)
    A = DenseOperator(symmetric(values), psd=True)
    even = spectral_density(A, n_probes=4, steps=20, seed=seed, method="slq")
    assert float(even.grid[0]) >= 0.0
    radius = float(values.max())
    grid = torch.linspace(-0.2 * radius, 1.2 * radius, 701)
    found = even.sketch.density(grid=grid)
    below = found.grid < 0
    for curve in (found.cdf, found.cdf_low, found.cdf_high, *found.band(0.99)):
        assert float(curve[below].abs().max()) == 0.0
        assert float(curve[~below].max()) > 0.8
    # The first point's cell reaches half a cell below 0 at most.
    assert float(found.density[found.grid < -radius / 400].abs().max()) == 0.0
    cell = torch.minimum(found.grid + radius / 1000, torch.tensor(1e9)) - (found.grid - radius / 1000).clamp(min=0.0)
    assert float((found.density * cell.clamp(min=0.0)).sum()) == pytest.approx(1.0, abs=0.02)
    assert found.negative.interval() == (0.0, 0.0)
    assert found.share_below(-1e-9 * radius).high == 0.0
    truth = (values[:, None] <= grid).double().mean(0)
    low, high = found.band(0.9999)
    assert bool(((low <= truth + 1e-9) & (truth <= high + 1e-9)).all())


def test_an_exact_density_has_exact_quantiles_and_shares() -> None:
    values = drawn_spectrum(3, 41, psd=False)
    found = spectral_density(symmetric(values), method="exact")
    for q in (0.1, 0.5, 0.9):
        truth = float(values[int(-(-q * 41 // 1)) - 1])
        read = found.quantile(q)
        assert (read.low, read.value, read.high) == pytest.approx((truth, truth, truth), abs=1e-11)
    threshold = float(values[-3:-1].mean())
    share = found.share_below(threshold)
    assert (share.low, share.value, share.high) == pytest.approx((39 / 41,) * 3)
    assert found.share_above(threshold).value == pytest.approx(2 / 41)


def test_readings_refuse_what_is_outside_their_range() -> None:
    found = spectral_density(symmetric(eigenvalues("flat", 30)), method="exact")
    for q in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="q must be a"):
            found.quantile(q)
    with pytest.raises(ValueError, match="confidence must be a"):
        found.share_below(0.0, 1.0)
    with pytest.raises(ValueError, match="x must be a finite number"):
        found.share_above(float("inf"))
