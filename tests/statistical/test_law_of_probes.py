"""Intervals of traces, of single blocks and of differences hold with few probes, over spectra drawn by seed."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import Plain, SumOperator, symmetric
from torch import Tensor

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators import effective_rank, frobenius_norm, trace
from hessprobe.estimators.difference import difference
from hessprobe.operators import DenseOperator
from hessprobe.vectors import fold

RUNS = 400
D = 60


def drawn(seed: int) -> Tensor:
    """A symmetric matrix: kind of spectrum, its parameters and its eigenvectors by seed."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    i = torch.arange(1, D + 1, dtype=torch.float64)
    normal = torch.randn(D, generator=generator, dtype=torch.float64)
    sizes = torch.zeros(D, dtype=torch.float64)
    sizes[: int(uniform(1, 4))] = uniform(30, 300) * (-1.0) ** (seed // 7)
    values = (
        normal,
        normal + sizes,
        i ** -uniform(0.5, 3),
        torch.exp(-i / uniform(1, 20)),
        torch.cat([i[: D // 2], -i[: D // 2]]),
        (normal > 0).double(),
        1.0 + sizes,
    )[seed % 7]
    if seed % 3 == 0:  # coupled in pairs only
        pairs = torch.block_diag(*[torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)] * (D // 2))
        return torch.diag(values) + uniform(0.1, 2) * pairs
    return symmetric(values, seed)


def share(hits: list[bool]) -> None:
    """At least 95 % less two binomial errors; 95 to 98 % are expected, 90 % with errors a fifth too small."""
    assert sum(hits) / len(hits) >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / len(hits))


def width(found: list, truth: list[float]) -> float:
    """Mean half width over the ideal, 1.96 times the root mean square error, both relative to each run's own size."""
    half = torch.tensor([one.half_width() / one.std_error for one in found], dtype=torch.float64)
    z = torch.tensor([(one.value - t) / one.std_error for one, t in zip(found, truth, strict=True)])
    return float(half.mean() / (1.96 * z.square().mean().sqrt()))


@pytest.mark.parametrize("n", [8, 16])
def test_traces(n: int) -> None:
    matrices = [drawn(seed) for seed in range(RUNS)]
    truth = [float(matrix.trace()) for matrix in matrices]
    found = [trace(Plain(m), n_probes=n, method="hutchinson", seed=s) for s, m in enumerate(matrices)]
    share([low <= t <= high for (low, high), t in zip((one.interval() for one in found), truth, strict=True)])
    assert not any(one.flags for one in found)
    assert 0.95 < width(found, truth) < 1.25


def test_sums_over_terms_and_their_blocks() -> None:
    hits: list[bool] = []
    inside: list[bool] = []
    blocks = {"first": slice(0, 11), "second": slice(11, D)}
    for seed in range(RUNS // 4):
        parts = torch.stack([drawn(4 * seed + part) for part in range(4)])
        A = SumOperator(parts)
        found = trace(A, n_probes=3, method="hutchinson", seed=seed)
        low, high = found.interval()
        hits.append(low <= float(A.total.trace()) <= high)
        whole = DenseOperator(parts[0], blocks=blocks)
        layers = trace(Plain(whole.matrix, blocks), n_probes=8, method="hutchinson", seed=seed).details["blocks"]
        for name, where in blocks.items():
            half = 2.365 * layers[name]["std_error"]
            inside.append(abs(layers[name]["value"] - float(parts[0].diagonal()[where].sum())) <= half + 1e-12)
            assert layers[name]["df"] == pytest.approx(7)
    share(hits)
    share(inside)


def test_differences_with_common_probes() -> None:
    hits = []
    for seed in range(RUNS // 2):
        one, step = drawn(seed), 0.3 * drawn(seed + 3)
        pair = [trace(Plain(m), n_probes=8, method="hutchinson", seed=seed) for m in (one, one + step)]
        low, high = difference(*pair).estimate.interval()
        hits.append(low <= float(step.trace()) <= high)
    share(hits)


def test_folded_products_give_the_error_of_large_differences() -> None:
    # 1,000 coordinates folded to 256 numbers: the error of the difference keeps the size that its law has.
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, 1000, 1000, generator=generator, dtype=torch.float64)
    one, other = parts[0] + parts[0].T, parts[0] + parts[0].T + 0.1 * (parts[1] + parts[1].T)
    step = other - one
    law = math.sqrt(2 * float(step.square().sum() - step.diagonal().square().sum()) / 16)
    pair = [trace(Plain(m), n_probes=16, method="hutchinson", seed=1) for m in (one, other)]
    assert difference(*pair).estimate.std_error == pytest.approx(law, rel=0.1)


def test_the_error_of_a_block_lies_between_what_its_rows_leave() -> None:
    # Coupled within the block the variance is 2 R, to the other block R; R is the sum of squares off the diagonal.
    blocks = {"a": slice(0, 20), "b": slice(20, 60)}
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        inside = torch.block_diag(*(symmetric(torch.randn(n, generator=generator).double(), seed) for n in (20, 40)))
        across = torch.zeros(D, D, dtype=torch.float64)
        across[:20, 20:] = torch.randn(20, 40, generator=generator).double()
        for matrix in (inside, across + across.T):
            rest = float(matrix[:20].square().sum() - matrix.diagonal()[:20].square().sum())
            found = trace(Plain(matrix, blocks), n_probes=24, method="hutchinson", seed=seed).details["blocks"]["a"]
            assert 0.6 * rest < 24 * found["std_error"] ** 2 < 2 * 1.4 * rest


def test_a_calm_sample_does_not_make_a_block_certain() -> None:
    # One large eigenvalue inside: the variance of 8 samples alone falls below a quarter of the truth in 36 of 200 runs,
    # held to what the law leaves in 19, taken from pairs in 2; such intervals cover 86, 90 and 95 %.
    low = 0
    for seed in range(200):
        values = torch.zeros(20, dtype=torch.float64)
        values[0] = 100.0
        matrix = torch.block_diag(symmetric(values, seed), torch.eye(40, dtype=torch.float64))
        truth = 2 * float(matrix[:20].square().sum() - matrix.diagonal()[:20].square().sum()) / 8
        blocks = {"a": slice(0, 20), "b": slice(20, 60)}
        found = trace(Plain(matrix, blocks), n_probes=8, method="hutchinson", seed=seed).details["blocks"]["a"]
        low += found["std_error"] ** 2 < 0.25 * truth
    assert low <= 8


@pytest.mark.parametrize("seed", range(5))
def test_folding_keeps_dot_products(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(6, 20_000, generator=generator, dtype=torch.float64)  # of one sign: without signs they pile up
    rows[3:] *= torch.randn(3, 20_000, generator=generator, dtype=torch.float64)
    folded = fold(rows)
    size = rows.norm(dim=1)
    off = (folded @ folded.T - rows @ rows.T) / (size[:, None] * size)
    assert folded.shape == (6, 251)
    assert float(off.abs().max()) < 4 * (2 / 251) ** 0.5
    short = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    assert torch.equal(fold(short), short)


def test_effective_ranks_of_a_few_large_eigenvalues() -> None:
    hits = []
    for seed in range(RUNS):
        generator = torch.Generator().manual_seed(seed)
        values = 0.05 * torch.randn(D, generator=generator, dtype=torch.float64)
        values[: 1 + seed % 2] += 10 * torch.rand(1 + seed % 2, generator=generator, dtype=torch.float64) + 1
        A = symmetric(values, seed)
        operator, truth = Plain(A), float(A.trace() ** 2 / A.square().sum())
        norm = frobenius_norm(operator, n_probes=8, seed=seed)
        found = effective_rank(trace(operator, n_probes=8, method="hutchinson", seed=seed), norm)
        low, high = found.interval()
        hits.append(low <= truth <= high)
    # 89 % by the delta method.
    share(hits)


def test_blocks_that_hold_the_large_eigenvalue() -> None:
    blocks, hits = {"first": slice(0, 20), "second": slice(20, D)}, []
    for seed in range(RUNS):
        A = torch.zeros(D, D, dtype=torch.float64)
        one = torch.randn(D - 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        A[20:, 20:] = torch.outer(one, one)
        A = A + 0.05 * symmetric(torch.randn(D, generator=torch.Generator().manual_seed(seed)).double(), seed)
        found = trace(Plain(A, blocks), n_probes=8, method="hutchinson", seed=seed).details["blocks"]["second"]
        low, high = Estimate(found["value"], ErrorParts(found["std_error"]), df=found["df"]).interval()
        hits.append(low <= float(A.diagonal()[20:].sum()) <= high)
    # 92 % where the samples' own variance is cut to what the law leaves of it.
    share(hits)
