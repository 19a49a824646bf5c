"""Log-determinants: bracketed for damped operators, smoothed for indefinite ones, refused otherwise."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracles import drawn_spectrum, eigenvalues, symmetric
from stats import assert_agrees
from torch import Tensor

from hessprobe.errors import NumericalWarning
from hessprobe.estimators.logdet import logdet
from hessprobe.estimators.spectral import absolute_power, on_chain, saturation, smoothed_log
from hessprobe.krylov.lanczos import lanczos
from hessprobe.operators import Counted, DenseOperator


def damped(values: Tensor, shift: float) -> float:
    return float(torch.log(values + shift).sum())


def smoothed(values: Tensor, eps: float) -> float:
    return float(torch.log(values**2 + eps**2).sum() / 2)


def positive(kind: str, dim: int = 100) -> DenseOperator:
    return DenseOperator(symmetric(eigenvalues(kind, dim)), psd=True)


@pytest.mark.parametrize("kind", ["decaying", "flat"])
@pytest.mark.parametrize("shift", [1e-3, 1.0])
def test_damped_operator(kind: str, shift: float) -> None:
    truth = damped(eigenvalues(kind, 100), shift)
    estimate = logdet(positive(kind), shift=shift, n_probes=40, method="slq")
    assert_agrees(estimate, truth, 35.0)
    assert estimate.details["quadrature"] == "bracket"
    assert estimate.errors.solver <= 0.11 * estimate.errors.probe
    assert estimate.flags == ()
    exact = logdet(positive(kind), shift=shift)
    assert exact.value == pytest.approx(truth, rel=1e-11)
    assert exact.kind == "exact"


@pytest.mark.parametrize("kind", ["outliers", "indefinite", "decaying"])
def test_smoothed_indefinite_operator(kind: str) -> None:
    matrix = symmetric(eigenvalues(kind, 100))
    truth = smoothed(eigenvalues(kind, 100), 0.3)
    estimate = logdet(matrix, eps=0.3, n_probes=40, method="slq")
    assert_agrees(estimate, truth, 25.0)
    assert estimate.details["quadrature"] == "bracket"
    assert logdet(matrix, eps=0.3, method="exact").value == pytest.approx(truth, rel=1e-11)


def test_steps_end_when_the_quadrature_is_good_enough() -> None:
    A = Counted(positive("decaying", 200))
    loose = logdet(A, shift=1.0, n_probes=8, method="slq")
    assert loose.matvecs == A.matvec_count == 8 * loose.details["steps"]
    assert loose.details["steps"] <= 16
    tight = logdet(A, shift=1e-4, n_probes=8, method="slq")
    assert loose.details["steps"] < tight.details["steps"] < tight.details["rate_steps"]


def test_steps_never_pass_the_a_priori_rate() -> None:
    # Radius 10, eps 20: r = 2 + sqrt(5), six digits need five steps; the first check is made at eight.
    estimate = logdet(positive("decaying"), eps=20.0, method="slq")
    assert estimate.details["rate_steps"] == 5
    assert estimate.details["steps"] == 8


def test_a_tolerance_in_nats() -> None:
    estimate = logdet(positive("decaying"), shift=1e-2, atol=9.0, method="slq", seed=5)
    assert estimate.half_width() <= 9.0
    assert estimate.samples >= 8
    assert estimate.interval()[0] < damped(eigenvalues("decaying", 100), 1e-2) < estimate.interval()[1]
    assert estimate.details["polynomial_std"] > 2 * estimate.details["rest_std"]
    # Pilot and run without short chains: (4 + 24) chains.
    assert estimate.matvecs < (4 + 24) * estimate.details["steps"]


class _Diagonal:
    dtype = torch.float64

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.shape = values, (len(values), len(values))

    def __matmul__(self, V: torch.Tensor) -> torch.Tensor:
        return self.values.view(-1, *([1] * (V.ndim - 1))) * V


@pytest.mark.parametrize(("rtol", "probes", "most"), [(0.1, 1, 16), (0.06, 7, 84)])
def test_one_probe_is_enough_where_a_form_hardly_varies(rtol: float, probes: int, most: int) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(500, generator=generator, dtype=torch.float64) * (torch.arange(500) < 250)
    truth = float(torch.log(values**2 + 0.01).sum() / 2)
    held = missed = 0
    for seed in range(40):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumericalWarning)
            found = logdet(_Diagonal(values), eps=0.1, rtol=rtol, seed=seed)
        assert 1 <= found.samples <= probes
        assert found.matvecs <= most
        missed += found.half_width() > rtol * abs(found.value)
        assert (found.half_width() > rtol * abs(found.value)) == ("tolerance-missed" in found.flags)
        assert "few-probes" not in found.flags
        low, high = found.interval()
        held += low <= truth <= high
    # A pilot and eight chains take 96 products at least.
    assert held >= 35
    assert missed <= 4


def test_a_bracket_that_no_chain_closes_is_not_tried_again_with_more() -> None:
    values = torch.logspace(0, -8, 6_000, dtype=torch.float64)
    with pytest.warns(NumericalWarning, match="solver error"):
        found = logdet(_Diagonal(values), eps=1e-6, rtol=0.03, seed=0)
    assert (found.samples, found.matvecs) == (1, 256)
    assert "tolerance-missed" in found.flags
    low, high = found.interval()
    assert low <= float(torch.log(values**2 + 1e-12).sum() / 2) <= high


def test_a_logarithm_that_few_eigenvalues_rule_is_left_to_a_pilot() -> None:
    values = torch.arange(1, 601, dtype=torch.float64) ** -1.5
    found = logdet(_Diagonal(values), eps=0.1, rtol=0.05, seed=2)
    assert found.samples >= 8
    assert found.interval()[0] < float(torch.log(values**2 + 0.01).sum() / 2) < found.interval()[1]


def test_scaled_by_1e_minus_5() -> None:
    matrix, factor = symmetric(eigenvalues("decaying", 80)), 1e-5
    one = logdet(DenseOperator(matrix, psd=True), shift=0.1, method="slq")
    tiny = logdet(DenseOperator(matrix * factor, psd=True), shift=0.1 * factor, method="slq")
    assert tiny.value - one.value == pytest.approx(80 * torch.log(torch.tensor(factor).double()).item(), rel=1e-7)
    assert tiny.errors.probe == pytest.approx(one.errors.probe, rel=1e-6)


def test_deflation_narrows_the_interval() -> None:
    A = positive("decaying")
    vectors = torch.linalg.eigh(A.matrix).eigenvectors[:, -10:].T.contiguous()
    plain = logdet(A, shift=1e-2, n_probes=16, method="slq")
    deflated = logdet(A, shift=1e-2, n_probes=16, method="slq", deflate=vectors)
    assert deflated.errors.probe < 0.7 * plain.errors.probe
    assert_agrees(deflated, damped(eigenvalues("decaying", 100), 1e-2), 30.0)


def test_a_positive_definite_operator_needs_no_damping() -> None:
    values = eigenvalues("flat", 80)
    estimate = logdet(symmetric(values), shift=0.0, lower=0.2, n_probes=32, method="slq")
    assert estimate.details["quadrature"] == "bracket"
    assert_agrees(estimate, damped(values, 0.0), 12.0)


def test_unknown_definiteness_with_a_large_shift_is_flagged() -> None:
    values = eigenvalues("indefinite", 60)
    estimate = logdet(symmetric(values), shift=5.0, n_probes=32, method="slq")
    assert "definiteness-assumed" in estimate.flags
    assert estimate.details["quadrature"] == "extrapolated"
    assert_agrees(estimate, damped(values, 5.0), 5.0)
    with pytest.raises(
        ValueError, match=r"shift must be > .*, as A has an eigenvalue <= -.*; got 0.01. Raise shift, use"
    ):
        logdet(symmetric(values), shift=0.01, method="slq")


def test_what_is_no_stable_number_is_refused() -> None:
    matrix = symmetric(eigenvalues("indefinite", 20))
    with pytest.raises(
        ValueError, match=r"shift must be > 0; got None. log\|det A\| .* Use logdet of the Gauss-Newton"
    ):
        logdet(matrix)
    with pytest.raises(ValueError, match=r"shift must be > 0; got -0.1"):
        logdet(matrix, shift=-0.1)
    with pytest.raises(ValueError, match=r"shift must be > 0; got 0.0. A may be singular: give the damping"):
        logdet(positive("decaying", 20), shift=0.0)
    with pytest.raises(ValueError, match=r"shift must be > 0; got None. A may be singular"):
        logdet(positive("decaying", 20))
    with pytest.raises(ValueError, match=r"eps must be None where shift is given; got shift=1.0 and eps=1.0"):
        logdet(matrix, shift=1.0, eps=1.0)
    with pytest.raises(ValueError, match="eps must be a finite number > 0; got 0"):
        logdet(matrix, eps=0)
    with pytest.raises(ValueError, match="shift must be a finite number; got nan"):
        logdet(matrix, shift=float("nan"))


def test_too_few_steps_are_warned_of() -> None:
    with pytest.warns(NumericalWarning, match="the solver error .* outweighs the probe error .* after 3 Lanczos steps"):
        estimate = logdet(positive("decaying"), shift=1e-4, steps=3, n_probes=64, method="slq")
    assert "solver-limited" in estimate.flags
    truth = damped(eigenvalues("decaying", 100), 1e-4)
    assert estimate.interval()[0] < truth < estimate.interval()[1]


def test_a_shift_below_rounding_is_warned_of() -> None:
    matrix = symmetric(eigenvalues("outliers", 60).abs()).float()
    A = DenseOperator((matrix + matrix.T) / 2, psd=True)
    with pytest.warns(NumericalWarning, match="shift is near the rounding of the products"):
        estimate = logdet(A, shift=1e-6, n_probes=8, steps=30, method="slq")
    assert "shift-below-rounding" in estimate.flags


def test_degenerate_operators() -> None:
    one = DenseOperator(torch.full((1, 1), 3.0).double(), psd=True)
    assert logdet(one, shift=1.0, method="slq").value == pytest.approx(float(torch.log(torch.tensor(4.0))), rel=1e-6)
    zero = DenseOperator(torch.zeros(30, 30).double())
    for method in ("slq", "exact"):
        assert logdet(zero, eps=0.1, method=method).value == pytest.approx(smoothed(torch.zeros(30), 0.1), rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_the_bracket_of_an_indefinite_chain_holds_for_any_number_of_steps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dim = 60
    values = drawn_spectrum(seed, dim, psd=False)
    radius = float(values.abs().max())
    probes = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    probes = probes / probes.norm(dim=1, keepdim=True)
    run = lanczos(DenseOperator(torch.diag(values)), probes, 40)
    eps = radius * 10 ** -(0.5 + 4 * float(torch.rand(1, generator=generator)))
    functions = (smoothed_log(eps), saturation(eps, None), absolute_power(1.0, None), absolute_power(2.6, None))
    for function in functions:
        widths = []
        for steps in (2, 3, 5, 8, 17, 40):
            steps = min(steps, run.alphas.shape[1])
            for chain in range(3):
                found = on_chain(function, run.alphas[chain, :steps], run.betas[chain, :steps], 1e-13 * radius)
                truth = float((probes[chain] ** 2) @ function.values(values))
                size = float(function.values(values).abs().max())
                assert abs(found.value - truth) <= found.half + 1e-11 * size, (function.name, steps)
                assert found.differences is None
            widths.append(found.half)
        assert widths[-1] <= 0.3 * widths[0] + 1e-9 * size


def test_few_steps_of_a_smoothed_logdet_are_flagged_and_their_interval_holds() -> None:
    # What a fast-decaying Hessian looks like to chains that are far too short: the value is off, and says so.
    values = torch.cat([10.0 ** -torch.linspace(0, 9, 100, dtype=torch.float64), torch.tensor([-0.02]).double()])
    matrix, truth = symmetric(values), smoothed(values, 1e-4)
    with pytest.warns(NumericalWarning, match="the solver error .* outweighs the probe error"):
        estimates = [logdet(matrix, eps=1e-4, n_probes=8, steps=6, seed=seed, method="slq") for seed in range(5)]
    for estimate in estimates:
        assert "solver-limited" in estimate.flags
        assert estimate.details["quadrature"] == "bracket"
        assert abs(estimate.value - truth) < estimate.half_width()
