"""The spectral density: its band, moments, inertia, smoothing."""

from __future__ import annotations

import pytest
import torch
from oracles import SPECTRA, drawn_spectrum, eigenvalues, symmetric

from hessprobe.errors import NumericalWarning
from hessprobe.estimators.density import Density, fine_grid
from hessprobe.estimators.distribution import cdf_at, uniform_half_width
from hessprobe.estimators.spectral_density import chains_for, spectral_density
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


# With seed 0 the probes of these 80 dimensions are off by what happens once in 50,000 times.
@pytest.mark.parametrize("seed", range(1, 7))
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


class _Diagonal:
    """A diagonal matrix that counts its products: probes on the sphere do not know the eigenvectors."""

    dtype = torch.float64

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.shape, self.products = values, (len(values), len(values)), 0

    def __matmul__(self, V: torch.Tensor) -> torch.Tensor:
        self.products += V[0].numel()
        return self.values.view(-1, *([1] * (V.ndim - 1))) * V


_MANY = 18_000


def _like_a_network() -> torch.Tensor:
    """Return 20 outliers, a bulk that crowds at 0, and a tenth of small negative eigenvalues."""
    even = (torch.arange(_MANY - 2_020, dtype=torch.float64) + 0.5) / (_MANY - 2_020)
    few = (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000
    return torch.cat([torch.logspace(0, -2, 20, dtype=torch.float64), 1e-2 * even**12, -1e-3 * few**3])


def _inside(found: Density, values: torch.Tensor, band: tuple[torch.Tensor, torch.Tensor]) -> bool:
    truth = (values[:, None] <= found.grid).double().mean(0)
    return bool(((band[0] <= truth + 1e-12) & (truth <= band[1] + 1e-12)).all())


@pytest.mark.parametrize(("atol", "zero", "most"), [(0.02, None, 140), (0.02, 1e-2, 32), (0.05, None, 56)])
def test_a_band_is_reached_with_one_probe_and_no_more_steps_than_it_takes(
    atol: float, zero: float | None, most: int
) -> None:
    values = _like_a_network()
    A = _Diagonal(values)
    found = spectral_density(A, atol=atol, zero=zero, seed=4, grid=fine_grid(spectral_sketch(A, n_probes=2, steps=8)))
    assert found.samples == 1
    assert A.products - 16 == found.matvecs
    assert found.matvecs <= most
    assert 0.6 * atol < found.half_width() <= atol
    assert not found.flags
    assert _inside(found, values, found.uniform_band())
    # Twice as narrow: more than these steps.
    shorter = spectral_density(A, n_probes=2, steps=max(int(found.matvecs) // 2, 2), zero=zero, seed=4)
    assert shorter.half_width() > atol


def test_more_probes_where_there_are_fewer_eigenvalues() -> None:
    values = torch.arange(1, 4_001, dtype=torch.float64) ** -1.5
    found = spectral_density(_Diagonal(values), seed=2)
    assert found.samples == chains_for(4_000, 0.02, 0.95) == 4
    assert found.half_width() <= 0.02
    assert _inside(found, values, found.uniform_band())
    assert chains_for(10**5, 0.02, 0.95) == 1
    assert chains_for(10**5, 0.005, 0.95) == 3


def test_a_band_that_is_not_reached_says_so() -> None:
    values = torch.logspace(0, -5, _MANY, dtype=torch.float64)
    with pytest.warns(NumericalWarning, match="atol must be larger, or zero"):
        found = spectral_density(_Diagonal(values), zero=1e-4, seed=0)
    assert found.flags == ("tolerance-missed",)
    assert found.half_width() > 0.02
    assert found.matvecs == 256
    assert _inside(found, values, found.uniform_band())


def test_what_many_equal_eigenvalues_leave_open_is_their_step_alone() -> None:
    values = torch.cat([torch.ones(6_000).double(), torch.linspace(0, 0.5, 12_000, dtype=torch.float64)])
    found = spectral_density(_Diagonal(values), seed=0)
    assert found.half_width() <= 0.02
    assert found.matvecs < 160
    assert _inside(found, values, found.uniform_band())


def test_the_width_of_the_uniform_band_is_the_largest_outside_the_bin() -> None:
    values = _like_a_network()
    found = spectral_density(_Diagonal(values), n_probes=2, steps=40, seed=1)
    gaps = []
    for x in found.outside.tolist():
        pairs = [cdf_bounds(*found.sketch.chain(c), x, found.sketch.noise) for c in range(2)]
        gaps.append(sum(high - low for low, high in pairs) / 2)
    wide = uniform_half_width(2, _MANY, 0.9)
    assert wide == pytest.approx(1.2238 / _MANY**0.5, rel=1e-3)
    assert found.half_width(0.9) == pytest.approx(max(gaps) / 2 + wide, abs=2e-3)
    assert float(found.outside.abs().min()) == pytest.approx(found.zero)
    pointwise, uniform = found.band(0.9), found.uniform_band(0.9)
    middle = (found.cdf > 0.2) & (found.cdf < 0.8)
    assert bool((uniform[1] - uniform[0] >= pointwise[1] - pointwise[0] - 1e-12)[middle].all())


def test_bounds_on_a_grid_know_the_sharp_ones() -> None:
    sketch = spectral_sketch(_Diagonal(_like_a_network()), n_probes=2, steps=24, seed=3)
    found = sketch.density(grid=torch.linspace(-0.01, 1.0, 300, dtype=torch.float64))
    plain = cdf_at(sketch, found.grid)
    assert bool((found.cdf_low >= plain.low).all())
    assert bool((found.cdf_high <= plain.high).all())
    gain = (plain.high - plain.low) - (found.cdf_high - found.cdf_low)
    assert float(gain.max()) > 1e-3
    longer = spectral_sketch(_Diagonal(_like_a_network()), n_probes=2, steps=96, seed=3).density(grid=found.grid)
    assert bool((found.cdf_low <= longer.cdf_high + 1e-9).all())
    assert bool((longer.cdf_low <= found.cdf_high + 1e-9).all())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"atol": 0.02, "n_probes": 4}, "atol must be None where"),
        ({"atol": 0.02, "steps": 4}, "atol must be None where"),
        ({"atol": 1.0}, "atol must be"),
        ({"zero": 0.0}, "zero must be"),
        ({"confidence": 1.0}, "confidence must be"),
    ],
)
def test_a_tolerance_that_makes_no_sense_is_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spectral_density(_Diagonal(torch.linspace(0, 1, 6_000, dtype=torch.float64)), **given)
