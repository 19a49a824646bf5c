"""Eigenpairs against dense eigh and SciPy: both ends, clusters, degenerate operators, precision, cost, errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from oracles import SPECTRA, eigenvalues, symmetric
from torch import Tensor

from hessprobe.errors import NumericalWarning
from hessprobe.estimate import infinitesimal_jackknife
from hessprobe.krylov import Eigenpairs, eigsh
from hessprobe.krylov.eigenpairs import refine
from hessprobe.operators import Counted, DenseOperator, LinearOperator

F64 = torch.float64


class WeightedSum(LinearOperator):
    """sum_b w_b A_b with its terms."""

    def __init__(self, weights: list[float], matrices: list[Tensor]) -> None:
        self.weights, self.operators = weights, [DenseOperator(matrix) for matrix in matrices]
        self.dim, self.dtype, self.device = len(matrices[0]), matrices[0].dtype, matrices[0].device
        self.n_terms = len(weights)

    def _matvecs(self, V: Tensor) -> Tensor:
        return sum(w * A.matvecs(V) for w, A in zip(self.weights, self.operators, strict=True))

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        yield from zip(self.weights, self.operators, strict=True)


def expected(spectrum: Tensor, k: int, which: str) -> Tensor:
    values = spectrum.double().sort(descending=True).values
    if which == "both":
        return torch.cat([values[:k], values[-k:]]) if 2 * k <= len(values) else values
    if which == "magnitude":
        return values[values.abs().argsort(descending=True)[:k]].sort(descending=True).values
    return values[:k] if which == "largest" else values[-k:]


def check(pairs: Eigenpairs, matrix: Tensor, truth: Tensor) -> None:
    """True eigenvalues inside their intervals, true residuals, orthonormal vectors, flags in agreement."""
    scale = float(torch.linalg.matrix_norm(matrix.double(), 2)) or 1.0
    eps = torch.finfo(matrix.dtype).eps
    assert pairs.values.dtype == F64
    assert pairs.vectors.dtype == matrix.dtype
    slack = 1e-14 * scale  # the truth of a matrix that was put together in fp64
    assert torch.all((pairs.intervals.low <= truth + slack) & (truth - slack <= pairs.intervals.high))
    assert torch.all((pairs.intervals.low <= pairs.values) & (pairs.values <= pairs.intervals.high))
    if bool(pairs.converged.all()):
        assert torch.all((pairs.values - truth).abs() <= float(pairs.residuals.norm()) + 10 * eps * scale)
        wide = "wide-bracket" in pairs.flags
        asked = 0.0101 * torch.clamp(pairs.values.abs(), min=0.01 * scale) + 100 * eps * scale
        assert wide or bool((pairs.errors <= asked).all())
    y = pairs.vectors.double()
    true = (y @ matrix.double() - pairs.values[:, None] * y).norm(dim=1)
    assert torch.all((pairs.residuals - true).abs() <= 20 * eps * scale)
    assert float((y @ y.T - torch.eye(len(y), dtype=F64)).abs().max()) < 20 * eps
    assert bool(pairs.converged.all()) == ("not-converged" not in pairs.flags)
    if pairs.bounds.upper is not None:
        assert pairs.bounds.upper >= float(pairs.values[0])
    if pairs.bounds.lower is not None:
        assert pairs.bounds.lower <= float(pairs.values[-1])


@pytest.mark.parametrize("which", ["both", "largest", "smallest", "magnitude"])
@pytest.mark.parametrize("kind", SPECTRA)
def test_agrees_with_dense_eigh(kind: str, which: str) -> None:
    spectrum = eigenvalues(kind)
    matrix = symmetric(spectrum)
    # The small end of the decaying spectrum has no gaps: a basis of all 200 dimensions is what it takes.
    room = 200 if kind == "decaying" and which in ("both", "smallest") else None
    for k in (1, 4):
        pairs = eigsh(matrix, k, which, tol=1e-6, basis_size=room)
        check(pairs, matrix, expected(spectrum, k, which))
        assert bool(pairs.converged.all())
        scale = float(spectrum.abs().max())
        asked = 1e-6 * torch.clamp(pairs.values.abs(), min=0.01 * scale)
        assert torch.all(pairs.residuals <= asked)


def test_an_end_without_gaps_is_known_within_its_error() -> None:
    spectrum = eigenvalues("decaying")
    matrix = symmetric(spectrum)
    pairs = eigsh(matrix)
    check(pairs, matrix, expected(spectrum, 1, "both"))
    assert float(pairs.residuals[1]) <= 1e-3 * 0.01 * 10


@pytest.mark.parametrize("kind", ["outliers", "flat", "indefinite"])
def test_agrees_with_scipy_to_1e_8(kind: str) -> None:
    matrix = symmetric(eigenvalues(kind))
    pairs = eigsh(matrix, 3, tol=1e-9)
    A = DenseOperator(matrix).to_scipy()
    # SciPy's "BE" is k//2 from each end. Its start is fixed: from a random one it misses a copy of the threefold
    # eigenvalue of the flat spectrum in 2 % of runs.
    start = np.random.default_rng(0).standard_normal(len(matrix))
    reference = scipy.sparse.linalg.eigsh(matrix.numpy(), k=6, which="BE", v0=start, return_eigenvectors=False)
    np.testing.assert_allclose(pairs.values, np.sort(reference)[::-1], rtol=1e-8)
    np.testing.assert_allclose(eigsh(A, 3, tol=1e-9).values, pairs.values, rtol=1e-12)


def test_default_tolerance_gives_lambda_max_to_1e_3_and_usually_far_better() -> None:
    for kind in SPECTRA:
        spectrum = eigenvalues(kind)
        pairs = eigsh(symmetric(spectrum), which="largest")
        assert float(pairs.values[0]) == pytest.approx(float(spectrum.max()), rel=1e-5)
        assert pairs.matvecs <= 25


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(("k", "which"), [(9, "largest"), (9, "both"), (12, "largest"), (4, "magnitude")])
def test_every_copy_of_a_ninefold_eigenvalue_is_found(k: int, which: str, dtype: torch.dtype) -> None:
    spectrum = torch.cat([torch.full((9,), 5.0, dtype=F64), torch.linspace(-1, 1, 191, dtype=F64)])
    matrix = symmetric(spectrum)
    pairs = eigsh(matrix.to(dtype), k, which, tol=1e-4)
    check(pairs, matrix.to(dtype), expected(spectrum, k, which))
    assert int((pairs.values > 4.99).sum()) == min(k, 9)
    assert bool(pairs.converged.all())


def test_clusters_at_both_ends_and_in_between() -> None:
    spectrum = torch.cat([torch.tensor([7.0, 5, 5, 5, -4, -4]), torch.linspace(-1, 1, 94)]).double()
    matrix = symmetric(spectrum)
    check(eigsh(matrix, 4, tol=1e-6), matrix, expected(spectrum, 4, "both"))


def test_without_verification_copies_are_missed_and_fewer_products_spent() -> None:
    spectrum = torch.cat([torch.full((9,), 5.0, dtype=F64), torch.linspace(-1, 1, 191, dtype=F64)])
    matrix = symmetric(spectrum)
    quick, sure = (eigsh(matrix, 9, "largest", verify=verify) for verify in (False, True))
    assert int((quick.values > 4.99).sum()) < 9
    assert quick.matvecs < sure.matvecs


def test_verification_that_runs_out_of_products_says_so() -> None:
    spectrum = torch.cat([torch.full((9,), 5.0, dtype=F64), torch.linspace(-1, 1, 191, dtype=F64)])
    matrix = symmetric(spectrum)
    needed = eigsh(matrix, 2, "largest", verify=False).matvecs
    assert "multiplicity-unverified" in eigsh(matrix, 2, "largest", max_matvecs=int(needed) + 3).flags


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-12])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_degenerate_operators_are_exact_at_any_scale(scale: float, dtype: torch.dtype) -> None:
    low_rank = torch.zeros(60, dtype=dtype)
    low_rank[:3] = torch.tensor([3.0, 2.0, -1.0])
    cases = [
        torch.zeros(5, 5),
        torch.eye(7),
        torch.full((1, 1), -3.0),
        torch.diag(low_rank),
        torch.diag(torch.tensor([2.0, 2, 1, 1, 0, 0, 0, -5])),
        torch.ones(6, 6),
    ]
    for case in cases:
        matrix = case.to(dtype) * scale
        spectrum = torch.linalg.eigvalsh(matrix.double())
        norm = float(spectrum.abs().max())
        for k in {1, min(3, len(matrix)), min(5, len(matrix)), min(len(matrix), 8)}:
            for which in ("both", "largest", "smallest", "magnitude"):
                pairs = eigsh(matrix, k, which)
                truth = expected(spectrum, k, which)
                if which == "magnitude":
                    pairs_size, truth_size = pairs.values.abs().sort().values, truth.abs().sort().values
                else:
                    pairs_size, truth_size = pairs.values, truth
                limit = (1e-13 if dtype == F64 else 2e-6) * norm
                assert float((pairs_size - truth_size).abs().max()) <= limit, (case, k, which)
                assert torch.all(pairs.residuals <= 10 * limit)
                assert bool(pairs.converged.all())


def test_all_pairs_of_a_matrix() -> None:
    spectrum = eigenvalues("indefinite", 40)
    matrix = symmetric(spectrum)
    for k, which in ((40, "largest"), (40, "both"), (25, "both")):
        pairs = eigsh(matrix, k, which)
        assert len(pairs.values) == 40
        np.testing.assert_allclose(pairs.values, spectrum.flip(0), rtol=1e-8)
        assert float(pairs.residuals.max()) < 1e-12


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-17, 2.0**20])
def test_scaling_the_operator_scales_the_answer_to_the_last_bit(scale: float) -> None:
    matrix = symmetric(eigenvalues("outliers"))
    base, scaled = eigsh(matrix, 3), eigsh(matrix * scale, 3)
    assert scaled.matvecs == base.matvecs
    assert torch.equal(scaled.values, base.values * scale)
    assert torch.equal(scaled.residuals, base.residuals * scale)
    assert torch.equal(scaled.errors, base.errors * scale)
    assert scaled.bounds == pytest.approx([bound * scale for bound in base.bounds], rel=1e-12)


@pytest.mark.parametrize("kind", ["outliers", "flat", "indefinite"])
def test_float32_reaches_its_rounding_and_says_so(kind: str) -> None:
    spectrum = eigenvalues(kind)
    matrix = symmetric(spectrum).float()
    usual = eigsh(matrix, 3)
    check(usual, matrix, expected(torch.linalg.eigvalsh(matrix.double()), 3, "both"))
    assert usual.flags == ()
    strict = eigsh(matrix, 3, tol=1e-10)
    check(strict, matrix, expected(torch.linalg.eigvalsh(matrix.double()), 3, "both"))
    assert bool(strict.converged.all())
    assert strict.flags == ("rounding-limited",)
    assert strict.matvecs < 150
    assert float(strict.residuals.max()) < 2e-6 * float(spectrum.abs().max())


def test_products_with_an_error_of_their_own_are_known_to_that_error() -> None:
    spectrum = eigenvalues("indefinite")
    generator = torch.Generator().manual_seed(0)

    class Noisy(DenseOperator):
        def _matvecs(self, V: Tensor) -> Tensor:
            return super()._matvecs(V) + 1e-5 * torch.nn.functional.normalize(torch.randn(V.shape, generator=generator))

    pairs = eigsh(Noisy(symmetric(spectrum)), 2, tol=1e-8)
    assert pairs.flags == ("rounding-limited",)
    assert torch.all(pairs.residuals < 4e-5)
    assert torch.all((pairs.values - expected(spectrum, 2, "both")).abs() <= pairs.errors)
    assert torch.all(pairs.errors < 6e-5)


def test_products_are_counted_and_too_few_are_reported() -> None:
    matrix = symmetric(eigenvalues("indefinite"))
    A = Counted(DenseOperator(matrix))
    assert eigsh(A, 3).matvecs == A.matvec_count
    with (
        pytest.warns(NumericalWarning, match=r"of 6 eigenpairs did not converge to tol=1e-08 in 30 products"),
        pytest.warns(NumericalWarning, match=r"of 6 eigenvalues is wider than rtol=0.01 asks after 30 products"),
    ):
        pairs = eigsh(matrix, 3, tol=1e-8, max_matvecs=30)
    assert pairs.matvecs == 30
    assert pairs.flags == ("not-converged", "wide-bracket")
    truth = torch.linalg.eigvalsh(matrix)
    check(pairs, matrix, torch.cat([truth.flip(0)[:3], truth.flip(0)[-3:]]))
    assert pairs.estimate(0).kind == "bracket"
    # A Rayleigh quotient of 200 products' rounding: at most d eps ||A|| beyond lambda_max.
    rounding = 200 * torch.finfo(F64).eps * float(truth.abs().max())
    assert float(pairs.values[0]) <= float(truth[-1]) + rounding
    assert float(truth[-1]) <= pairs.bounds.upper
    assert pairs.estimate(-1).kind == "bracket"
    assert pairs.bounds.lower <= float(truth[0])
    assert float(truth[0]) <= float(pairs.values[-1]) + rounding


def test_thick_restart_needs_little_more_than_an_unrestarted_run() -> None:
    matrix = symmetric(eigenvalues("indefinite"))
    whole, restarted = (eigsh(matrix, 2, tol=1e-7, rtol=None, verify=False, basis_size=m) for m in (200, 12))
    np.testing.assert_allclose(whole.values, restarted.values, rtol=1e-10)
    assert whole.matvecs < restarted.matvecs < 2.5 * whole.matvecs


def test_data_error_is_the_jackknife_over_terms_and_agrees_with_finite_differences() -> None:
    base = symmetric(eigenvalues("outliers", 40))
    generator = torch.Generator().manual_seed(0)
    noise = [symmetric(torch.randn(40, generator=generator, dtype=F64), seed) for seed in range(6)]
    weights = [0.1, 0.1, 0.2, 0.2, 0.25, 0.15]
    matrices = [base + n for n in noise]
    A = WeightedSum(weights, matrices)
    pairs = eigsh(A, 2, tol=1e-9)
    total = sum(w * m for w, m in zip(weights, matrices, strict=True))
    check(pairs, total, expected(torch.linalg.eigvalsh(total), 2, "both"))
    for index in (-1, -2, 0):
        slopes = []
        for m in matrices:
            moved = [torch.linalg.eigvalsh(total + h * m)[index] for h in (1e-6, -1e-6)]
            slopes.append(float(moved[0] - moved[1]) / 2e-6)
        place = {-1: 0, -2: 1, 0: 3}[index]
        assert float(pairs.data_error[place]) == pytest.approx(infinitesimal_jackknife(weights, slopes), rel=1e-5)
    assert pairs.estimate(0).errors.data == float(pairs.data_error[0])
    counted = Counted(A)
    assert eigsh(counted, 2, tol=1e-9).matvecs == pytest.approx(pairs.matvecs)
    assert eigsh(base).data_error is None


def test_refine_turns_any_basis_of_an_invariant_space_into_its_eigenpairs() -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = [symmetric(torch.randn(20, generator=generator, dtype=F64), seed) for seed in (1, 2, 3)]
    total = 0.5 * matrices[0] + 0.2 * matrices[1] + 0.3 * matrices[2]
    values, vectors = torch.linalg.eigh(total)
    turned = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64)).Q @ vectors[:, -4:].T
    # Slightly oblique rows, as single precision leaves them, must do no harm.
    rows = turned + 1e-4 * turned.roll(1, dims=0)
    found = refine(WeightedSum([0.5, 0.2, 0.3], matrices), rows)
    np.testing.assert_allclose(found.values, values[-4:].flip(0), rtol=1e-12)
    assert float(found.residuals.max()) < 1e-12
    for place in range(4):
        v = vectors[:, -1 - place]
        slopes = [float(v @ matrix @ v) for matrix in matrices]
        expected_error = infinitesimal_jackknife([0.5, 0.2, 0.3], slopes)
        assert found.terms is not None
        assert infinitesimal_jackknife(found.terms[0], found.terms[1][:, place]) == pytest.approx(
            expected_error, rel=1e-10
        )


def test_estimate_carries_value_error_bracket_and_kind() -> None:
    spectrum = eigenvalues("outliers")
    pairs = eigsh(symmetric(spectrum), 2)
    top, second, bottom = pairs.estimate(0), pairs.estimate(1), pairs.estimate(-1)
    assert top.kind == second.kind == bottom.kind == "bracket"
    truth = spectrum.sort(descending=True).values
    for found, value in ((top, truth[0]), (second, truth[1]), (bottom, truth[-1])):
        low, high = found.interval(0.99)
        assert low <= float(value) <= high
        assert (low, high) == found.bracket == found.interval(0.5)
        assert found.errors.solver == max(high - found.value, found.value - low) <= 0.01 * abs(found.value)
        assert found.details["residual"] <= 1e-3 * abs(found.value)
    with pytest.raises(ValueError, match=r"confidence must be at most 0\.995, that of the bracket; got 0\.999"):
        top.interval(0.999)
    assert eigsh(torch.diag(torch.arange(5.0, dtype=F64)), 2).estimate(0).kind == "exact"
    assert top.errors.data is None
    assert top.details["residual"] == float(pairs.residuals[0])
    assert top.matvecs == pairs.matvecs
    with pytest.raises(ValueError, match=r"i must be an integer < 4; got 4\. There are 4 pairs"):
        pairs.estimate(4)
    with pytest.raises(ValueError, match="i must be an integer >= -4; got -5"):
        pairs.estimate(-5)


def test_magnitude_brackets_only_the_end_that_was_found() -> None:
    matrix = torch.diag(torch.cat([torch.tensor([-3.0], dtype=F64), torch.linspace(-1, 1, 199, dtype=F64)]))
    only = eigsh(matrix, which="magnitude").estimate(0)
    assert only.value == pytest.approx(-3.0)
    assert -3.03 <= only.bracket[0] <= -3.0 <= only.bracket[1] + 1e-12
