"""The spectral sketch: exact answers, errors of each kind, deflation."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import SPECTRA, eigenvalues, symmetric
from questions import PSD_QUESTIONS, QUESTIONS, batches, leading
from stats import assert_agrees
from torch import Tensor

from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.operators import DenseOperator


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_exact_method_gives_the_dense_answer(kind: str, question: str) -> None:
    ask, truth = QUESTIONS[question]
    values = eigenvalues(kind, 60)
    estimate = ask(spectral_sketch(symmetric(values), method="exact"))
    assert estimate.value == pytest.approx(float(truth(values)), rel=1e-10, abs=1e-10)
    assert estimate.kind == "exact"
    assert (estimate.errors.probe, estimate.errors.solver, estimate.samples) == (0.0, 0.0, 0)
    assert estimate.matvecs == 60


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("deflated", [0, 10])
def test_the_stochastic_answer_agrees(kind: str, question: str, deflated: int) -> None:
    ask, truth = QUESTIONS[question]
    matrix = symmetric(eigenvalues(kind, 100))
    deflate = leading(matrix, deflated) if deflated else None
    sketch = spectral_sketch(matrix, method="slq", n_probes=32, steps=40, seed=3, deflate=deflate)
    exact = truth(eigenvalues(kind, 100))
    spread = float((eigenvalues(kind, 100) ** 2).sum().sqrt())
    precision = {"trace": 3 * spread, "effective-dimension": 12.0, "smoothed-logdet": 20.0, "exp": 2 * spread}
    assert_agrees(ask(sketch), float(exact), precision.get(question, spread))
    assert sketch.matvecs == 32 * 40 + deflated


@pytest.mark.parametrize("question", PSD_QUESTIONS)
def test_all_steps_make_the_quadrature_exact_for_one_probe_law(question: str) -> None:
    # With as many steps as dimensions each chain is exact; the mean over probes then differs by probe noise alone.
    ask, _ = PSD_QUESTIONS[question]
    matrix = symmetric(eigenvalues("decaying", 24))
    full = ask(spectral_sketch(DenseOperator(matrix, psd=True), method="slq", n_probes=8, steps=100, seed=2))
    part = ask(spectral_sketch(DenseOperator(matrix, psd=True), method="slq", n_probes=8, steps=12, seed=2))
    assert full.errors.solver < 1e-9 * abs(full.value)
    assert abs(part.value - full.value) <= part.errors.solver + 1e-9 * abs(full.value)
    assert part.errors.solver < 0.05 * abs(full.value)


@pytest.mark.parametrize("question", ["logdet", "effective-dimension", "schatten-1.5"])
@pytest.mark.parametrize("steps", [2, 3, 5, 9])
def test_the_bracket_holds_at_every_number_of_steps(question: str, steps: int) -> None:
    ask, _ = PSD_QUESTIONS[question]
    A = DenseOperator(symmetric(eigenvalues("decaying", 40)), psd=True)
    full = ask(spectral_sketch(A, method="slq", n_probes=8, steps=40, seed=2))
    part = ask(spectral_sketch(A, method="slq", n_probes=8, steps=steps, seed=2))
    assert part.details["quadrature"] == "bracket"
    slack = 1.05 if question.startswith("schatten") else 1.0  # the root is taken to first order
    assert abs(part.value - full.value) <= slack * part.errors.solver
    assert part.errors.solver > 0


@pytest.mark.parametrize("question", PSD_QUESTIONS)
def test_data_error_equals_a_brute_force_jackknife(question: str) -> None:
    ask, truth = PSD_QUESTIONS[question]
    A = batches()

    def answer(weights: Tensor) -> Tensor:
        return truth(torch.linalg.eigvalsh(torch.einsum("b,bij->ij", weights, A.matrices)))

    weights = A.weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(answer(weights), weights)
    influence = A.weights * (slope - (A.weights * slope).sum())
    # Of batches of different sizes the factor is 1 / (1 - sum w^2), which is 10 / 9 for equal ones.
    brute = math.sqrt(float((influence**2).sum()) / (1 - float(A.weights.square().sum())))
    exact = ask(spectral_sketch(A, method="exact"))
    assert exact.errors.data == pytest.approx(brute, rel=1e-8)
    many = ask(spectral_sketch(A, method="slq", n_probes=400, steps=20, seed=1))
    assert many.errors.data == pytest.approx(brute, rel=0.06)
    top = leading(A.total, 4)
    deflated = ask(spectral_sketch(A, method="slq", n_probes=400, steps=20, seed=1, deflate=top))
    assert deflated.errors.data == pytest.approx(brute, rel=0.06)


def test_data_error_is_that_of_leaving_batches_out() -> None:
    A = batches()
    values = []
    for b in range(10):
        kept = A.weights.clone()
        kept[b] = 0.0
        values.append(torch.log(torch.linalg.eigvalsh(torch.einsum("b,bij->ij", kept / kept.sum(), A.matrices)) + 0.1))
    totals = torch.stack(values).sum(1)
    jackknife = math.sqrt(9 / 10 * float(((totals - totals.mean()) ** 2).sum()))
    estimate = spectral_sketch(A, method="exact").logdet(shift=0.1)
    assert estimate.errors.data == pytest.approx(jackknife, rel=0.2)


def test_influences_add_up_to_the_operator() -> None:
    A = batches()
    sketch = spectral_sketch(A, method="slq", n_probes=3, steps=8, deflate=leading(A.total, 2))
    first = torch.einsum("g,pgm->pm", sketch.weights, sketch.chain_influence)
    assert float((first[:, 0] - sketch.alphas[:, 0]).abs().max()) < 1e-12
    assert float((first[:, 1] - sketch.betas[:, 0]).abs().max()) < 1e-12
    assert float(first[:, 2:].abs().max()) < 1e-12
    torch.testing.assert_close(sketch.weights @ sketch.theta_influence, sketch.theta)
    assert sketch.matvecs == 3 * 8 + 3 + 2


def test_many_batches_are_pooled_into_groups() -> None:
    A = batches(count=150, dim=12)
    sketch = spectral_sketch(A, method="slq", n_probes=3, steps=5)
    assert sketch.chain_influence.shape == (3, 64, 5)
    torch.testing.assert_close(sketch.weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    exact, pooled = spectral_sketch(batches(60, 12), method="exact"), spectral_sketch(A, method="exact")
    one, other = exact.trace().errors.data, pooled.trace().errors.data
    assert one is not None
    assert other == pytest.approx(one * math.sqrt(60 / 150), rel=0.3)


def test_no_data_error_for_one_term_or_on_request() -> None:
    matrix = symmetric(eigenvalues("flat", 30))
    assert spectral_sketch(matrix, method="slq").trace().errors.data is None
    A = batches()
    plain = spectral_sketch(A, method="slq", n_probes=4, steps=6, data_error=False)
    assert plain.trace().errors.data is None
    assert plain.matvecs == 24


def test_inexact_deflation_is_within_its_solver_error() -> None:
    matrix = symmetric(eigenvalues("outliers", 60))
    generator = torch.Generator().manual_seed(0)
    rough = leading(matrix, 8) + 0.02 * torch.randn(8, 60, generator=generator, dtype=torch.float64)
    values = eigenvalues("outliers", 60)
    sketch = spectral_sketch(matrix, method="slq", n_probes=200, steps=52, deflate=rough, seed=4)
    assert float(sketch.residuals.max()) > 0.1
    smooth = sketch.smoothed_logdet(eps=1.0)
    bias = smooth.value - float(torch.log(values**2 + 1.0).sum() / 2)
    assert 3 * smooth.errors.probe < abs(bias) < smooth.errors.solver + 3 * smooth.errors.probe
    assert smooth.details["coupling_error"] < 20 * abs(bias)
    assert_agrees(sketch.frobenius_norm(), float(values.norm()), 0.1)
    assert_agrees(sketch.trace(), float(values.sum()), 5.0)


def test_deflation_takes_eigenpairs_and_all_directions() -> None:
    matrix = symmetric(eigenvalues("indefinite", 12))

    class Pairs:
        vectors = torch.linalg.eigh(matrix).eigenvectors.T.contiguous()

    estimate = spectral_sketch(matrix, method="slq", deflate=Pairs()).trace()
    assert estimate.kind == "exact"
    assert estimate.value == pytest.approx(float(matrix.trace()), abs=1e-12)
    one_left = spectral_sketch(matrix, method="slq", n_probes=4, deflate=Pairs.vectors[:11]).trace()
    assert one_left.value == pytest.approx(float(matrix.trace()), abs=1e-12)


@pytest.mark.parametrize("law", ["sphere", "gaussian", "rademacher"])
def test_probe_laws_are_unbiased(law: str) -> None:
    matrix = symmetric(eigenvalues("decaying", 50))
    sketch = spectral_sketch(matrix, method="slq", law=law, n_probes=300, steps=10, deflate=leading(matrix, 5), seed=9)
    assert_agrees(
        sketch.smoothed_logdet(eps=0.3), float(torch.log(eigenvalues("decaying", 50) ** 2 + 0.09).sum() / 2), 9
    )
    constant = sketch.spectral_sum(torch.ones_like)
    assert constant.value == pytest.approx(50, abs=4 * constant.errors.probe + 1e-10)
    assert (constant.errors.probe < 1e-12) == (law == "sphere")


@pytest.mark.parametrize("factor", [1e-12, 1e-5, 1e5])
def test_scaling_the_operator_scales_the_answers(factor: float) -> None:
    matrix = symmetric(eigenvalues("decaying", 60))
    one = spectral_sketch(DenseOperator(matrix, psd=True), method="slq", n_probes=8, steps=15)
    other = spectral_sketch(DenseOperator(matrix * factor, psd=True), method="slq", n_probes=8, steps=15)
    for left, right, unit in (
        (one.frobenius_norm(), other.frobenius_norm(), factor),
        (one.trace(), other.trace(), factor),
        (one.effective_dimension(shift=0.1), other.effective_dimension(shift=0.1 * factor), 1.0),
        (one.schatten_norm(1.5), other.schatten_norm(1.5), factor),
    ):
        assert right.value == pytest.approx(left.value * unit, rel=1e-9)
        assert right.errors.probe == pytest.approx(left.errors.probe * unit, rel=1e-6)
    shifted = other.logdet(shift=0.1 * factor)
    assert shifted.value == pytest.approx(one.logdet(shift=0.1).value + 60 * math.log(factor), rel=1e-9)


def test_zero_matrix_and_identity() -> None:
    zero = spectral_sketch(DenseOperator(torch.zeros(9, 9).double(), psd=True), method="slq", n_probes=8)
    assert zero.matvecs == 8
    assert zero.frobenius_norm().interval() == (0.0, 0.0)
    assert zero.logdet(shift=0.5).value == pytest.approx(9 * math.log(0.5), rel=1e-12)
    assert zero.effective_dimension(shift=0.5).value == 0.0
    eye = spectral_sketch(DenseOperator(torch.eye(9).double(), psd=True), method="slq", n_probes=8)
    assert eye.matvecs == 8
    assert eye.logdet(shift=0.5).value == pytest.approx(9 * math.log(1.5), rel=1e-12)
    assert eye.logdet(shift=0.5).errors.probe < 1e-12


def test_float32_operator() -> None:
    values = eigenvalues("decaying", 100)
    matrix = symmetric(values).float()
    A = DenseOperator((matrix + matrix.T) / 2, psd=True)
    sketch = spectral_sketch(A, method="slq", n_probes=64, steps=30, seed=1)
    assert sketch.alphas.dtype == torch.float64
    assert_agrees(sketch.logdet(shift=1e-2), float(torch.log(values + 1e-2).sum()), 15)
    # By the law of the sphere, Var ||A w||^2 = 2 n^2 / (n + 2) (mean l^4 - (mean l^2)^2); the error of the norm follows
    # by the delta method. It is estimated from the mean of 64 fourth moments, each off by about its own size: 9 %.
    squares = values.square()
    law = 2 * 100**2 / 102 * (squares.square().mean() - squares.mean() ** 2) / 64
    error = float(law.sqrt() / (2 * values.norm()))
    assert sketch.frobenius_norm().errors.probe == pytest.approx(error, rel=4 * 0.09)
    assert_agrees(sketch.frobenius_norm(), float(values.norm()), 4 * 1.36 * error)


def test_effective_dimension_of_an_indefinite_operator_says_what_it_is() -> None:
    estimate = spectral_sketch(symmetric(eigenvalues("indefinite", 30))).effective_dimension(shift=0.3)
    assert estimate.method == "effective-dimension-squared"


def test_few_probes_are_flagged() -> None:
    steep = torch.arange(1, 61, dtype=torch.float64) ** -3.0
    sketch = spectral_sketch(symmetric(steep), method="slq", n_probes=4, steps=5)
    assert sketch.trace().flags == ("few-probes",)
    # Where all eigenvalues take part four probes know their variance to over 16 degrees of freedom.
    assert spectral_sketch(symmetric(eigenvalues("flat", 60)), method="slq", n_probes=4, steps=5).trace().flags == ()


def test_a_false_claim_of_definiteness_is_found() -> None:
    A = DenseOperator(symmetric(eigenvalues("indefinite", 40)), psd=True)
    with pytest.raises(ValueError, match="A must have no eigenvalue below 0, as it claims; got one at or below -"):
        spectral_sketch(A, method="slq", n_probes=4, steps=20).logdet(shift=0.1)


def test_bad_arguments() -> None:
    matrix = symmetric(eigenvalues("flat", 20))
    with pytest.raises(ValueError, match="law must be one of"):
        spectral_sketch(matrix, law="cauchy")
    with pytest.raises(ValueError, match="method must be one of"):
        spectral_sketch(matrix, method="magic")
    with pytest.raises(ValueError, match="steps must be an integer >= 2; got 1"):
        spectral_sketch(matrix, steps=1)
    with pytest.raises(ValueError, match="n_probes must be an integer >= 2; got 1"):
        spectral_sketch(matrix, n_probes=1)
    with pytest.raises(ValueError, match="rtol must be a finite number > 0; got 0"):
        spectral_sketch(matrix, rtol=0)
    sketch = spectral_sketch(matrix)
    with pytest.raises(ValueError, match=r"p must be a finite number >= 1; got 0\.5"):
        sketch.schatten_norm(0.5)
    with pytest.raises(ValueError, match="eps must be a finite number > 0; got 0"):
        sketch.smoothed_logdet(eps=0)
    with pytest.raises(ValueError, match="shift must be a finite number > 0; got -1"):
        sketch.effective_dimension(shift=-1)
    with pytest.raises(TypeError, match="f must map an fp64 tensor to one of the same shape; got shape \\(\\)"):
        sketch.spectral_sum(lambda x: x.sum())
    with pytest.raises(ValueError, match="f must be finite on the spectrum; got nan at eigenvalue"):
        sketch.spectral_sum(lambda x: torch.log(-x))
