"""XTrace and XDiag: the leave-one-out identities, exactness, rank deficiency, the error."""

from __future__ import annotations

import pytest
import torch
from oracles import SPECTRA, Plain, eigenvalues, symmetric
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.estimators import diagonal, trace
from hessprobe.estimators.xtrace import (
    Small,
    _remainder_rows,
    exchange,
    exchange_diagonal,
    exchange_error,
    remainder_squares,
    remainder_std,
)
from hessprobe.vectors import LAWS, ProbeStream


def left_out(matrix: Tensor, W: Tensor, *, skip: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Return t_i and the diagonal samples by their definition, with probes as columns."""
    kept = [i for i in range(W.shape[1]) if i not in skip]
    values, diagonals = [], []
    for i in kept:
        others = W[:, [j for j in kept if j != i]]
        Q = torch.linalg.qr(matrix @ others).Q
        P = torch.eye(len(matrix), dtype=torch.float64) - Q @ Q.T
        w = P @ W[:, i]
        ratio = (len(matrix) - len(kept) + 1) / (w @ w)
        values.append((Q.T @ matrix @ Q).trace() + ratio * (w @ matrix @ w))
        diagonals.append((Q @ Q.T @ matrix).diagonal() + W[:, i] * (P @ matrix @ W[:, i]))
    return torch.stack(values), torch.stack(diagonals)


@pytest.mark.parametrize("kind", SPECTRA)
def test_samples_are_their_definition(kind: str) -> None:
    matrix = symmetric(eigenvalues(kind, 60))
    sketch = exchange(Plain(matrix), 9, 4, "rademacher")
    values, diagonals = left_out(matrix, sketch.probes.T)
    small = Small.of(sketch, 9)
    torch.testing.assert_close(small.samples(), values)
    found, errors = exchange_diagonal(sketch)
    torch.testing.assert_close(found, diagonals.mean(0))
    variance = diagonals.var(0)
    torch.testing.assert_close(errors, ((8 * variance + variance.mean()) / 9 * 2 / 9).sqrt())
    shorter, _ = left_out(matrix, sketch.probes[:4].T)
    torch.testing.assert_close(Small.of(sketch, 4).samples(), shorter)
    for j, samples in enumerate(small.without(0, 9).samples()):
        torch.testing.assert_close(samples, left_out(matrix, sketch.probes.T, skip=(j,))[0])


@pytest.mark.parametrize("law", LAWS)
def test_the_error_is_that_of_the_law_of_the_remainders(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, n = symmetric(eigenvalues("outliers", 60)) + 3 * torch.eye(60, dtype=torch.float64), 9
    sketch = exchange(Plain(matrix), n, 5, law)
    rows, quotients, rests = [], [], []
    for i, w in enumerate(sketch.probes):
        Q = torch.linalg.qr(matrix @ sketch.probes[[j for j in range(n) if j != i]].T).Q
        P = torch.eye(60, dtype=torch.float64) - Q @ Q.T
        rests.append((P @ w, P @ matrix @ P @ w))
        quotients.append((w @ rests[i][1]) / (rests[i][0] @ rests[i][0]))
    shift = torch.stack(quotients).mean().expand(n) if law == "rademacher" else torch.stack(quotients)
    rows = torch.stack([image - c * inside for (inside, image), c in zip(rests, shift, strict=True)])
    law_variance = 2 * (sketch.probes * rows).var(0).sum() if law == "rademacher" else 2 * rows.square().sum(1).mean()
    small = Small.of(sketch, n)
    naive = float(small.samples().var()) / n
    left = small.without(0, n).samples().mean(1)
    jackknife = float((left - left.mean()).square().sum()) * (n - 1) / n
    factor = min(1 + max(jackknife / naive - 1, 0) / 4, 2)
    value, error = exchange_error(sketch, n, law)
    assert error**2 == pytest.approx(factor * float(law_variance) / n)
    monkeypatch.setattr("hessprobe.estimators.xtrace._BATCH", 200)
    assert exchange_error(sketch, n, law) == pytest.approx((value, error))


@pytest.mark.parametrize("rank", [0, 1, 5, 8])
def test_low_rank_is_exact(rank: int) -> None:
    values = torch.zeros(100, dtype=torch.float64)
    values[:rank] = torch.linspace(-2, 3, 8).double()[:rank]
    matrix = symmetric(values)
    estimate = trace(Plain(matrix), method="xtrace", n_probes=10)
    assert estimate.kind == "exact"
    assert estimate.details["rank"] == rank
    assert estimate.value == pytest.approx(float(matrix.trace()), abs=1e-12)
    assert estimate.half_width() < 1e-11
    found = diagonal(Plain(matrix), method="xdiag", n_probes=10)
    torch.testing.assert_close(found.values, matrix.diagonal(), atol=1e-12, rtol=0)
    nearly = trace(Plain(matrix), method="xtrace", n_probes=max(rank, 2) + 1)
    assert nearly.value == pytest.approx(float(matrix.trace()), abs=1e-12)


def test_enough_probes_fall_back_to_the_exact_path() -> None:
    matrix = symmetric(eigenvalues("indefinite", 20))
    estimate = trace(Plain(matrix), method="xtrace", n_probes=10)
    assert (estimate.method, estimate.matvecs, estimate.kind) == ("xtrace:exact", 20, "exact")
    assert estimate.value == pytest.approx(float(matrix.trace()))
    assert diagonal(Plain(matrix), method="xdiag", n_probes=10).method == "xdiag:exact"


def test_a_cut_sketch_carries_its_bound() -> None:
    values = torch.cat([torch.linspace(1, 2, 5), torch.full((95,), 1e-9)]).double()
    matrix = symmetric(values)
    estimate = trace(Plain(matrix.float()), method="xtrace", n_probes=10)
    assert estimate.kind == "exact"
    assert abs(estimate.value - float(matrix.trace())) < 1e-5
    assert 0 < estimate.errors.solver < 1e-3


def test_leaving_out_needs_independent_products() -> None:
    sketch = exchange(Plain(torch.zeros(30, 30, dtype=torch.float64)), 4, 0, "sphere")
    with pytest.raises(ValueError, match="factor must exist to leave a probe out"):
        Small.of(sketch, 4)


def test_products_that_are_not_finite_are_named() -> None:
    with pytest.raises(NonFiniteError, match="products with the operator must be finite"):
        exchange(Plain(torch.full((30, 30), torch.nan)), 4, 0, "sphere")


def test_remainders_on_both_sides_are_those_of_the_projections() -> None:
    matrix = symmetric(eigenvalues("outliers", 60))
    W = ProbeStream(60, 4).block(0, 6)
    Z = W @ matrix
    basis = torch.linalg.qr(Z.T).Q.T
    found = remainder_squares(W, Z, basis, basis @ matrix)
    for i in range(6):
        V = torch.linalg.svd(torch.cat([Z[:i], Z[i + 1 :]]), full_matrices=False).Vh
        P = torch.eye(60).double() - V.T @ V
        assert float(found[i]) == pytest.approx(float((P @ matrix @ P @ W[i]).square().sum()), rel=1e-9)


@pytest.mark.parametrize("law", LAWS)
def test_a_sketch_within_a_complement_is_that_of_the_projected_matrix(law: str) -> None:
    dim, count, known = 40, 5, 3
    matrix = symmetric(eigenvalues("outliers", dim))
    V = torch.linalg.qr(ProbeStream(dim, 9, "gaussian").block(0, known).T).Q.T
    P = torch.eye(dim).double() - V.T @ V
    inner = P @ matrix @ P
    sketch = exchange(Plain(matrix), count, 2, law, V)
    W = ProbeStream(dim, 2, law).block(0, count)
    expected = []
    for i in range(count):
        Q = torch.linalg.qr((torch.cat([W[:i], W[i + 1 :]]) @ inner).T).Q
        outside = P - Q @ Q.T
        w = outside @ W[i]
        expected.append((Q.T @ inner @ Q).trace() + (w @ inner @ w) * (dim - known - count + 1) / (w @ w))
    torch.testing.assert_close(Small.of(sketch, count).samples(), torch.stack(expected))
    rest = inner
    Q = torch.linalg.qr((W[1:] @ inner).T).Q
    R = (P - Q @ Q.T) @ rest @ (P - Q @ Q.T)
    assert sketch.dim == dim - known
    found = remainder_std(sketch, count, "gaussian") ** 2
    assert found > 0
    if law == "gaussian":
        forms, lengths = Small.of(sketch, count).remainders()
        shifted = R @ W[0] - forms[0] / lengths[0] * (P - Q @ Q.T) @ W[0]
        rows = [row for row, _ in _remainder_rows(sketch, Small.of(sketch, count), forms / lengths)]
        torch.testing.assert_close(torch.cat(rows, 1)[0], shifted)
