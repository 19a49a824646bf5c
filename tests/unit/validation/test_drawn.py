"""Matrices drawn by seed are what they say: symmetric, reproducible, of their family, and sums of their terms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hessprobe.validation.coverage.problem import Problem, gapped
from hessprobe.validation.drawn import BASES, FAMILIES, draw, signs


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_seed_and_a_family_give_one_symmetric_matrix(family):
    for seed in range(6):
        one, other = draw(seed, family), draw(seed, family)
        assert np.array_equal(one.matrix, other.matrix)
        assert np.array_equal(one.matrix, one.matrix.T)
        assert 30 <= one.dim <= 200
        assert np.isfinite(one.matrix).all()
        assert one.norm > 0
        assert float(one.values.sum()) == pytest.approx(float(np.trace(one.matrix)), abs=1e-11 * one.size)
        edges = [(where.start, where.stop) for where in one.blocks.values()]
        assert (edges[0][0], edges[-1][1]) == (0, one.dim)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))
    assert not np.array_equal(draw(0, family).values, draw(1, family).values)


def test_families_are_drawn_and_so_are_bases_and_sizes():
    found = [draw(seed) for seed in range(300)]
    assert {one.family for one in found} == set(FAMILIES)
    assert {one.basis for one in found} >= set(BASES)
    assert len({one.dim for one in found}) > 80


@pytest.mark.parametrize("make", [*BASES.values(), signs])
def test_a_basis_is_orthogonal(make):
    basis = make(np.random.default_rng(1), 37)
    assert np.abs(basis.T @ basis - np.eye(37)).max() < 1e-13
    if make is signs:
        assert np.allclose(np.abs(basis[:, 0]), 37**-0.5)


@pytest.mark.parametrize("surrogate", [False, True])
def test_terms_add_up_to_the_matrix_and_differ(surrogate):
    for seed in range(8):
        one = draw(seed)
        A = one.in_terms(surrogate=surrogate)
        total = sum(weight * term.total for weight, term in A.terms())
        scale = float(A.matrices.abs().max())
        assert float((total - torch.from_numpy(one.matrix)).abs().max()) < 1e-12 * scale
        assert 2 <= A.n_terms <= 16
        assert float((A.matrices[0] - A.matrices[1]).norm()) > 1e-3 * one.norm
        assert A.exact_diagonal() is None
        assert (A.surrogate is not None) == surrogate
        if surrogate:
            assert torch.equal(A.surrogate.exact_diagonal()[0], A.surrogate.total.diagonal())


def test_relatives_are_what_they_are_called():
    one = draw(4, "pairs")
    assert one.absolute().values[0] > -1e-12 * one.norm
    assert np.allclose(np.sort(one.absolute().values), np.sort(np.abs(one.values)), atol=1e-12 * one.norm)
    change = np.linalg.norm(one.neighbour().matrix - one.matrix) / one.norm
    assert 0.03 <= change <= 1


@pytest.mark.parametrize("gap", [0.1, 1e-6])
def test_a_gap_is_where_it_should_be(gap):
    top, low = gapped(gap, 3).drawn.values, gapped(gap, 3, bottom=True).drawn.values
    assert (top[-1] - top[-2]) / top[-1] == pytest.approx(gap, rel=1e-6)
    assert (low[1] - low[0]) / -low[0] == pytest.approx(gap, rel=1e-6)


def test_samples_of_data_have_the_matrix_as_their_mean():
    problem = Problem.small("network", 5)
    whole = torch.stack([problem.batches(16, run).total for run in range(200)])
    off = whole.mean(0).numpy() - problem.drawn.matrix
    spread = float(whole.std(0).norm()) / 200**0.5
    assert np.linalg.norm(off) < 1.5 * spread
    assert not torch.equal(whole[0], whole[1])
