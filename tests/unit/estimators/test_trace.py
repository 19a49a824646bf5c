"""The trace: every method against the dense oracle, its cost, its options, its refusals."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import SPECTRA, Plain, SumOperator, eigenvalues, symmetric
from stats import assert_agrees
from torch import Tensor

from hessprobe.errors import NumericalWarning
from hessprobe.estimators import Progress, deflation, trace
from hessprobe.operators import BlockDiagonal, Counted, DenseOperator

BLOCKS = {"first": slice(0, 30), "second": slice(30, 80), "third": slice(80, 200)}
SAMPLED = ("hutchinson", "hutch++", "xtrace")


def leading(matrix: Tensor, count: int, noise: float = 0.0) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    rows = vectors[:, values.abs().argsort(descending=True)[:count]].T
    generator = torch.Generator().manual_seed(1)
    return rows + noise * torch.randn(rows.shape, generator=generator, dtype=torch.float64)


def risk_like(kind: str = "outliers", terms: int = 5, closeness: float = 0.1) -> SumOperator:
    """A Hessian-like sum with a Gauss-Newton-like surrogate near it."""
    surrogate = torch.stack([symmetric(eigenvalues(kind).abs(), seed) for seed in range(terms)])
    rest = torch.stack([closeness * symmetric(eigenvalues("indefinite"), 50 + seed) for seed in range(terms)])
    weights = torch.arange(1.0, terms + 1).double() / (terms * (terms + 1) / 2)
    G = SumOperator(surrogate, weights, blocks=BLOCKS, knows_diagonal=True)
    return SumOperator(surrogate + rest, weights, surrogate=G, blocks=BLOCKS)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize(("method", "n"), [("hutchinson", 64), ("hutch++", 64), ("xtrace", 32)])
def test_sampled_methods_agree_with_the_truth(kind: str, method: str, n: int) -> None:
    matrix = symmetric(eigenvalues(kind))
    # Standard deviation of one Hutchinson probe, over the root of their number, bounds every method's error here.
    allowed = 4 * 1.6 * math.sqrt(2 * float(matrix.square().sum()) / n)
    for law in ("rademacher", "gaussian", "sphere"):
        estimate = trace(Plain(matrix), n_probes=n, method=method, law=law, seed=11)
        assert_agrees(estimate, float(matrix.trace()), allowed)


@pytest.mark.parametrize("kind", SPECTRA)
def test_exact_is_exact_and_counts_its_products(kind: str) -> None:
    matrix = symmetric(eigenvalues(kind))
    estimate = trace(Plain(matrix, BLOCKS), method="exact")
    assert estimate.value == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert (estimate.kind, estimate.matvecs, estimate.std_error) == ("exact", 200, 0.0)
    assert estimate.details["blocks"]["second"]["value"] == pytest.approx(float(matrix.diagonal()[30:80].sum()))
    known = trace(DenseOperator(matrix))
    assert (known.kind, known.matvecs) == ("exact", 0)
    assert known.value == pytest.approx(float(matrix.trace()))


@pytest.mark.parametrize(
    ("method", "n", "products"), [("hutchinson", 20, 20), ("hutch++", 20, 30), ("xtrace", 20, 40), ("exact", 20, 200)]
)
def test_products_are_what_the_docstring_says(method: str, n: int, products: int) -> None:
    A = Counted(Plain(symmetric(eigenvalues("decaying"))))
    estimate = trace(A, n_probes=n, method=method)
    assert estimate.matvecs == A.matvec_count == products
    deflated = trace(A, n_probes=n, method="hutchinson", deflate=leading(A.inner.to_dense(), 4))
    assert deflated.matvecs == n + 4


@pytest.mark.parametrize("method", [*SAMPLED, "exact", "auto"])
@pytest.mark.parametrize("dim", [1, 2, 300])
def test_zero_and_tiny_matrices(method: str, dim: int) -> None:
    zero = trace(Plain(torch.zeros(dim, dim, dtype=torch.float64)), method=method, n_probes=8)
    assert (zero.value, zero.std_error) == (0.0, 0.0)
    assert zero.interval() == (0.0, 0.0)
    full = trace(Plain(torch.full((dim, dim), 3.0, dtype=torch.float64)), method=method, n_probes=8)
    if dim == 1 or method == "xtrace":
        assert full.value == pytest.approx(3.0 * dim)
        assert full.std_error == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("method", SAMPLED)
def test_a_scaled_matrix_gives_the_scaled_answer(method: str) -> None:
    matrix = symmetric(eigenvalues("outliers"))
    one = trace(Plain(matrix), n_probes=16, method=method, seed=2)
    small = trace(Plain(matrix * 1e-5), n_probes=16, method=method, seed=2)
    assert small.value == pytest.approx(one.value * 1e-5, rel=1e-9)
    assert small.std_error == pytest.approx(one.std_error * 1e-5, rel=1e-7)


def test_deflation_needs_no_exact_vectors_and_gains_what_it_takes_out() -> None:
    matrix = symmetric(eigenvalues("outliers"))
    plain = trace(Plain(matrix), n_probes=32, method="hutchinson", seed=5)
    for noise in (0.0, 0.01):
        rows = leading(matrix, 10, noise)
        found = trace(Plain(matrix), n_probes=32, method="hutchinson", deflate=rows, seed=5)
        assert_agrees(found, float(matrix.trace()), 4 * plain.std_error / (20 if noise == 0 else 4))
        assert found.method == "hutchinson+deflation"
    split = deflation(Plain(matrix), rows)
    again = trace(Plain(matrix), n_probes=32, method="hutchinson", deflate=split, seed=5)
    assert again.value == pytest.approx(found.value)
    assert again.matvecs == 32
    everything = trace(Plain(matrix), n_probes=4, method="hutchinson", deflate=torch.eye(200, dtype=torch.float64))
    assert everything.value == pytest.approx(float(matrix.trace()), rel=1e-12)


def test_control_variate_is_exact_where_operator_and_surrogate_agree() -> None:
    A = risk_like(closeness=0.0)
    estimate = trace(A, n_probes=3, method="hutchinson", seed=1)
    assert estimate.value == pytest.approx(float(A.total.trace()), rel=1e-12)
    assert estimate.std_error == pytest.approx(0.0, abs=1e-11)
    assert estimate.details["surrogate_trace"] == pytest.approx(estimate.value)


@pytest.mark.parametrize("deflated", [0, 6])
@pytest.mark.parametrize("per_block", [False, True])
def test_control_variate_agrees_and_gains(deflated: int, per_block: bool) -> None:
    A = risk_like()
    rows = leading(A.total, deflated) if deflated else None
    plain = trace(A, n_probes=8, method="hutchinson", control_variate=False, deflate=rows, seed=3)
    found = trace(A, n_probes=8, method="hutchinson", deflate=rows, seed=3, per_block=per_block)
    assert "surrogate_trace" not in plain.details
    assert_agrees(plain, float(A.total.trace()), 90.0)
    assert_agrees(found, float(A.total.trace()), 4 * plain.std_error / 3)
    # One product and one quadratic form a pass, two for the exact diagonal, and both operators times the directions.
    assert found.matvecs == pytest.approx(2 * 8 + 2 + 2 * deflated)
    blocks = found.details["blocks"]
    for name, where in BLOCKS.items():
        truth = float(A.total.diagonal()[where].sum())
        assert abs(blocks[name]["value"] - truth) < 4 * blocks[name]["std_error"]
    worst = max(entry["std_error"] for entry in blocks.values())
    # 40 samples are few: products with the surrogate are made whether blocks ask for them or not.
    assert worst < min(entry["std_error"] for entry in plain.details["blocks"].values()) / 2
    assert sum(entry["value"] for entry in blocks.values()) == pytest.approx(found.value)
    many = [
        trace(A, n_probes=16, method="hutchinson", deflate=rows, seed=3, per_block=per_block, control_variate=used)
        for used in ("auto", False)
    ]
    assert (many[0].details["blocks"] == many[1].details["blocks"]) is not per_block


def test_one_pass_over_the_terms_and_one_for_deflation() -> None:
    A = risk_like()
    trace(A, n_probes=8, method="hutchinson", control_variate=False)
    assert A.passes == 1
    trace(A, n_probes=8, method="hutchinson", control_variate=False, deflate=leading(A.total, 2))
    assert A.passes == 3


def test_data_error_is_given_with_several_terms_only() -> None:
    A = risk_like(terms=6)
    estimate = trace(A, n_probes=64, method="hutchinson", deflate=leading(A.total, 60))
    values = torch.stack([matrix.trace() for matrix in A.matrices])
    mean = (A.weights * values).sum()
    truth = math.sqrt(6 / 5 * float((A.weights.square() * (values - mean).square()).sum()))
    assert estimate.errors.data is None or estimate.errors.data == pytest.approx(truth, abs=3 * estimate.std_error + 1)
    spread = SumOperator(A.matrices * torch.tensor([1, 2, 3, 4, 5, 6.0])[:, None, None].double())
    values = torch.stack([matrix.trace() for matrix in spread.matrices])
    found = trace(spread, n_probes=64, method="hutchinson").errors.data
    assert found == pytest.approx(float(values.std()) / math.sqrt(6), rel=0.1)
    rows = leading(spread.total, 20)
    deflated = trace(spread, n_probes=64, method="hutchinson", deflate=rows).errors.data
    assert deflated == pytest.approx(float(values.std()) / math.sqrt(6), rel=0.1)
    assert trace(Plain(A.total), n_probes=8, method="hutchinson").errors.data is None


@pytest.mark.parametrize("kind", ["outliers", "flat", "decaying"])
@pytest.mark.parametrize("method", ["auto", *SAMPLED])
def test_a_tolerance_is_met(kind: str, method: str) -> None:
    matrix = symmetric(eigenvalues(kind, 400))
    estimate = trace(Plain(matrix), rtol=0.05, method=method, seed=8)
    half = estimate.half_width(0.95)
    assert half <= 1.3 * 0.05 * abs(estimate.value)
    assert ("tolerance-missed" in estimate.flags) == (half > 0.05 * abs(estimate.value))
    assert abs(estimate.value - float(matrix.trace())) <= 2.1 * half + 1e-9


def test_auto_says_what_it_chose() -> None:
    decaying = trace(Plain(symmetric(eigenvalues("decaying", 600))), rtol=0.05, seed=0)
    assert decaying.method == "hutchinson+deflation"
    assert "directions of the pilot leave" in decaying.details["reason"]
    flat = trace(Plain(symmetric(eigenvalues("flat", 600))), rtol=0.02, seed=0)
    assert flat.method == "hutchinson"
    assert "without control variate" in flat.details["reason"]
    assert trace(Plain(symmetric(eigenvalues("indefinite", 60))), rtol=0.01).method == "exact"
    assert trace(Plain(torch.eye(12)), n_probes=16).method == "exact"
    assert trace(Plain(torch.eye(300)), n_probes=16).details["reason"].startswith("a fixed number")
    near = trace(risk_like(), rtol=0.05, seed=0)
    assert near.method == "hutchinson+surrogate"
    assert near.details["pilot"]["std_error_controlled"] < near.details["pilot"]["std_error"] / 2
    far = trace(risk_like("decaying", closeness=30.0), rtol=0.9, seed=0)
    assert far.method in ("hutchinson", "exact", "xtrace")


@pytest.mark.parametrize(
    ("spectrum", "rtol", "most"),
    [
        ("one outlier", 0.1, 8 + 8 + 8),
        ("i^-3", 0.1, 8 + 8 + 8),
        ("i^-1.5", 0.01, 100),
        ("rank two", 0.01, 8 + 2 + 2),
        ("indefinite", 0.01, 8 + 500),
    ],
)
def test_few_products_of_a_pilot_are_enough_where_few_eigenvalues_rule(spectrum: str, rtol: float, most: int) -> None:
    i = torch.arange(1, 501, dtype=torch.float64)
    values = {
        "one outlier": torch.cat([torch.tensor([300.0]).double(), torch.linspace(0, 1, 499).double()]),
        "i^-3": i**-3,
        "i^-1.5": i**-1.5,
        "rank two": torch.where(i > 2, 0.0, i),
        "indefinite": torch.linspace(-1, 1.1, 500).double(),
    }[spectrum]
    matrix = symmetric(values)
    for seed in range(6):
        A = Counted(Plain(matrix))
        found = trace(A, rtol=rtol, seed=seed)
        assert found.matvecs == A.matvec_count <= most
        low, high = found.interval(0.9999)
        assert low - 1e-9 <= float(values.sum()) <= high + 1e-9
        assert found.half_width() <= 2 * rtol * abs(found.value)
    assert found.method == {"indefinite": "exact", "i^-1.5": "xtrace+deflation"}.get(spectrum, "hutchinson+deflation")


def test_too_small_a_budget_warns_and_still_answers() -> None:
    matrix = symmetric(eigenvalues("outliers"))
    with pytest.warns(NumericalWarning, match="max_probes must be larger"):
        estimate = trace(Plain(matrix), rtol=1e-4, method="hutchinson", max_probes=20)
    assert "budget-exhausted" in estimate.flags
    assert estimate.samples == 20
    assert abs(estimate.value - float(matrix.trace())) < 4 * estimate.std_error


def test_the_error_is_that_of_the_law_however_calm_the_samples() -> None:
    matrix = symmetric(eigenvalues("decaying"))
    law = (2 * float(matrix.square().sum() - matrix.diagonal().square().sum()) / 20) ** 0.5
    found = [trace(Plain(matrix), n_probes=20, method="hutchinson", seed=s) for s in range(200)]
    squares = torch.tensor([one.std_error**2 for one in found], dtype=torch.float64)
    assert float(squares.mean()) == pytest.approx(law**2, abs=4 * float(squares.std()) / 200**0.5)
    # Samples of one large eigenvalue would tell their own variance to half of itself and worse.
    assert float(squares.std() / squares.mean()) < 0.35
    assert all(one.flags == () and 19 <= one.df < 100 for one in found)


@pytest.mark.parametrize(("law", "factor"), [("gaussian", 1.0), ("sphere", 1.0)])
def test_the_law_of_other_probes(law: str, factor: float) -> None:
    matrix = symmetric(eigenvalues("indefinite", 60))
    square, tr = float(matrix.square().sum()), float(matrix.trace())
    variance = 2 * square if law == "gaussian" else 2 * 60 / 62 * (square - tr**2 / 60)
    found = [trace(Plain(matrix), n_probes=12, method="hutchinson", law=law, seed=s) for s in range(200)]
    squares = torch.tensor([12 * one.std_error**2 for one in found], dtype=torch.float64)
    assert float(squares.mean()) == pytest.approx(factor * variance, abs=4 * float(squares.std()) / 200**0.5)
    assert 4 * float(squares.std()) / 200**0.5 < 0.1 * variance


def test_fewer_than_five_samples_are_flagged() -> None:
    matrix = symmetric(eigenvalues("flat"))
    assert trace(Plain(matrix), n_probes=4, method="hutchinson").flags == ("few-probes",)
    assert trace(Plain(matrix), n_probes=5, method="hutchinson").flags == ()


def test_progress_reaches_the_answer() -> None:
    seen: list[Progress] = []
    for method in ("hutchinson", "xtrace"):
        estimate = trace(Plain(symmetric(eigenvalues("flat"))), n_probes=12, method=method, callback=seen.append)
        assert seen[-1].value == pytest.approx(estimate.value)
        assert seen[-1].done == seen[-1].total


def test_fp32_products_are_good_to_their_rounding() -> None:
    matrix = symmetric(eigenvalues("outliers"))
    for method in SAMPLED:
        wide = trace(Plain(matrix), n_probes=16, method=method)
        narrow = trace(Plain(matrix.float()), n_probes=16, method=method)
        assert narrow.value == pytest.approx(wide.value, rel=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch"}, "method must be one of .* Did you mean 'hutch\\+\\+'"),
        ({"law": "normal"}, "law must be one of"),
        ({"control_variate": "yes"}, "control_variate must be one of auto"),
        ({"control_variate": True, "method": "hutchinson"}, "control_variate must be False or 'auto' for an operator"),
        ({"method": "xtrace", "deflate": torch.eye(200)[:2].double()}, "method must be 'hutchinson' or 'auto'"),
        ({"method": "hutch++", "deflate": torch.eye(200)[:2].double()}, "deflate must be None for method 'hutch"),
        ({"method": "hutch++", "n_probes": 3}, "n_probes must be at least 4 for method 'hutch"),
        ({"rtol": -1.0}, "rtol must be"),
        ({"n_probes": 1}, "n_probes must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trace(Plain(symmetric(eigenvalues("flat"))), **options)


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "sphere"])
def test_few_samples_of_a_control_variate_have_the_error_of_the_law(law: str) -> None:
    # One term, and what the surrogate leaves is one large eigenvalue: the spread of eight samples says little of it.
    outlier = torch.zeros(60, dtype=torch.float64)
    outlier[-1] = 30.0
    matrix, rest = symmetric(eigenvalues("flat", 60)), symmetric(outlier)
    twin = SumOperator(matrix[None], knows_diagonal=True)
    A = SumOperator((matrix + rest)[None], surrogate=twin)
    square, tr = float(rest.square().sum()), float(rest.trace())
    taken = {"rademacher": float(rest.diagonal().square().sum()), "gaussian": 0.0, "sphere": tr**2 / 60}[law]
    variance = 2 * (square - taken) * (60 / 62 if law == "sphere" else 1.0)
    found = [trace(A, n_probes=8, method="hutchinson", control_variate=True, law=law, seed=s) for s in range(400)]
    truth = float((matrix + rest).trace())
    squares = torch.tensor([8 * one.std_error**2 for one in found], dtype=torch.float64)
    assert float(squares.mean()) == pytest.approx(variance, abs=4 * float(squares.std()) / 20)
    hits = [low <= truth <= high for low, high in (one.interval() for one in found)]
    # Two binomial errors below 95 %; 85 % with the samples' own variance.
    assert sum(hits) / len(hits) >= 0.928
    assert all(one.flags == () for one in found)


class Priced(SumOperator):
    """A surrogate that says what its work costs, in products."""

    forms = 1.0

    def cost_of(self, work: str) -> float:
        return self.forms if work == "form" else super().cost_of(work)


@pytest.mark.parametrize(("cost", "used"), [(1.0, True), (1e4, False)])
def test_a_plan_goes_by_what_the_operators_say_of_their_costs(cost: float, used: bool) -> None:
    A = risk_like()
    twin = A.surrogate
    assert twin is not None
    priced = Priced(twin.matrices, twin.weights, blocks=BLOCKS, knows_diagonal=True)
    priced.forms = cost
    found = trace(SumOperator(A.matrices, A.weights, surrogate=priced, blocks=BLOCKS), rtol=0.05, seed=0)
    assert ("surrogate" in found.method) is used
    assert Counted(priced).cost_of("form") == cost
    assert BlockDiagonal(priced, list(BLOCKS.values())).cost_of("form") == 3 * cost
    assert (Plain(A.total).cost_of("product"), Plain(A.total).cost_of("draw")) == (1.0, pytest.approx(1 / 3))
