"""The norms of diagonal blocks, as ``block-frob`` tells them of layers: their intervals over drawn spectra."""

from __future__ import annotations

import math

import pytest
import torch

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators import frobenius_norm
from hessprobe.measures.registry import _root
from hessprobe.operators import BlockDiagonal, DenseOperator

SEEDS, ROWS = 300, 60


def block(generator: torch.Generator, kind: int) -> torch.Tensor:
    """A rotated symmetric block: a power law of a drawn exponent, one outlier over a bulk, or normal eigenvalues."""
    k = torch.arange(1, ROWS + 1, dtype=torch.float64)
    drawn = torch.rand(2, generator=generator, dtype=torch.float64)
    bulk = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    values = (k ** -(0.5 + 2 * drawn[0]), 0.02 * bulk + 4 * drawn[1] * (k == 1), bulk)[kind]
    basis = torch.linalg.qr(torch.randn(ROWS, ROWS, generator=generator, dtype=torch.float64))[0]
    return basis * values @ basis.T


def covered(count: int, factor: float = 1.0) -> dict[int, float]:
    """Return for each kind of spectrum the share of 95 % intervals that hold the norm, errors times ``factor``."""
    held = dict.fromkeys(range(3), 0)
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(1000 + seed)
        blocks = [block(generator, kind) for kind in range(3)]
        where = {str(kind): slice(ROWS * kind, ROWS * (kind + 1)) for kind in range(3)}
        A = BlockDiagonal(DenseOperator(torch.block_diag(*blocks), blocks=where), list(where.values()))
        whole = frobenius_norm(A, n_probes=count, seed=seed)
        for kind, own in enumerate(blocks):
            found = whole.details["blocks"][str(kind)]
            square = Estimate(found["value"], ErrorParts(probe=factor * found["std_error"]), df=found["df"])
            low, high = _root(square).interval()
            held[kind] += low <= float(own.norm()) <= high
    return {kind: number / SEEDS for kind, number in held.items()}


@pytest.mark.parametrize("count", [8, 16])
def test_norms_of_blocks_lie_within_their_intervals(count: int) -> None:
    # .92 less 1.6 binomial errors of 300 runs.
    assert min(covered(count).values()) >= 0.895
    assert min(covered(count, factor=0.75).values()) < 0.895


def test_a_norm_is_the_root_of_its_square_with_the_longer_arm_above() -> None:
    norm = _root(Estimate(9.0, ErrorParts(probe=1.2), df=20))
    low, high = norm.interval()
    assert (norm.value, norm.std_error) == (3.0, pytest.approx(0.2))
    assert high - 3 > 3 - low > 0
    assert _root(Estimate(-1.0, ErrorParts(probe=1.0))).value == 0
    assert math.isclose(_root(Estimate(4.0, ErrorParts())).interval()[0], 2.0)
