from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracles import Plain, SumOperator, eigenvalues, symmetric

from hessprobe.estimate import Batches, ErrorParts, Estimate, Influence, infinitesimal_jackknife
from hessprobe.estimators import effective_rank, frobenius_norm, spectral_sketch, trace
from hessprobe.estimators.budget import dependent_df
from hessprobe.estimators.difference import difference
from hessprobe.estimators.law import crossed_variance, shrunk_skewness
from hessprobe.estimators.xtrace import deflation
from hessprobe.krylov import eigsh
from hessprobe.universal import evaluate
from hessprobe.universal.catalogue import CATALOGUE
from hessprobe.vectors import ProbeStream

DIM = 60
A = symmetric(eigenvalues("outliers", DIM))
NEAR = 1.05 * A + 0.02 * symmetric(eigenvalues("indefinite", DIM), 5)
FAR = symmetric(2 * eigenvalues("flat", DIM), 9)


def traced(matrix, seed=0, n=32):
    return trace(Plain(matrix), n_probes=n, method="hutchinson", seed=seed)


@pytest.mark.parametrize("B", [NEAR, FAR])
def test_paired_traces_are_hutchinson_on_the_difference(B):
    found = difference(traced(A), traced(B)).estimate
    direct = traced(B - A)
    assert found.value == pytest.approx(direct.value, rel=1e-10)
    assert found.std_error == pytest.approx(direct.std_error, rel=1e-10)
    assert found.df == pytest.approx(direct.df)


def test_paired_terms_are_hutchinson_on_the_difference_term_by_term():
    first = torch.stack([symmetric(eigenvalues("outliers", DIM), seed) for seed in range(4)])
    second = torch.stack([symmetric(eigenvalues("flat", DIM), seed) for seed in range(4)])
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    one, two, both = (
        trace(SumOperator(m, weights), n_probes=6, method="hutchinson") for m in (first, second, second - first)
    )
    found = difference(one, two).estimate
    assert found.value == pytest.approx(both.value, rel=1e-10)
    assert found.std_error == pytest.approx(both.std_error, rel=1e-10)
    assert found.df == pytest.approx(both.df, rel=1e-10)
    assert found.errors.data == pytest.approx(both.errors.data, rel=1e-8)


@pytest.mark.parametrize("measured", [traced, lambda m: frobenius_norm(Plain(m), n_probes=32, seed=0)])
def test_similar_matrices_gain_and_dissimilar_ones_do_not(measured):
    near, far = (difference(measured(A), measured(B)) for B in (NEAR, FAR))
    assert near.gain > 5
    assert near.correlation > 0.95
    assert 0.6 < far.gain < 1.6
    assert abs(far.correlation) < 0.6
    assert near.independent == pytest.approx(math.hypot(measured(A).std_error, measured(NEAR).std_error))


def test_a_matrix_does_not_differ_from_itself():
    rows = torch.linalg.eigh(A).eigenvectors[:, -5:].T
    for measured in (
        traced,
        lambda m: frobenius_norm(Plain(m), n_probes=16, deflate=rows),
        lambda m: spectral_sketch(Plain(m), n_probes=8, steps=6, method="slq").smoothed_logdet(eps=4.0),
    ):
        found = difference(measured(A), measured(A))
        assert (found.estimate.value, found.estimate.std_error) == (0.0, 0.0)
        assert found.correlation == pytest.approx(1.0)


def test_degrees_of_freedom_of_rows_and_pairs_by_hand():
    # Deviations (3, -1, -1, -1): kurtosis 4 (81 + 3) / 12^2 = 7/3, df = min(2 * 4 / (4/3), 3) = 3; s^2 / n = 4 / 4 = 1.
    rows, pairs = torch.tensor([[3.0, -1, -1, -1]]).double(), torch.full((6,), math.sqrt(12.0)).double()
    one = Estimate(5.0, ErrorParts(1.0), influence=Influence({"f": 0 * rows}, {"f": 0 * pairs}))
    two = Estimate(6.0, ErrorParts(1.0), influence=Influence({"f": rows}, {"f": pairs}))
    found = difference(one, two).estimate
    assert found.std_error == pytest.approx(math.sqrt(1 + 12 / 6))
    assert found.df == pytest.approx((1 + 2) ** 2 / (1 / math.sqrt(3) + 2 / math.sqrt(1.5)) ** 2)
    # One sample in 25 that stands out: kurtosis 25 (24^4 + 24) / (24^2 + 24)^2 = 23.04..., so few degrees of freedom.
    lonely = torch.zeros(1, 25).double()
    lonely[0, 7] = 1.0
    wide = Influence({"f": lonely}, {"f": torch.zeros(300).double()})
    still = Influence({"f": 0 * lonely}, {"f": torch.zeros(300).double()})
    found = difference(one.with_(influence=still), two.with_(influence=wide)).estimate
    assert found.df == pytest.approx(50 / (25 * (24**4 + 24) / 600**2 - 1))


def test_a_heavy_tailed_estimate_makes_a_heavy_tailed_difference():
    heavy = frobenius_norm(Plain(symmetric(eigenvalues("decaying", DIM))), n_probes=16)
    flat = frobenius_norm(Plain(FAR), n_probes=16)
    assert "heavy-tailed" in heavy.flags
    assert difference(heavy, flat).estimate.flags == difference(flat, heavy).estimate.flags == ("heavy-tailed",)
    assert difference(flat, flat).estimate.flags == ()


def test_twice_a_matrix_differs_by_the_value_and_its_error():
    for measured in (traced, lambda m: frobenius_norm(Plain(m), n_probes=48)):
        one, two = measured(A), measured(2 * A)
        found = difference(one, two).estimate
        assert found.value == pytest.approx(one.value)
        assert found.std_error == pytest.approx(one.std_error, rel=0.5)


def test_opposite_matrices_have_opposite_errors():
    found = difference(traced(A), traced(-A))
    assert found.correlation == pytest.approx(-1.0)
    assert found.estimate.std_error == pytest.approx(2 * traced(A).std_error)


def test_scaled_estimates_scale_their_samples():
    one, two = traced(A).scaled(-0.5), traced(FAR).scaled(-0.5)
    whole = difference(traced(A), traced(FAR)).estimate
    assert difference(one, two).estimate.std_error == pytest.approx(0.5 * whole.std_error)
    assert difference(one, two).estimate.value == pytest.approx(-0.5 * whole.value)


def test_scaled_norms_scale_pairs_and_batches():
    def norm(total, shift):
        # Undeflated outliers: most of the weight is on pairs.
        parts = torch.stack([total * (1 + 0.2 * b) + shift * torch.eye(DIM).double() for b in range(4)])
        return frobenius_norm(SumOperator(parts), n_probes=40)

    one, two = norm(A, 0.0), norm(0.9 * A, 0.3)
    assert one.details["pair_weight"] > 0.5
    whole, scaled = difference(one, two).estimate, difference(one.scaled(-3.0), two.scaled(-3.0)).estimate
    assert scaled.std_error == pytest.approx(3 * whole.std_error)
    assert scaled.errors.data == pytest.approx(3 * whole.errors.data)


def rms(pairs, truth):
    """Return the root mean square of z-scores of differences to the truth."""
    found = [difference(*pair).estimate for pair in pairs]
    z = torch.tensor([(one.value - truth) / one.std_error for one in found])
    return float(z.square().mean().sqrt())


def test_spectral_sums_are_paired_chain_by_chain():
    pair = [symmetric(eigenvalues("indefinite", DIM)), symmetric(eigenvalues("flat", DIM), 9)]

    def logdets(seed):
        sketches = [spectral_sketch(Plain(m), n_probes=16, steps=12, method="slq", seed=seed) for m in pair]
        return [sketch.smoothed_logdet(eps=1.0) for sketch in sketches]

    truth = [0.5 * float((torch.linalg.eigvalsh(m).square() + 1).log().sum()) for m in pair]
    assert 0.75 < rms([logdets(seed) for seed in range(40)], truth[1] - truth[0]) < 1.3
    found = difference(*logdets(0))
    assert found.estimate.flags == ()
    assert found.correlation is not None


def test_functionals_of_means_are_paired_draw_by_draw():
    entry = CATALOGUE["frob"]()
    pair = [symmetric(eigenvalues("flat", DIM)), symmetric(1.2 * eigenvalues("flat", DIM), 9)]
    pairs = [[evaluate(entry.measure, Plain(m), n_probes=500, seed=seed) for m in pair] for seed in range(30)]
    assert 0.75 < rms(pairs, float(pair[1].norm() - pair[0].norm())) < 1.35
    assert difference(*pairs[0]).estimate.flags == ()


def test_the_noise_of_probes_is_taken_out_of_the_data_error():
    generator = torch.Generator().manual_seed(0)
    noise, spread = torch.randn(2, 40, 400, generator=generator, dtype=torch.float64)
    weights, truth = torch.full((400,), 1 / 400, dtype=torch.float64), 0.1 * spread[0]
    for shared in (True, False):
        tables = [torch.zeros(40, 400, dtype=torch.float64), noise + truth]
        pair = [Estimate(0.0, influence=Influence(batches=Batches(weights, table, shared))) for table in tables]
        found = difference(*pair).estimate.errors.data
        exact, raw = (infinitesimal_jackknife(weights, each) for each in (truth, (noise + truth).mean(0)))
        # With the noise of 40 probes it is 1.9 times as large.
        assert raw > 1.7 * exact
        assert found == pytest.approx(exact, rel=0.2)


def test_effective_ranks_are_paired_by_the_delta_method():
    # A bulk of one sign, so that the trace is far from 0; deflated, so that the ratio is linear in the samples.
    pair = [symmetric(eigenvalues("flat", DIM)), symmetric(1.1 * eigenvalues("flat", DIM) + 0.05)]

    def ranks(seed):
        return [
            effective_rank(
                trace(Plain(m), n_probes=32, method="hutchinson", seed=seed),
                frobenius_norm(Plain(m), n_probes=32, seed=seed),
            )
            for m in pair
        ]

    truth = [float(m.trace() ** 2 / m.square().sum()) for m in pair]
    found = [difference(*ranks(seed)).estimate for seed in range(60)]
    z = torch.tensor([(one.value - truth[1] + truth[0]) / one.std_error for one in found])
    assert 0.75 < float(z.square().mean().sqrt()) < 1.3
    near_zero = effective_rank(Estimate(0.1, ErrorParts(1.0), influence=Influence()), frobenius_norm(Plain(A)))
    assert near_zero.influence is None


def test_errors_of_samples_that_do_not_match_are_added():
    one, other = traced(A, n=16), traced(FAR, n=32)
    found = difference(one, other)
    assert found.estimate.std_error == one.std_error + other.std_error
    assert found.estimate.flags == ("not-paired",)
    assert (found.correlation, found.gain) == (None, None)
    assert found.estimate.df == min(one.df, other.df) >= 15
    unknown = difference(one.with_(influence=None), traced(FAR, n=16))
    assert "not-paired" in unknown.estimate.flags


def test_an_exact_value_beside_a_sampled_one_leaves_the_error_of_the_sampled_one():
    exact = trace(Plain(A), method="exact")
    found = difference(exact, traced(FAR))
    assert found.estimate.std_error == pytest.approx(traced(FAR).std_error)
    assert found.estimate.df == pytest.approx(traced(FAR).df)
    both = difference(exact, trace(Plain(FAR), method="exact")).estimate
    assert (both.std_error, both.kind) == (0.0, "exact")
    assert both.value == pytest.approx(float(FAR.trace() - A.trace()))


def test_eigenvalues_add_their_solver_bounds_and_share_their_batches():
    first = torch.stack([symmetric(eigenvalues("outliers", DIM), seed) for seed in range(3)])
    second = torch.stack([symmetric(eigenvalues("decaying", DIM), seed) for seed in range(3)])
    one, two = (eigsh(SumOperator(m), 1, "largest", tol=1e-6, seed=0).estimate(0) for m in (first, second))
    found = difference(one, two).estimate
    assert found.errors.solver == one.errors.solver + two.errors.solver
    tops = [torch.linalg.eigh(m.mean(0)) for m in (first, second)]
    assert found.value == pytest.approx(float(tops[1].eigenvalues[-1] - tops[0].eigenvalues[-1]), abs=1e-6)
    forms = [
        [float(top.eigenvectors[:, -1] @ b @ top.eigenvectors[:, -1]) for b in m]
        for top, m in zip(tops, (first, second), strict=True)
    ]
    exact = infinitesimal_jackknife([1 / 3] * 3, [b - a for a, b in zip(*forms, strict=True)])
    assert found.errors.data == pytest.approx(exact, rel=1e-4)
    bound = difference(one.with_(kind="lower bound"), two).estimate
    assert bound.flags == ("bound",)


def test_the_data_error_of_a_norm_is_that_of_the_difference():
    first = torch.stack([symmetric(eigenvalues("outliers", DIM), 3) * (1 + 0.2 * b) for b in range(5)])
    second = 1.5 * first
    one, two = (
        frobenius_norm(SumOperator(m), n_probes=64, deflate=leading(m.mean(0)), seed=0) for m in (first, second)
    )
    found = difference(one, two).estimate
    overlaps = [[float((m.mean(0) * b).sum() / m.mean(0).norm()) for b in m] for m in (first, second)]
    exact = infinitesimal_jackknife([0.2] * 5, [b - a for a, b in zip(*overlaps, strict=True)])
    assert found.errors.data == pytest.approx(exact, rel=0.01)
    # Batches that agree with each other in both: no data error, whatever the two are.
    same = [frobenius_norm(SumOperator(torch.stack([m] * 4)), n_probes=16) for m in (A, FAR)]
    assert difference(*same).estimate.errors.data == pytest.approx(0.0, abs=1e-6)


def test_other_batches_leave_the_data_error_open():
    one = trace(SumOperator(torch.stack([A] * 4)), n_probes=4, method="hutchinson")
    two = trace(SumOperator(torch.stack([FAR] * 3)), n_probes=4, method="hutchinson")
    found = difference(one, two).estimate
    assert found.errors.data is None
    assert "not-paired" in found.flags


def leading(matrix, count=10):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors[:, values.abs().argsort(descending=True)[:count]].T


def test_streams_may_not_be_joined_with_themselves():
    one = traced(A).influence
    with pytest.raises(ValueError, match="streams must differ"):
        one.joined(one)


def test_deflated_norms_know_their_deflated_overlaps():
    rows = leading(A)
    operator = SumOperator(torch.stack([A, FAR]))
    given = deflation(operator, rows)
    found = frobenius_norm(operator, n_probes=200, deflate=given, seed=1)
    batches = found.influence.batches
    truth = [float((operator.total * m).sum() / operator.total.norm()) for m in (A, FAR)]
    assert batches.table.mean(0).tolist() == pytest.approx(truth, rel=0.02)


def test_norms_keep_the_bilinear_forms_of_their_products():
    basis = torch.linalg.eigh(A).eigenvectors[:, -3:].T
    for deflate in (None, basis):
        found = frobenius_norm(Plain(A), n_probes=12, deflate=deflate, seed=4)
        P = torch.eye(DIM).double() - (0 if deflate is None else basis.T @ basis)
        Z = ProbeStream(DIM, 4, "rademacher", torch.float64, torch.device("cpu"), "frobenius").block(0, 12) @ P @ A @ P
        share = (1 - found.details["pair_weight"]) / (2 * found.value)
        kept = found.influence
        torch.testing.assert_close(kept.crossed["frobenius"], share * Z @ Z.T)
        torch.testing.assert_close(kept.diagonals["frobenius"], share * Z.square())
        torch.testing.assert_close(kept.crossed["frobenius"].diagonal()[None], kept.rows["frobenius"])
        joined = traced(A).influence.joined(kept.scaled(-2.0))
        torch.testing.assert_close(joined.crossed["frobenius"], -2 * share * Z @ Z.T)
        torch.testing.assert_close(joined.diagonals["frobenius"], -2 * share * Z.square())
    assert frobenius_norm(Plain(A), n_probes=12, law="gaussian").influence.crossed == {}
    large = Plain(symmetric(eigenvalues("flat", 600)))
    assert [len(frobenius_norm(large, n_probes=n).influence.crossed) for n in (512, 513)] == [1, 0]


def test_differences_of_norms_have_the_variance_and_skewness_of_their_forms():
    one, two = (frobenius_norm(Plain(m), n_probes=12, seed=2) for m in (FAR, 1.3 * FAR + 0.1 * A))
    assert one.details["pair_weight"] == pytest.approx(0, abs=0.2)
    first, second = one.influence, two.influence
    crossed = second.crossed["frobenius"] - first.crossed["frobenius"]
    variance = crossed_variance(crossed, second.diagonals["frobenius"] - first.diagonals["frobenius"])
    pairs = (second.pairs["frobenius"] - first.pairs["frobenius"]).square().mean() / 66
    found = difference(one, two).estimate
    assert found.std_error == pytest.approx(math.sqrt(variance / 12 + float(pairs)))
    rows = second.rows["frobenius"][0] - first.rows["frobenius"][0]
    third = shrunk_skewness(rows) / math.sqrt(12) * (variance / 12) ** 1.5
    assert found.skewness == pytest.approx(third / found.std_error**3)
    assert difference(two, one).estimate.skewness == pytest.approx(-found.skewness)
    error = math.sqrt(variance / 12), math.sqrt(float(pairs))
    assert found.df == pytest.approx(dependent_df((error[0], 11), (error[1], 5.5)))
    # Forms that only one of them has are of no use.
    other = frobenius_norm(Plain(1.3 * FAR), n_probes=12, seed=2)
    bare = other.with_(influence=replace(other.influence, crossed={}, diagonals={}))
    assert difference(one, bare).estimate.skewness == 0.0
