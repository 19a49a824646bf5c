"""A difference of eigenvalues holds at every level that a comparison may be asked for."""

from __future__ import annotations

import nets
import pytest
import torch

from hessprobe.comparison import compare_values
from hessprobe.estimators.difference import difference
from hessprobe.krylov import eigsh
from hessprobe.measures import MeasureSettings, measure_all


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99, 0.995, 0.999, 0.9999])
def test_differences_of_measured_eigenvalues_reach_the_level(confidence: float) -> None:
    settings = MeasureSettings(n_probes=8, confidence=confidence, engine="double_backward")
    values = {
        name: {one.measure: one.estimate for one in measure_all(["lambda-max"], case().risk(), settings)}
        for name, case in (("mlp", nets.mlp), ("regression", nets.regression))
    }
    (line,) = compare_values(values, "mlp", confidence=confidence)
    low, high = line.difference.estimate.interval(confidence)
    tops = [float(torch.linalg.eigvalsh(nets.full_hessian(make().risk()))[-1]) for make in (nets.mlp, nets.regression)]
    assert low <= tops[1] - tops[0] <= high


def test_a_difference_of_brackets_holds_every_pair_inside_them() -> None:
    missed = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        entries = torch.randn(2, 150, generator=generator, dtype=torch.float64)
        one, two = (eigsh(torch.diag(each), 1, "largest", seed=seed).estimate(0) for each in entries)
        found = difference(one, two).estimate
        low, high = found.interval(0.9)
        assert (low, high) == (two.bracket[0] - one.bracket[1], two.bracket[1] - one.bracket[0])
        assert found.bracket_confidence == pytest.approx(2 * 0.995 - 1)
        missed += not low <= float(entries[1].max() - entries[0].max()) <= high
    # Brackets are as tight as their level: one miss is expected, and six have probability 5e-4.
    assert missed <= 5
