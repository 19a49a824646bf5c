"""The Frobenius norm, its pair products, block shares and data error; the effective rank."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import SPECTRA, Plain, SumOperator, eigenvalues, symmetric
from stats import assert_agrees
from torch import Tensor

from hessprobe.errors import NonFiniteError, NumericalWarning
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators import Progress, deflation, effective_rank, frobenius_norm, trace
from hessprobe.estimators.frobenius import Pairs, combine_squares, expected_variance, pair_count, sample_squares
from hessprobe.operators import Counted
from hessprobe.vectors import ProbeStream

BLOCKS = {"first": slice(0, 30), "second": slice(30, 200)}


def leading(matrix: Tensor, count: int, noise: float = 0.0) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    rows = vectors[:, values.abs().argsort(descending=True)[:count]].T
    generator = torch.Generator().manual_seed(1)
    return rows + noise * torch.randn(rows.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("deflated", [0, 12])
def test_the_norm_agrees_with_the_truth(kind: str, deflated: int) -> None:
    matrix = symmetric(eigenvalues(kind))
    rows = leading(matrix, deflated, 1e-3) if deflated else None
    for law in ("rademacher", "gaussian", "sphere"):
        estimate = frobenius_norm(Plain(matrix), n_probes=48, deflate=rows, law=law, seed=4)
        relative = {"outliers": 0.13, "flat": 0.03, "indefinite": 0.05, "decaying": 0.18}[kind]
        assert_agrees(estimate, float(matrix.norm()), relative * float(matrix.norm()))
        assert estimate.matvecs == 48 + deflated
        shared = estimate.details["trace"]
        assert abs(shared["value"] - float(matrix.trace())) < 4 * shared["std_error"]


@pytest.mark.parametrize("kind", ["outliers", "decaying"])
def test_leading_eigenvectors_take_the_error_away(kind: str) -> None:
    matrix = symmetric(eigenvalues(kind))
    found = frobenius_norm(Plain(matrix), n_probes=16, deflate=leading(matrix, 12), seed=4)
    assert_agrees(found, float(matrix.norm()), 1e-3 * float(matrix.norm()))
    split = deflation(Plain(matrix), leading(matrix, 12))
    again = frobenius_norm(Plain(matrix), n_probes=16, deflate=split, seed=4)
    assert again.value == pytest.approx(found.value)
    assert again.matvecs == 16


def test_pair_products_are_combined_as_derived() -> None:
    matrix = symmetric(eigenvalues("outliers", 50))
    W = ProbeStream(50, 3).block(0, 7)
    Z = W @ matrix
    f = Z.square().sum(1)
    p = (W @ Z.T).square()
    pairs = [(i, j) for i in range(7) for j in range(i + 1, 7)]
    mean = f.mean()
    products = torch.stack([p[i, j] for i, j in pairs])
    remainder = 2 * mean - products.mean()
    var_single, var_pairs = f.var() / 7, (2 * mean**2 + f.var()) / 21
    weight = float(var_single / (var_single + var_pairs))
    found = combine_squares(f, [Pairs(7, float(products.sum()))])
    assert found.weight == pytest.approx(weight)
    assert found.value == pytest.approx((1 - weight) * float(mean) + weight * float(remainder))
    assert found.variance == pytest.approx(float(var_single * var_pairs / (var_single + var_pairs)))
    kurtosis = float((f - mean).pow(4).mean() / (f - mean).square().mean() ** 2)
    assert 2 * 7 / (kurtosis - 1) < 6
    assert found.df == pytest.approx(2 * 7 / (kurtosis - 1) * (1 - weight / 2))
    assert expected_variance(found, 7, 100) == pytest.approx(found.variance)
    assert expected_variance(found, 70, 10) < found.variance / 10
    inside = [p[i, j] for i, j in pairs if (i < 3) == (j < 3)]
    grouped = combine_squares(f, [Pairs(3, float(sum(inside[:3]))), Pairs(4, float(sum(inside[3:])))])
    linear = (2 * f[:3].sum() + 3 * f[3:].sum() - sum(inside)) / 9
    assert grouped.value == pytest.approx((1 - grouped.weight) * float(mean) + grouped.weight * float(linear))
    alone = combine_squares(f, [Pairs(1, 0.0)] * 7)
    assert (alone.value, alone.weight) == (pytest.approx(float(mean)), 0.0)
    negative = combine_squares(f, [Pairs(7, 1e9)])
    assert (negative.value, negative.variance) == pytest.approx((float(mean), float(f.var() / 7)))


def test_pair_remainder_is_unbiased_with_the_variance_of_the_formula() -> None:
    matrix = symmetric(eigenvalues("outliers", 60))
    generator = torch.Generator().manual_seed(2)
    n, sets = 12, 4000
    W = torch.randn(sets, n, 60, generator=generator, dtype=torch.float64)
    Z = W @ matrix
    f, p = Z.square().sum(2), (W @ Z.mT).square()
    off = p.sum((1, 2)) - p.diagonal(dim1=1, dim2=2).sum(1)
    remainder = 2 * f.mean(1) - off / (n * (n - 1))
    square, fourth = float(matrix.square().sum()), float((matrix @ matrix).square().sum())
    assert abs(float(remainder.mean()) - square) < 4 * float(remainder.std()) / math.sqrt(sets)
    predicted = 2 * (2 * square**2 + 2 * fourth) / (n * (n - 1))
    assert float(remainder.var()) == pytest.approx(predicted, rel=0.12)
    assert float(f.mean(1).var()) == pytest.approx(2 * fourth / n, rel=0.08)
    linked = torch.corrcoef(torch.stack([remainder, f.mean(1)]))[0, 1]
    assert abs(float(linked)) < 0.06


def test_pairs_gain_on_outlier_spectra() -> None:
    matrix = symmetric(eigenvalues("outliers"))
    estimates = [frobenius_norm(Plain(matrix), n_probes=32, seed=seed) for seed in range(60)]
    rms = math.sqrt(sum((e.value - float(matrix.norm())) ** 2 for e in estimates) / 60)
    # Var of mean ||A w||^2 is 2 tr A^4 / n; the delta method halves the relative error.
    alone = math.sqrt(2 * float((matrix @ matrix).square().sum()) / 32) / (2 * float(matrix.norm()))
    assert rms < 0.7 * alone


def test_groups_bound_memory_and_keep_the_answer_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = symmetric(eigenvalues("outliers"))
    monkeypatch.setattr("hessprobe.estimators.frobenius._GROUP", 200 * 10)
    seen: list[Progress] = []
    A = SumOperator(torch.stack([matrix, matrix]))
    estimate = frobenius_norm(A, n_probes=36, seed=1, callback=seen.append)
    assert_agrees(estimate, float(matrix.norm()), 0.4 * float(matrix.norm()))
    assert [step.done for step in seen] == [10, 20, 30, 36]
    assert seen[-1].value == pytest.approx(estimate.value)
    assert seen[-1].std_error == pytest.approx(estimate.std_error)
    assert A.passes == 4
    assert pair_count(36, 10) == 3 * 45 + 15


def test_block_shares_are_those_of_the_rows() -> None:
    matrix = symmetric(eigenvalues("outliers"))
    for rows in (None, leading(matrix, 6, 0.01)):
        found = frobenius_norm(Plain(matrix, BLOCKS), n_probes=64, deflate=rows, seed=2).details["blocks"]
        for name, where in BLOCKS.items():
            truth = float(matrix[where].square().sum())
            assert abs(found[name]["value"] - truth) < 4 * found[name]["std_error"]
            assert found[name]["std_error"] < 0.25 * truth
    exact = frobenius_norm(Plain(matrix, BLOCKS), n_probes=200).details["blocks"]
    assert exact["first"]["value"] == pytest.approx(float(matrix[:30].square().sum()))


def spread_terms(terms: int = 10, dim: int = 60) -> SumOperator:
    sizes = torch.linspace(0.5, 1.5, terms).double()
    parts = [float(s) * symmetric(eigenvalues("outliers", dim)) for s in sizes]
    extra = [0.3 * symmetric(eigenvalues("indefinite", dim), 20 + b) for b in range(terms)]
    weights = torch.tensor([2.0] * (terms - 1) + [1.0]).double()
    return SumOperator(torch.stack([a + b for a, b in zip(parts, extra, strict=True)]), weights / weights.sum())


def influence_error(A: SumOperator) -> float:
    x = torch.einsum("ij,bij->b", A.total, A.matrices)
    centred = x - (A.weights * x).sum()
    square = A.n_terms / (A.n_terms - 1) * float((A.weights.square() * centred.square()).sum())
    return math.sqrt(square) / float(A.total.norm())


@pytest.mark.parametrize("deflated", [0, 5])
@pytest.mark.parametrize("coordinates", [65536, 64])
def test_data_error_is_the_influence_of_the_batches(
    deflated: int, coordinates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hessprobe.estimators.xtrace._COORDINATES", coordinates)
    dim = 60 if coordinates > 64 else 400
    A = spread_terms(dim=dim)
    rows = leading(A.total, deflated, 0.01) if deflated else None
    found = frobenius_norm(A, n_probes=58, deflate=rows, seed=1)
    assert found.errors.data == pytest.approx(influence_error(A), rel=0.05 if deflated else 0.25)


def test_probe_noise_is_not_taken_for_data_error() -> None:
    # Rotated copies of one matrix have nearly the same product with their mean, so that all spread seen is noise.
    A = SumOperator(torch.stack([symmetric(eigenvalues("indefinite", 80), seed) for seed in range(12)]))
    truth = influence_error(A)
    found = [frobenius_norm(A, n_probes=6, seed=seed).errors.data for seed in range(40)]
    assert sum(error is None for error in found) > 4
    assert math.sqrt(sum((error or 0.0) ** 2 for error in found) / 40) < 2 * truth


def test_data_error_of_the_exact_path_is_that_of_resampled_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    norms, found = [], []
    for _ in range(300):
        scale = 1 + 0.4 * torch.randn(8, generator=generator, dtype=torch.float64)
        A = SumOperator(scale[:, None, None] * symmetric(eigenvalues("decaying", 6)))
        norms.append(float(A.total.norm()))
        data = frobenius_norm(A, n_probes=6).errors.data
        assert data is not None
        found.append(data**2)
    truth = float(torch.tensor(norms).std())
    assert math.sqrt(sum(found) / len(found)) == pytest.approx(truth, rel=0.12)


@pytest.mark.parametrize("dim", [1, 3, 100])
def test_zero_tiny_and_scaled_matrices(dim: int) -> None:
    zero = frobenius_norm(Plain(torch.zeros(dim, dim, dtype=torch.float64)), n_probes=8)
    assert (zero.value, zero.std_error) == (0.0, 0.0)
    zero = frobenius_norm(Plain(torch.zeros(dim, dim, dtype=torch.float64)), rtol=0.01)
    assert zero.interval() == (0.0, 0.0)
    matrix = symmetric(eigenvalues("outliers", max(dim, 12)))[:dim, :dim]
    one = frobenius_norm(Plain(matrix), n_probes=8)
    small = frobenius_norm(Plain(matrix * 1e-5), n_probes=8)
    assert small.value == pytest.approx(one.value * 1e-5, rel=1e-9)
    assert small.std_error == pytest.approx(one.std_error * 1e-5, rel=1e-7)
    if dim < 8:
        assert one.kind == "exact"
        assert one.value == pytest.approx(float(matrix.norm()))
        assert one.matvecs == dim


@pytest.mark.parametrize("kind", SPECTRA)
def test_a_tolerance_is_met_with_the_pilot_deflated_where_that_helps(kind: str) -> None:
    matrix = symmetric(eigenvalues(kind, 500))
    met = 0
    for seed in range(3, 8):
        A = Counted(Plain(matrix))
        estimate = frobenius_norm(A, rtol=0.01, seed=seed)
        half = estimate.half_width()
        met += half <= 0.01 * estimate.value
        assert ("tolerance-missed" in estimate.flags) == (half > 0.01 * estimate.value)
        assert abs(estimate.value - float(matrix.norm())) < 2 * half
        assert estimate.matvecs == A.matvec_count < 500
        if kind == "flat":
            assert estimate.method == "probes"
        if kind in ("outliers", "decaying"):
            assert estimate.method == "probes+deflation"
            # A pilot of 12, as many of its directions as carry the norm, and the fewest probes.
            assert estimate.matvecs <= 12 + 12 + 12
            assert estimate.details["pilot"]["wanted_before_deflation"] > 72
    # A pilot may miss a large eigenvalue, and then the answer says that it is wider than was asked for.
    assert met >= 4


def sample_of(values: Tensor, terms: int, examples: int, seed: int) -> SumOperator:
    """Second moments of examples whose mean has about these eigenvalues, a term for so many examples."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(terms, examples, len(values), generator=generator, dtype=torch.float64) * values.sqrt()
    turn = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    rows = rows @ turn
    return SumOperator(rows.mT @ rows / examples)


@pytest.mark.parametrize("terms", [4, 8, 21])
def test_few_directions_are_found_on_a_quarter_of_the_data(terms: int) -> None:
    values = torch.cat([torch.linspace(10, 4, 6, dtype=torch.float64), torch.full((194,), 0.02, dtype=torch.float64)])
    held = 0
    for seed in range(20):
        A = Counted(sample_of(values, terms, 320 // terms, seed=seed // 4))
        estimate = frobenius_norm(A, rtol=0.02, seed=seed)
        low, high = estimate.interval()
        truth = float(A.inner.total.norm())
        held += low <= truth <= high
        # Two passes with 12 vectors over a quarter of the terms, 12 directions, and six probes at once.
        share = len(range(1, terms, 4)) / terms
        extra = estimate.samples - 6
        assert estimate.matvecs == pytest.approx(24 * share + 12 + 6 + extra)
        assert extra == 0 or estimate.half_width() <= 0.02 * estimate.value
        assert estimate.details["deflated"] == 12
        assert estimate.errors.data is not None
        assert estimate.errors.data > 0
    assert held >= 17


def test_many_directions_leave_it_to_a_pilot_of_all_data() -> None:
    A = Counted(sample_of(torch.arange(1, 201, dtype=torch.float64) ** -0.1, 8, 100, seed=1))
    estimate = frobenius_norm(A, rtol=0.02, seed=0)
    low, high = estimate.interval(0.999)
    assert low <= float(A.inner.total.norm()) <= high
    # Eight vectors over two of the eight terms were in vain.
    assert estimate.details["pilot"]["probes"] == 12
    assert estimate.matvecs == pytest.approx(2 + 12 + estimate.samples + estimate.details["deflated"])


def test_so_small_a_tolerance_that_all_products_are_fewer_is_met_exactly() -> None:
    values = torch.cat([torch.linspace(10, 4, 6, dtype=torch.float64), torch.full((114,), 0.02, dtype=torch.float64)])
    A = Counted(sample_of(values, 8, 40, seed=3))
    estimate = frobenius_norm(A, rtol=1e-6)
    assert (estimate.kind, estimate.value) == ("exact", pytest.approx(float(A.inner.total.norm()), rel=1e-12))
    # The look, twelve directions and six probes come before it.
    assert A.dim < estimate.matvecs <= A.dim + 24 * 2 / 8 + 12 + 6


def test_a_sketch_of_all_there_is_leaves_nothing() -> None:
    values = torch.cat([torch.linspace(10, 4, 3, dtype=torch.float64), torch.zeros(117, dtype=torch.float64)])
    A = Counted(sample_of(values, 8, 40, seed=4))
    estimate = frobenius_norm(A, rtol=1e-3)
    assert estimate.value == pytest.approx(float(A.inner.total.norm()), rel=1e-10)
    assert estimate.half_width() <= 1e-8 * estimate.value
    assert estimate.details["deflated"] == 3


def test_samples_in_parts_are_those_of_one_run() -> None:
    A = sample_of(torch.linspace(3, 1, 60, dtype=torch.float64), 4, 80, seed=2)
    found = deflation(A, torch.eye(60, dtype=torch.float64)[:3])
    stream = ProbeStream(60, 5, "rademacher", torch.float64, torch.device("cpu"), "frobenius")
    whole = sample_squares(A, stream, 0, 9, found)
    joined = sample_squares(A, stream, 0, 6, found).joined(sample_squares(A, stream, 6, 3, found))
    for name in ("squares", "forms", "blocks", "table", "weights"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    assert [pairs.size for pairs in joined.pairs] == [6, 3]
    # Pairs across the two parts are not used, so that the averages of both kinds differ by little.
    assert joined.combined().value == pytest.approx(whole.combined().value, rel=0.05)


def test_sequential_intervals_of_norms_cover() -> None:
    """Probes are added until the interval is narrow enough, which must not make it too narrow."""
    held = runs = 0
    for seed in range(40):
        values = torch.cat([torch.full((13,), 10.0), torch.linspace(0, 0.05, 187)]).double()
        A = sample_of(values, 8, 40, seed=seed)
        truth = float(A.total.norm())
        for probes in range(5):
            estimate = frobenius_norm(A, rtol=0.05, seed=100 * seed + probes, data_error=False)
            if estimate.details["pilot"]["probes"] == 6:
                low, high = estimate.interval()
                held, runs = held + (low <= truth <= high), runs + 1
    # A share of .95 from 200 runs has a standard error of 1.5 %.
    assert runs > 150
    assert held / runs >= 0.905


def test_flags_and_warnings() -> None:
    matrix = symmetric(eigenvalues("outliers"))
    assert "heavy-tailed" in frobenius_norm(Plain(matrix), n_probes=24).flags
    assert frobenius_norm(Plain(matrix), n_probes=24, deflate=leading(matrix, 10)).flags == ()
    assert frobenius_norm(Plain(symmetric(eigenvalues("flat"))), n_probes=24).flags == ()
    with pytest.warns(NumericalWarning, match="max_probes must be larger"):
        cut = frobenius_norm(Plain(symmetric(eigenvalues("flat"))), rtol=1e-4, max_probes=30)
    assert "budget-exhausted" in cut.flags
    with pytest.raises(NonFiniteError, match="products with the operator must be finite"):
        frobenius_norm(Plain(torch.full((50, 50), torch.nan)), n_probes=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol must be"),
        ({"n_probes": 0}, "n_probes must be"),
        ({"law": "uniform"}, "law must be one of"),
        ({"deflate": torch.ones(2, 3)}, "deflate must have shape"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frobenius_norm(Plain(symmetric(eigenvalues("flat"))), **options)


def test_effective_rank_by_the_delta_method() -> None:
    t = Estimate(30.0, ErrorParts(0.3, data=0.2), df=10.0, matvecs=5, samples=4)
    F = Estimate(6.0, ErrorParts(0.05, data=0.1), df=20.0, matvecs=7, samples=9)
    found = effective_rank(t, F)
    assert found.value == pytest.approx(25.0)
    parts = (4 * 900 * 0.09 + 2 * 0.3**4) / 6**4, 4 * 30**4 * 0.0025 / 6**6
    assert found.std_error == pytest.approx(math.sqrt(sum(parts)))
    assert found.df == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 10 + parts[1] ** 2 / 20))
    assert found.errors.data == pytest.approx(60 / 36 * 0.2 + 2 * 900 / 216 * 0.1)
    assert (found.matvecs, found.samples) == (12, 4)
    with pytest.raises(ValueError, match=r"frobenius\.value must be"):
        effective_rank(t, Estimate(0.0))
    matrix = symmetric(eigenvalues("flat"))
    both = effective_rank(
        trace(Plain(matrix), n_probes=64, method="hutchinson"), frobenius_norm(Plain(matrix), n_probes=64)
    )
    assert_agrees(both, float(matrix.trace() ** 2 / matrix.square().sum()), 12.0)


def test_a_zero_matrix_has_no_effective_rank() -> None:
    zero = Plain(torch.zeros(40, 40).double())
    with pytest.raises(ValueError, match=r"frobenius.value must be > 0; got 0\. All eigenvalues of A are zero"):
        effective_rank(trace(zero, n_probes=4), frobenius_norm(zero, n_probes=4))


def test_a_small_matrix_is_made_whole():
    # A third of the intervals missed where a pilot's directions were deflated out of 31 (the Hessian of a small net).
    G = torch.randn(31, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = frobenius_norm(G + G.T, rtol=0.01, seed=0)
    assert (found.method, found.matvecs) == ("exact", 31)
    assert found.value == pytest.approx(float((G + G.T).norm()), rel=1e-12)
