"""Deflation: the split is exact for any orthonormal rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from oracles import Plain, SumOperator, eigenvalues, symmetric
from torch import Tensor

from hessprobe.estimators.xtrace import CoordinateSample, basis_of, block_rows, deflation, next_prime


def random_rows(count: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 7, 30])
def test_known_parts_and_the_complement_add_up(count: int) -> None:
    A = symmetric(eigenvalues("indefinite", 30))
    split = deflation(Plain(A), random_rows(count, 30))
    P = torch.eye(30, dtype=torch.float64) - split.basis.T @ split.basis
    rest = P @ A @ P
    torch.testing.assert_close(split.trace + float(rest.trace()), float(A.trace()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split.squared_norm + float(rest.square().sum()), float(A.square().sum()))
    torch.testing.assert_close(split.diagonal() + rest.diagonal(), A.diagonal(), rtol=1e-12, atol=1e-12)
    assert split.matvecs == count


def test_term_parts_are_those_of_each_term() -> None:
    matrices = torch.stack([symmetric(eigenvalues("outliers", 40), seed) for seed in range(4)])
    A = SumOperator(matrices, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    split = deflation(A, random_rows(5, 40))
    V = split.basis
    P = torch.eye(40, dtype=torch.float64) - V.T @ V
    traces = torch.stack([(V @ M @ V.T).trace() for M in matrices])
    overlaps = torch.stack([(A.total * M).sum() - ((P @ A.total @ P) * M).sum() for M in matrices])
    torch.testing.assert_close(split.term_traces, traces)
    torch.testing.assert_close(split.term_overlaps, overlaps)
    assert A.passes == 1


def test_vectors_come_in_many_forms() -> None:
    A = Plain(symmetric(eigenvalues("flat", 12)))
    rows = random_rows(3, 12)
    forms = [rows, (rows, None), SimpleNamespace(vectors=rows), deflation(A, rows), rows.float()]
    projections = []
    for form in forms:
        basis = basis_of(form, A)
        assert basis is not None
        assert basis.dtype == torch.float64
        projections.append(basis.T @ basis)
    for other in projections[1:4]:
        torch.testing.assert_close(other, projections[0])
    torch.testing.assert_close(projections[4], projections[0], atol=1e-6, rtol=1e-6)
    assert basis_of(None, A) is None
    assert basis_of(rows[:0], A) is None


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "deflate must be None, vectors"),
        (torch.ones(3, 5), ValueError, r"deflate must have shape \(k, 12\)"),
        (torch.ones(13, 12), ValueError, "deflate must have shape"),
        (torch.full((1, 12), torch.nan), ValueError, "deflate must be finite"),
    ],
)
def test_bad_vectors_are_refused(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        basis_of(given, Plain(symmetric(eigenvalues("flat", 12))))


def test_no_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="vectors must be at least one"):
        deflation(Plain(torch.eye(3)), None)


def test_a_coordinate_sample_keeps_every_coordinate_once_over_the_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hessprobe.estimators.xtrace._COORDINATES", 64)
    A = Plain(torch.eye(1000, dtype=torch.float64))
    sample = CoordinateSample.plan(A, 4000, seed=1)
    assert sample.stride == 17
    left = random_rows(1, 1000, 1)
    right = random_rows(1, 1000, 2)
    wide = sample.dots(sample.take(left.expand(4000, -1)), sample.take(right.expand(4000, -1)))
    truth = float((left * right).sum())
    assert abs(float(wide.mean()) - truth) < 4 * float(wide.std()) / 4000**0.5
    assert len(set(sample.index[:, 0].tolist())) == 17
    ones = sample.dots(sample.take(torch.ones(4000, 1000).double()), sample.take(torch.ones(4000, 1000).double()))
    assert float(ones.mean()) == pytest.approx(1000, rel=0.001)


def test_primes_and_block_sizes() -> None:
    assert [next_prime(n) for n in (1, 2, 8, 24, 49)] == [2, 2, 11, 29, 53]
    assert block_rows(10) == 64
    assert block_rows(1 << 22) == 2
    assert block_rows(1 << 30) == 1
