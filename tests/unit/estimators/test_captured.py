"""What a pilot's products say about deflating them, against the projections themselves."""

from __future__ import annotations

import pytest
import torch
from oracles import eigenvalues, symmetric

from hessprobe.estimators.budget import leading, remainders
from hessprobe.vectors import ProbeStream


def products(kind: str, dim: int = 60, count: int = 7) -> torch.Tensor:
    return ProbeStream(dim, 3).block(0, count) @ symmetric(eigenvalues(kind, dim))


@pytest.mark.parametrize("kind", ["outliers", "flat"])
def test_remainders_are_those_of_the_projections(kind: str) -> None:
    Z = products(kind)
    left = remainders(Z)
    assert left.shape == (7, 7)
    for i in range(7):
        others = torch.cat([Z[:i], Z[i + 1 :]])
        V = torch.linalg.svd(others, full_matrices=False).Vh
        for k in range(7):
            rest = Z[i] - V[:k].T @ (V[:k] @ Z[i])
            assert float(left[i, k]) == pytest.approx(float(rest @ rest), rel=1e-9)


def test_their_mean_is_what_a_sketch_of_one_probe_fewer_leaves() -> None:
    A = symmetric(eigenvalues("outliers", 60))
    found, truth = [], []
    for seed in range(400):
        Z = ProbeStream(60, seed).block(0, 6) @ A
        found.append(float(remainders(Z)[:, 3].mean()))
        V = leading(Z[:5], 3)
        truth.append(float((A - V.T @ (V @ A)).square().sum()))
    gaps = torch.tensor(found) - torch.tensor(truth)
    assert abs(float(gaps.mean())) < 4 * float(gaps.std()) / 20
    assert 4 * float(gaps.std()) / 20 < 0.1 * sum(truth) / 400


def test_leading_directions_are_the_singular_vectors() -> None:
    Z = products("outliers")
    V = torch.linalg.svd(Z, full_matrices=False).Vh[:3]
    found = leading(Z, 3)
    torch.testing.assert_close(found @ found.T, torch.eye(3).double())
    torch.testing.assert_close(found.T @ found, V.T @ V)
    assert leading(Z.float(), 3).dtype == torch.float32


def test_dependent_products_leave_nothing_and_have_no_more_directions() -> None:
    low = torch.zeros(60, dtype=torch.float64)
    low[-2:] = torch.tensor([3.0, -5.0])
    Z = ProbeStream(60, 3).block(0, 7) @ symmetric(low)
    left = remainders(Z)
    assert float(left[:, 2:].max()) < 1e-10 * float(left[:, 0].max())
    assert float(left[:, 1].mean()) > 1e-3 * float(left[:, 0].mean())
    assert leading(Z, 5).shape == (2, 60)
    assert leading(torch.zeros(4, 60).double(), 2).shape == (0, 60)
    assert float(remainders(torch.zeros(4, 60).double()).abs().max()) == 0.0
