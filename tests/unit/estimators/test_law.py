"""Variances by the law of the probes: the identities behind them, and how well they are known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from hessprobe.estimators.law import (
    LawSums,
    contrasts,
    crossed_variance,
    law_variance,
    shrunk_skewness,
    welch_df,
    with_prior,
)
from hessprobe.vectors import LAWS, ProbeStream, fold

DIM = 30
SLICES = (slice(0, 9), slice(9, DIM))


def matrix(seed: int = 0) -> Tensor:
    root = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root + root.T + torch.diag(3.0 * torch.arange(DIM, dtype=torch.float64))


def collected(A: Tensor, law: str, n: int, size: int, seed: int = 0) -> LawSums:
    sums, stream = LawSums(law, SLICES, keep=True), ProbeStream(DIM, seed, law)
    for start in range(0, n, size):
        W = stream.block(start, min(start + size, n))
        found = sums.add(W, W @ A)
        torch.testing.assert_close(found.total, (W * (W @ A)).sum(1))
        own = torch.stack([(W * (W @ A))[:, where].sum(1) for where in SLICES], 1)
        torch.testing.assert_close(found.blocks, own)
    return sums


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dim", [251, 252, 4016, 4017, 9001])
def test_pieces_of_columns_add_up_to_the_whole(law: str, dim: int) -> None:
    """Blocks begin and end within pieces, and between them; every sum is that over whole rows."""
    generator = torch.Generator().manual_seed(dim)
    edges = [0, *sorted(torch.randperm(dim - 1, generator=generator)[:4].add(1).tolist()), dim]
    slices = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    W = ProbeStream(dim, 1, law).block(0, 11)
    Z = torch.randn(11, dim, generator=generator, dtype=torch.float64)
    sums = LawSums(law, slices, keep=True)
    for rows in (slice(0, 8), slice(8, 11)):
        found = sums.add(W[rows], Z[rows])
        torch.testing.assert_close(found.total, (W[rows] * Z[rows]).sum(1))
        torch.testing.assert_close(found.blocks, torch.stack([(W[rows] * Z[rows])[:, one].sum(1) for one in slices], 1))
    known, entries = sums.result(), W * Z
    expected = {
        "rademacher": 2 * entries.var(0).sum(),
        "gaussian": 2 * Z.square().sum(1).mean(),
        "sphere": 2 * (Z - entries.mean(1, keepdim=True) * W).square().sum(1).mean(),
    }[law]
    assert known.variance.value == pytest.approx(float(expected), rel=1e-10)
    if law == "rademacher":
        torch.testing.assert_close(known.blocks, torch.stack([entries.var(0)[one].sum() for one in slices]))
        torch.testing.assert_close(known.folded, fold(entries))


@pytest.mark.parametrize("law", LAWS)
def test_enough_probes_tell_the_law_and_the_others_their_sums(law: str) -> None:
    W = ProbeStream(DIM, 3, law).block(0, 20)
    Z = W @ matrix()
    few, some = LawSums(law, SLICES, keep=True), LawSums(law, SLICES, keep=True, most=8)
    few.add(W[:9], Z[:9])
    for start, stop in ((0, 9), (9, 20)):
        found = some.add(W[start:stop], Z[start:stop])
        torch.testing.assert_close(found.total, (W * Z)[start:stop].sum(1))
        own = torch.stack([(W * Z)[start:stop, where].sum(1) for where in SLICES], 1)
        torch.testing.assert_close(found.blocks, own)
    first, known = few.result(), some.result()
    assert known.variance == first.variance
    for name in ("blocks", "outside", "folded"):
        one, other = getattr(first, name), getattr(known, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other)


def test_contrasts_hold_all_of_the_sample_variances() -> None:
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = contrasts(rows)
    assert found.shape == (6, 5)
    torch.testing.assert_close(found.square().sum(0), 6 * rows.var(0))
    # Orthonormal and blind to a common shift: the same map takes the unit vectors to its own matrix.
    basis = contrasts(torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(basis.sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-14, rtol=0)
    assert float(contrasts(rows[:1].expand(4, 5)).abs().max()) == 0.0


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_sums_are_their_definition_whatever_the_size_of_a_block(law: str, size: int) -> None:
    A, W = matrix(), ProbeStream(DIM, 0, law).block(0, 8)
    Z = W @ A
    entries = W * Z
    expected = {
        "rademacher": entries.var(0).sum(),
        "gaussian": Z.square().sum(1).mean(),
        "sphere": (Z - entries.sum(1, keepdim=True) / DIM * W).square().sum(1).mean(),
    }[law]
    found = collected(A, law, 8, size).result()
    assert found is not None
    assert found.variance.value == pytest.approx(2 * float(expected))
    if law != "rademacher":
        assert (found.blocks, found.outside, found.folded) == (None, None, None)
        return
    assert found.blocks is not None
    torch.testing.assert_close(found.blocks, torch.stack([entries[:, s].var(0).sum() for s in SLICES]))
    assert (found.outside is None) == (size == 1)
    assert found.folded is not None
    torch.testing.assert_close(found.folded, entries)


@pytest.mark.parametrize("law", LAWS)
def test_one_probe_says_nothing(law: str) -> None:
    assert collected(matrix(), law, 1, 1).result() is None


def test_a_diagonal_matrix_has_no_variance_at_all() -> None:
    found = collected(torch.diag(torch.rand(DIM).double() / 3), "rademacher", 9, 4).result()
    assert found is not None
    assert found.variance == (0.0, 0.0)
    assert welch_df(torch.zeros(1), 9, torch.zeros(1)) == math.inf


def test_block_variances_are_unbiased_and_within_the_law() -> None:
    A = matrix(3)
    off = A - torch.diag(A.diagonal())
    runs = [collected(A, "rademacher", 6, 6, seed).result() for seed in range(1500)]
    outside = torch.stack([run.outside for run in runs if run is not None and run.outside is not None])
    within = torch.stack([run.blocks for run in runs if run is not None and run.blocks is not None])
    for column, where in enumerate(SLICES):
        all_of_it, inner = float(off[where].square().sum()), float(off[where, where].square().sum())
        for samples, truth in ((outside, all_of_it - inner), (within, all_of_it)):
            error = float(samples[:, column].std()) / 1500**0.5
            assert abs(float(samples[:, column].mean()) - truth) < 4 * error < 0.05 * truth
    W = ProbeStream(DIM, 99).block(0, 20000)
    sums = (W * (W @ A))[:, SLICES[0]].sum(1)
    known = 2 * float(off[SLICES[0]].square().sum()) - float(off[SLICES[0], SLICES[1]].square().sum())
    assert float(sums.var()) == pytest.approx(known, rel=0.05)
    own = torch.tensor([0.0, 1e9], dtype=torch.float64)
    alone = collected(A, "rademacher", 6, 1).result()
    assert alone is not None
    assert alone.blocks is not None
    torch.testing.assert_close(alone.bounded(own), alone.blocks * torch.tensor([1.0, 2.0]))


def test_degrees_of_freedom_lie_between_the_worst_case_and_the_spread() -> None:
    normal = torch.randn(4000, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for power, least, most in ((2, 7.0, 12.0), (0, 13.0, 16.0)):
        runs = [law_variance(squares) for squares in normal.abs() ** power]
        values, squares = torch.tensor(runs, dtype=torch.float64).T
        df = [welch_df(v[None], 8, s[None]) for v, s in zip(values, squares, strict=True)]
        assert min(df) >= 7
        assert least <= sum(df) / len(df) <= most
        if power:
            # Of squared normal numbers Var V is right in the mean.
            assert float(squares.mean()) == pytest.approx(float(values.var()), rel=0.1)
    # Terms of equal variance add up their degrees of freedom.
    parts, own = torch.full((50,), 2.0), torch.full((50,), 2 * 4 / 9.0)
    assert welch_df(parts, 8, own) == pytest.approx(welch_df(parts, 8)) == pytest.approx(448)


def test_entries_borrow_one_degree_of_freedom() -> None:
    found = with_prior(torch.tensor([0.0, 4.0], dtype=torch.float64), 4)
    assert found.tolist() == [0.5, 3.5]


def test_folded_rows_keep_their_dot_products() -> None:
    rows = torch.randn(2, 20000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rows[1] += rows[0]
    folded = fold(rows)
    assert folded.shape == (2, 251)
    assert float(folded[0] @ folded[1]) == pytest.approx(float(rows[0] @ rows[1]), rel=0.3)
    torch.testing.assert_close(fold(rows[:, :251]), rows[:, :251])
    torch.testing.assert_close(folded[1] - folded[0], fold(rows[1:] - rows[:1])[0])


def squared(R: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return w_i^T R^2 w_j and the rows (R w_i)^2, whose mean is the diagonal of R^2."""
    Z = ProbeStream(DIM, seed).block(0, n) @ R
    return Z @ Z.T, Z.square()


def test_the_variance_of_squared_norms_is_that_of_pairs_and_samples() -> None:
    crossed, diagonals = squared(matrix(6) - torch.diag(matrix(6).diagonal()), 6, 0)
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    square = sum(float(crossed[i, j]) ** 2 for i, j in pairs) / 30
    off = square - sum(float(diagonals[i] @ diagonals[j]) for i, j in pairs) / 30
    own = float(crossed.diagonal().var())
    weight = off / square / 2
    assert 0.1 < weight < 0.5
    assert 2 * off < 16 * own
    assert crossed_variance(crossed, diagonals) == pytest.approx(weight * 2 * off + (1 - weight) * own)
    # Never more than the samples allow, and they alone where nothing is off the diagonal.
    calm = crossed - torch.diag(0.95 * (crossed.diagonal() - crossed.diagonal().mean()))
    own = float(calm.diagonal().var())
    assert crossed_variance(calm, diagonals) == pytest.approx(weight * 16 * own + (1 - weight) * own)
    assert crossed_variance(crossed, 9 * diagonals) == float(crossed.diagonal().var())
    exact = squared(torch.diag(torch.linspace(1, 2, DIM).double()), 6, 0)
    assert crossed_variance(*exact) < 1e-25


def test_the_variance_of_squared_norms_is_near_the_truth_and_steadier_than_the_samples() -> None:
    R = matrix(6) - torch.diag(matrix(6).diagonal())
    B = R @ R
    truth = 2 * float(B.square().sum() - B.diagonal().square().sum())
    runs = [squared(R, 8, seed) for seed in range(3000)]
    found = torch.tensor([crossed_variance(*run) for run in runs])
    own = torch.tensor([float(run[0].diagonal().var()) for run in runs])
    # The weight is drawn with the variance, which is why this is some percent high.
    assert 1.0 < float(found.mean()) / truth < 1.06
    assert float(found.std()) < 0.92 * float(own.std())


def test_skewness_of_few_samples_is_shrunk() -> None:
    samples = torch.tensor([3.0, -1, 0.5, 2, 9, 1], dtype=torch.float64)
    assert shrunk_skewness(samples) == pytest.approx(0.6 * float(stats.skew(samples.numpy(), bias=False)))
    assert shrunk_skewness(-samples) == pytest.approx(-shrunk_skewness(samples))
    assert shrunk_skewness(samples[:2]) == shrunk_skewness(torch.ones(9).double()) == 0.0
