"""The band of a density that holds everywhere at once: nominal level over seeds, whatever the spectrum and the stop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hessprobe.estimators.distribution import uniform_half_width
from hessprobe.estimators.spectral_density import spectral_density
from hessprobe.operators import aslinearoperator
from hessprobe.vectors import ProbeStream

RUNS, DIM = 80, 400


class _Diagonal:
    dtype, shape = torch.float64, (DIM, DIM)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __matmul__(self, V: Tensor) -> Tensor:
        return self.values.view(-1, *([1] * (V.ndim - 1))) * V


def _drawn() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(71)
    even = torch.rand(DIM, generator=generator, dtype=torch.float64)
    signed = torch.randn(DIM, generator=generator, dtype=torch.float64)
    index = torch.arange(1, DIM + 1, dtype=torch.float64)
    half = (torch.arange(DIM) < DIM // 2).double()
    return {
        "power law": index**-1.5,
        "outliers": torch.cat([torch.tensor([300.0, -90.0], dtype=torch.float64), signed[2:]]),
        "half zeros": half * even,
        "gap": even + 5 * half,
        "equal ones": torch.where(half > 0, 1.0, even),
    }


@pytest.mark.parametrize("probes", [1, 4])
def test_probes_follow_the_law_of_kolmogorov(probes: int) -> None:
    levels = torch.arange(1, DIM + 1, dtype=torch.float64) / DIM
    found = []
    for seed in range(2_000):
        V = ProbeStream(DIM, seed, "sphere", torch.float64, torch.device("cpu"), "sketch").block(0, probes)
        seen = (V.square() / V.square().sum(1, keepdim=True)).mean(0).cumsum(0)
        found.append((seen - levels).abs().max())
    distances = torch.stack(found)
    for level, low, high in ((0.5, 0.47, 0.6), (0.9, 0.885, 0.94), (0.95, 0.94, 0.975), (0.99, 0.984, 0.998)):
        assert low < float((distances <= uniform_half_width(probes, DIM, level)).double().mean()) < high


@pytest.mark.parametrize("name", list(_drawn()))
def test_a_band_that_was_reached_by_going_on_holds(name: str) -> None:
    values = _drawn()[name]
    A, atol = aslinearoperator(_Diagonal(values)), 0.12
    points = values.unique()
    points = torch.cat([points - 1e-7, points + 1e-7]).sort().values
    truth = (values[:, None] <= points).double().mean(0)
    held = 0
    for seed in range(RUNS):
        found = spectral_density(A, atol=atol, confidence=0.9, method="slq", seed=10_000 + seed, grid=points)
        assert found.samples == 1
        assert found.half_width(0.9) <= atol
        low, high = found.uniform_band(0.9)
        held += bool(((low <= truth + 1e-9) & (truth <= high + 1e-9)).all())
    # Of 80 draws at 90 %, three standard deviations below.
    assert held / RUNS >= 0.8
