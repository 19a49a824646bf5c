"""The sampling loop: fresh probes, pooled errors, block and diagonal sums, data error, progress."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import Plain, SumOperator

from hessprobe.errors import NonFiniteError
from hessprobe.estimate import DataError, own_probes_error
from hessprobe.estimators.budget import Progress
from hessprobe.estimators.law import welch_df
from hessprobe.estimators.linear import (
    Pooled,
    Sampling,
    Series,
    pooled_sum,
    sample_linear,
)
from hessprobe.operators import Counted
from hessprobe.vectors import ProbeStream

BLOCKS = {"first": slice(0, 10), "second": slice(10, 40)}


def correlated(terms: int = 6, dim: int = 40, seed: int = 0) -> SumOperator:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    parts = []
    for _ in range(terms):
        root = shared + 0.5 * torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        parts.append(root @ root.T / dim)
    return SumOperator(torch.stack(parts), torch.linspace(1, 2, terms) / (1.5 * terms), blocks=BLOCKS)


def test_every_term_has_its_own_probes_and_one_pass_is_made() -> None:
    A = correlated()
    samples = sample_linear(A, Sampling(5, seed=3, vectors=True, diagonal=True))
    assert A.passes == 1
    stream = ProbeStream(40, 3)
    for b, matrix in enumerate(A.matrices):
        W = stream.block(0, 5, term=b)
        torch.testing.assert_close(samples.raw[b], ((W @ matrix) * W).sum(1))
    assert samples.diagonal is not None
    torch.testing.assert_close(float(samples.diagonal.mean.sum()), samples.pooled(False)[0])
    torch.testing.assert_close(float(samples.blocks.mean.sum()), samples.pooled(False)[0])
    torch.testing.assert_close(samples.blocks.mean[0], samples.diagonal.mean[:10].sum())


def test_block_size_does_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample_linear(correlated(), Sampling(7, seed=1, diagonal=True))
    monkeypatch.setattr("hessprobe.estimators.xtrace._BLOCK", 80)
    parts = sample_linear(correlated(), Sampling(7, seed=1, diagonal=True))
    torch.testing.assert_close(parts.raw, whole.raw)
    assert parts.diagonal is not None
    assert whole.diagonal is not None
    torch.testing.assert_close(parts.diagonal.mean, whole.diagonal.mean)
    torch.testing.assert_close(parts.diagonal.variance, whole.diagonal.variance)
    torch.testing.assert_close(parts.pooled(False), whole.pooled(False))
    torch.testing.assert_close(parts.blocks.mean, whole.blocks.mean)
    # Pairs of probes that are multiplied together tell block variances apart: at most half of these is at stake.
    assert bool(((parts.blocks.variance / whole.blocks.variance - 1).abs() < 0.5).all())


def test_fresh_probes_gain_what_the_formula_says() -> None:
    A = correlated()
    off = A.matrices - torch.diag_embed(A.matrices.diagonal(dim1=1, dim2=2))
    weighted = A.weights[:, None, None] * off
    shared = 2 * float(weighted.sum(0).square().sum())
    fresh = 2 * float(weighted.square().sum())
    cross = shared - fresh
    inner = torch.einsum("aij,bij->ab", weighted, weighted)
    assert cross == pytest.approx(2 * float(inner.sum() - inner.trace()))
    samples = sample_linear(A, Sampling(4000, seed=0))
    passes = (A.weights[:, None] * samples.raw).sum(0)
    assert float(passes.var()) == pytest.approx(fresh, rel=0.08)
    W = ProbeStream(40, 1).block(0, 4000)
    assert float(((W @ A.total) * W).sum(1).var()) == pytest.approx(shared, rel=0.12)
    assert shared > 3.5 * fresh
    assert samples.pooled(False)[1] == pytest.approx(math.sqrt(fresh / 4000), rel=0.05)


def test_pooling_is_welch_satterthwaite() -> None:
    samples = torch.tensor([[1.0, 3.0, 5.0], [0.0, 0.0, 6.0]], dtype=torch.float64)
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    value, error, df = pooled_sum(weights, samples, samples.var(1))
    parts = [0.25 * 4 / 3, 4 * 12 / 3]
    assert value == pytest.approx(0.5 * 3 + 2 * 2)
    assert error == pytest.approx(math.sqrt(sum(parts)))
    assert df == pytest.approx(sum(parts) ** 2 / sum(p * p / 4 for p in parts) - 2)
    assert welch_df(torch.tensor(parts[:1]), 3) == pytest.approx(2)
    pooled = Pooled.zeros(1, torch.device("cpu"))
    for weight, row in zip(weights.tolist(), samples, strict=True):
        series = Series()
        series.add(row[:2, None])
        series.add(row[2:, None])
        pooled.add(weight, *series.moments(), 3)
    assert float(pooled.mean) == pytest.approx(value)
    assert float(pooled.std_error) == pytest.approx(error)
    assert float(pooled.df) == pytest.approx(df)


def test_one_sample_has_no_variance() -> None:
    with pytest.raises(ValueError, match="samples must be two or more; got 0"):
        Series().moments()


def test_constant_samples_have_no_variance_at_all() -> None:
    samples = sample_linear(Plain(torch.diag(torch.rand(20).double() / 3)), Sampling(9, seed=0, diagonal=True))
    assert samples.diagonal is not None
    assert float(samples.diagonal.variance.max()) == 0.0
    assert bool(torch.isinf(samples.diagonal.df).all())


def test_data_error_is_that_of_resampled_batches() -> None:
    generator = torch.Generator().manual_seed(5)
    dim, terms, sets, probes = 8, 12, 3000, 16
    roots = torch.randn(sets, terms, dim, 6, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([32.0] * 11 + [4.0], dtype=torch.float64)
    weights = sizes / sizes.sum()
    # A batch of fewer examples has a noisier matrix.
    noise = torch.randn(sets, terms, generator=generator, dtype=torch.float64) * (16 / sizes).sqrt()
    matrices = (3 + noise)[:, :, None, None] * roots @ roots.mT
    truth = float(torch.einsum("b,sbii->s", weights, matrices).std())
    W = torch.randint(0, 2, (400, terms, probes, dim), generator=generator).double() * 2 - 1
    raw = ((W @ matrices[:400]) * W).sum(-1)
    parts = [(weights, samples.mean(1), samples.var(1) / probes) for samples in raw]
    found = [own_probes_error(*part) for part in parts]
    naive = [own_probes_error(w, means, torch.zeros_like(means)) for w, means, _ in parts]
    assert sum(error is None for error in found) < 4
    assert root_mean_square(found) == pytest.approx(truth, rel=0.05)
    assert root_mean_square(naive) > 1.1 * truth


def root_mean_square(found: list[DataError | None]) -> float:
    return math.sqrt(sum(0.0 if one is None else one.std_error**2 for one in found) / len(found))


def test_data_error_is_unknown_for_one_term_for_odd_weights_and_under_noise() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert own_probes_error(one, one, one) is None
    two = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert own_probes_error(two, torch.tensor([1.0, 2.0]), 100 * two) is None
    assert own_probes_error(torch.tensor([0.5, -0.5]), two, two) is None
    assert own_probes_error(two, two, 0 * two) == (0.0, 1.0)


def test_surrogate_terms_must_match() -> None:
    A = correlated()
    other = SumOperator(A.matrices, A.weights * 2)
    with pytest.raises(ValueError, match="surrogate terms must carry the weights"):
        sample_linear(A, Sampling(2, seed=0), surrogate=other)


def test_products_that_are_not_finite_are_named() -> None:
    with pytest.raises(NonFiniteError, match="products with the operator must be finite"):
        sample_linear(Plain(torch.full((4, 4), torch.inf)), Sampling(2, seed=0))


@pytest.mark.parametrize("terms", [1, 4])
def test_progress_ends_at_the_value(terms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hessprobe.estimators.xtrace._BLOCK", 80)
    A = correlated(terms)
    seen: list[Progress] = []
    samples = sample_linear(A, Sampling(4, seed=0), offset=2.0, callback=seen.append)
    assert [step.done for step in seen] == pytest.approx([2 * (i + 1) / terms for i in range(2 * terms)])
    assert seen[-1].total == 4
    assert seen[-1].value == pytest.approx(samples.pooled(False)[0] + 2.0)
    assert all(step.std_error is None or step.std_error > 0 for step in seen)
    sampled = pooled_sum(samples.weights, samples.raw, samples.raw.var(1))
    assert seen[-1].std_error == pytest.approx(sampled[1])


def test_progress_errors_are_those_of_the_running_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hessprobe.estimators.xtrace._BLOCK", 160)
    A = correlated(8)
    A.weights[:] = 1 / 8
    A.total = torch.einsum("b,bij->ij", A.weights, A.matrices)
    truth = float(A.total.trace())
    runs: list[list[Progress]] = []
    for seed in range(200):
        runs.append([])
        sample_linear(A, Sampling(4, seed=seed), callback=runs[-1].append)
    for place in (3, 5, 7):
        scores = torch.tensor([(run[place].value - truth) / run[place].std_error for run in runs])
        # The median allows for the few degrees of freedom that early errors have; half of |z| is below 0.67.
        assert 0.45 < float(scores.abs().median()) < 0.95, place


def test_products_are_counted_as_shares_of_a_pass() -> None:
    A = Counted(correlated())
    sample_linear(A, Sampling(5, seed=0, vectors=True))
    assert A.matvec_count == pytest.approx(5)
