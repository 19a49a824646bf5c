"""When a sweep takes the whole matrix instead, what that costs and gives, and when it must not."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import SumOperator, eigenvalues, symmetric
from questions import PSD_QUESTIONS, batches
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.estimate import Estimate
from hessprobe.estimators import whole
from hessprobe.estimators.budget import Progress
from hessprobe.estimators.logdet import logdet
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.spectral_density import spectral_density
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.operators import Counted, DenseOperator

DIM = 600


def _operator(values: Tensor) -> Counted:
    return Counted(DenseOperator(symmetric(values), psd=bool(values.min() >= 0)))


def _dimension(sketch: SpectralSketch) -> Estimate:
    return sketch.effective_dimension(shift=1e-3)


@pytest.fixture(scope="module")
def decaying() -> Tensor:
    return 10.0 * torch.arange(1, DIM + 1, dtype=torch.float64) ** -1.5


def test_a_pilot_in_vain_costs_at_most_half_of_the_matrix_and_the_answer_is_exact(decaying: Tensor) -> None:
    A = _operator(decaying)
    sketch = spectral_sketch(A, rtol=1e-3, target=_dimension)
    assert A.matvec_count == sketch.matvecs
    assert DIM < sketch.matvecs <= 1.5 * DIM + 4
    estimate = _dimension(sketch)
    assert estimate.value == pytest.approx(float((decaying / (decaying + 1e-3)).sum()), rel=1e-8)
    assert (estimate.kind, estimate.errors.probe, estimate.half_width(), estimate.flags) == ("exact", 0.0, 0.0, ())
    for ask, truth in PSD_QUESTIONS.values():
        assert ask(sketch).value == pytest.approx(float(truth(decaying)), rel=1e-8)


def test_a_pilot_ends_where_the_smallest_run_would_take_the_matrix() -> None:
    # Even after 100 steps the quadrature of a bulk at the scale of the shift is not good enough.
    bulk = 1e-3 * torch.randn(570, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = _operator(torch.cat([torch.logspace(-1, 1.7, 30, dtype=torch.float64), bulk]))
    sketch = spectral_sketch(A, rtol=1e-6, target=lambda s: s.effective_dimension(shift=1e-5))
    # Twelve steps of four chains show it, after as many of one; they ended after a whole eighth of the dimension.
    assert (A.matvec_count, sketch.n_probes) == (DIM + 12 + 4 * 12, 0)


@pytest.mark.parametrize(("rtol", "most"), [(0.1, 12 * 8), (0.01, 440)])
def test_a_logdet_is_priced_by_its_tolerance(rtol: float, most: int) -> None:
    values = torch.cat([torch.zeros(250), torch.linspace(0.5, 1.5, 250)]).double()
    A = _operator(values)
    found = logdet(A, shift=1e-3, rtol=rtol, seed=1)
    truth = float(torch.log(values + 1e-3).sum())
    assert found.matvecs == A.matvec_count <= most
    assert found.half_width() <= 1.05 * rtol * abs(truth)
    low, high = found.interval(0.9999)
    assert low <= truth <= high


def test_a_pilot_that_asks_for_less_than_the_matrix_is_followed(decaying: Tensor) -> None:
    A = _operator(decaying)
    sketch = spectral_sketch(A, rtol=0.9, target=_dimension, steps=10)
    assert sketch.n_probes >= 8
    assert sketch.matvecs < DIM


def test_a_run_about_as_dear_as_the_matrix_is_not_made(decaying: Tensor) -> None:
    # The default, 8 chains of 64 steps, takes 512 products: nine tenths of 560, and less of 600.
    small, large = _operator(decaying[:560]), _operator(decaying)
    assert (spectral_sketch(small).n_probes, small.matvec_count) == (0, 560)
    assert (spectral_sketch(large).n_probes, large.matvec_count) == (8, 512)
    assert spectral_sketch(small, method="slq").n_probes == 8


def test_a_density_of_an_affordable_matrix_has_no_band(decaying: Tensor) -> None:
    A = _operator(decaying[:560] - 1.0)
    density = spectral_density(A)
    assert (A.matvec_count, density.negative.kind) == (560, "exact")
    assert density.negative.value == pytest.approx(float((decaying[:560] < 1.0 - density.zero).double().mean()))


def test_a_fixed_number_of_chains_grows_no_further_than_the_matrix() -> None:
    even = torch.linspace(-1, 1, DIM, dtype=torch.float64)
    A = _operator(even)
    estimate = logdet(A, eps=1e-3, n_probes=8)
    assert DIM < A.matvec_count <= 2 * DIM
    truth = float(torch.log(even**2 + 1e-6).sum() / 2)
    assert (estimate.kind, estimate.value) == ("exact", pytest.approx(truth, rel=1e-8))
    sampled = logdet(A, eps=20.0, n_probes=8)
    assert (sampled.kind, sampled.matvecs) == ("estimate", 8 * sampled.details["steps"])


@pytest.mark.parametrize(("cap", "memory"), [(500, 2 << 30), (4096, 5 * DIM**2 * 8 - 1)])
def test_a_matrix_too_large_is_sampled(
    decaying: Tensor, monkeypatch: pytest.MonkeyPatch, cap: int, memory: int
) -> None:
    monkeypatch.setattr(whole, "LARGEST", cap)
    sketch = spectral_sketch(_operator(decaying), n_probes=16, memory=memory)
    assert (sketch.n_probes, sketch.matvecs) == (16, 1024)


def test_the_data_error_of_the_whole_matrix_is_that_of_its_batches() -> None:
    A = Counted(batches())
    sketch = spectral_sketch(A, method="exact")
    assert sketch.matvecs == A.matvec_count == 40
    values, vectors = torch.linalg.eigh(A.inner.total)
    slope = 0.1 / (values + 0.1) ** 2
    seen = torch.einsum("ji,bjk,ki,i->b", vectors, A.inner.matrices, vectors, slope)
    weights = A.inner.weights
    centred = seen - (weights * seen).sum()
    truth = math.sqrt(float((weights**2 * centred**2).sum()) / (1 - float(weights.square().sum())))
    assert sketch.effective_dimension(shift=0.1).errors.data == pytest.approx(truth, rel=1e-8)


def test_progress_is_told_of_each_block() -> None:
    seen: list[Progress] = []
    spectral_sketch(symmetric(eigenvalues("flat", 100)), method="exact", callback=seen.append)
    assert [(p.done, p.total) for p in seen] == [(64.0, 100.0), (100.0, 100.0)]


def test_products_that_are_not_finite_are_refused() -> None:
    matrix = symmetric(eigenvalues("flat", 20))
    matrix[3, 3] = math.nan
    with pytest.raises(NonFiniteError, match="products with the operator must be finite; got nan or inf"):
        spectral_sketch(SumOperator(matrix[None]), method="exact")
