"""Definition, laws, plug-in error and bias, heavy tails, and what is refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError, NumericalWarning
from hessprobe.estimate import ErrorParts, Estimate, student_quantile
from hessprobe.estimators.budget import spread_df
from hessprobe.objective.analytic import Quadratic
from hessprobe.operators import LinearOperator, aslinearoperator
from hessprobe.universal import Forms, Measure, Point, Spectrum, agreement, catalogue, evaluate, samplers
from hessprobe.universal.law import law_error, spectrum_of
from hessprobe.universal.plugin import FEW_DF, FEW_DF_ONE, effective_size, jackknife, plug_in

H = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
GAUSS = samplers.gaussian()


def first(s: Tensor) -> Tensor:
    return s[0]


def same(t: Tensor) -> Tensor:
    return t


# Laws


LAWS = {
    "gaussian": (samplers.gaussian(0.5), 0.25),
    "rademacher": (samplers.rademacher(), 1.0),
    "sphere": (samplers.sphere(), 1 / 4),
    "ball": (samplers.ball(2.0), 4 / 6),
    "cube": (samplers.cube(3.0), 3.0),
    "lebesgue": (samplers.lebesgue_cube(3.0), 3.0),
    "product": (samplers.product(lambda source, dim: source.exponential(size=dim), name="exp"), 2.0),
    "scaled": (samplers.scaled(samplers.gaussian(), 3.0), 9.0),
}


@pytest.mark.parametrize("name", list(LAWS))
def test_second_moment_and_reproducibility(name: str) -> None:
    law, expected = LAWS[name]
    rows = law.rows(0, 4000, Point(4), seed=2)
    squares = rows.square().mean(1)
    error = float(squares.std()) / math.sqrt(4000) + 1e-12
    assert abs(float(squares.mean()) - expected) < 4 * error
    # Draw 1234 is the same alone as in a block, and another in another stream or under another seed.
    assert torch.equal(law.rows(1234, 1235, Point(4), seed=2)[0], rows[1234])
    assert not torch.equal(law.rows(1234, 1235, Point(4), seed=3)[0], rows[1234])
    assert not torch.equal(law.rows(1234, 1235, Point(4), seed=2, stream="pilot")[0], rows[1234])


def test_masses() -> None:
    assert Measure(first, same, samplers.lebesgue_cube(1.5)).mass(4) == pytest.approx(81.0)
    assert Measure(first, same, samplers.cube(1.5)).mass(4) == 1.0
    with pytest.raises(ValueError, match="mu must have a mass below 1e308"):
        Measure(first, same, samplers.lebesgue_cube(1.5)).mass(1000)


def test_laws_that_depend_on_the_point() -> None:
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    risk = Quadratic(H, theta=theta)
    g = H @ theta
    ascent = evaluate(catalogue.ascent().measure, risk)
    assert ascent.value == pytest.approx(float(g @ H @ g / (g @ g)), rel=1e-12)
    assert (ascent.std_error, ascent.kind, ascent.matvecs) == (0.0, "exact", 2.0)
    worst = evaluate(catalogue.worst().measure, risk)
    assert worst.value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-10)
    scaled = evaluate(Measure(lambda s: 2 * s[0], same, samplers.rescaled()), risk, n_probes=4000)
    truth = float((torch.outer(theta, theta) * H).trace())
    assert abs(scaled.value - truth) < 4 * scaled.std_error < 0.1 * truth * 4


def test_own_law_reads_the_point() -> None:
    law = samplers.from_function(
        lambda source, point: point.part("theta") * source.integers(1, 3), name="multiples", needs=("theta",)
    )
    theta = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    t = Forms(operator_of_h(), law, Point(3, theta), seed=0).first(50)
    assert sorted(set(t.tolist())) == [2.0, 8.0]


def operator_of_h() -> LinearOperator:
    return aslinearoperator(H)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (samplers.ascent(), "point must hold the gradient that this mu depends on"),
        (samplers.rescaled(), "point must hold the theta"),
        (
            samplers.product(lambda s, d: s.random(d + 1), name="long"),
            r"mu must draw vectors of shape \(3,\); got \(4,",
        ),
        (samplers.product(lambda s, d: np.full(d, np.nan), name="nan"), "mu must draw finite numbers"),
    ],
)
def test_bad_laws(law: samplers.Sampler, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Measure(first, same, law), H, n_probes=4)


def test_law_must_draw_arrays() -> None:
    law = samplers.product(lambda s, d: [0.0] * d, name="list")
    with pytest.raises(TypeError, match="mu must draw a tensor or an array; got list"):
        evaluate(Measure(first, same, law), H, n_probes=4)


def test_ascent_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match="gradient must be non-zero for the ascent direction"):
        evaluate(catalogue.ascent().measure, Quadratic(H, theta=torch.zeros(3).double()))


# phi and psi


@pytest.mark.parametrize(
    ("phi", "psi", "kind", "message"),
    [
        (first, lambda t: torch.stack([t, t**2]), ValueError, r"psi must return shape \(20,\) or \(20, m\)"),
        (first, lambda t: t.sum(), ValueError, "psi must return shape"),
        (first, lambda t: 1.0, TypeError, "psi must return a tensor; got float"),
        (lambda s: s, lambda t: torch.stack([t, t], -1), ValueError, "phi must return one number; got shape"),
        (lambda s: float(s[0].detach()), same, TypeError, "phi must return a tensor; got float"),
        (lambda s: s[0].detach(), same, TypeError, "phi must be differentiable in s"),
        (lambda s: torch.log(-s[0]), same, NonFiniteError, r"phi\(s\) must be finite; got nan at s = \["),
        (first, lambda t: torch.exp(1e4 * t), NonFiniteError, "E psi must be finite; got nan or inf in component 1"),
    ],
)
def test_bad_phi_and_psi(
    phi: Callable[[Tensor], Tensor], psi: Callable[[Tensor], Tensor], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        evaluate(Measure(phi, psi, GAUSS), H, n_probes=20)


def test_psi_stacked_along_the_wrong_dimension_is_seen_where_n_equals_m() -> None:
    with pytest.raises(ValueError, match="last dimension"):
        evaluate(Measure(first, lambda t: torch.stack([t, t**2]), GAUSS), H, n_probes=2)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((1.0, same, GAUSS), TypeError, "phi must be a function of a tensor; got float"),
        ((first, None, GAUSS), TypeError, "psi must be a function"),
        ((first, same, "gaussian"), TypeError, "mu must be a Sampler; got str"),
        ((first, same, GAUSS, 0.0), ValueError, "c must not be 0"),
        ((first, same, GAUSS, math.nan), ValueError, "c must be a finite number"),
    ],
)
def test_bad_measures(arguments: tuple[object, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Measure(*arguments)  # type: ignore[arg-type]  # on purpose


def test_too_few_draws() -> None:
    for entry, fewest in ((catalogue.frob(), 2), (catalogue.cumulant(4), 4)):
        with pytest.raises(ValueError, match=f"n_probes must be an integer >= {fewest}.*variance"):
            evaluate(entry.measure, H, n_probes=fewest - 1)
    with pytest.raises(TypeError, match="measure must be a Measure; got str"):
        evaluate("frob", H)  # type: ignore[arg-type]  # on purpose


def test_the_factor_c() -> None:
    one, two = (evaluate(Measure(first, same, GAUSS, c), H, n_probes=50) for c in (0.5, 1.0))
    assert two.value == pytest.approx(2 * one.value, rel=1e-12)


# Error and bias


def test_delta_method_of_a_mean_is_the_standard_error() -> None:
    samples = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = plug_in(Measure(first, same, GAUSS), samples)
    assert found.std_error == pytest.approx(float(samples.std()) / math.sqrt(500), rel=1e-12)
    assert found.bias == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("n", [2, 3, 50, 256, 257, 1000])
def test_jackknife_makes_a_variance_exactly_unbiased(n: int) -> None:
    t = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) + 3
    samples = torch.stack([t, t**2], -1)
    whole = float(samples[:, 1].mean() - samples[:, 0].mean() ** 2)
    bias, _ = jackknife(lambda rows: rows[:, 1] - rows[:, 0] ** 2, samples, whole)
    assert bias is not None
    # Equal and unequal groups alike take away what is of order 1/n: in expectation, here for leave-one-out exactly.
    expected = -float(t.var()) / n
    assert bias == pytest.approx(expected, rel=1e-9 if n <= 256 else 0.5)


def test_grouped_jackknife_is_unbiased_for_unequal_groups() -> None:
    generator = torch.Generator().manual_seed(1)
    gaps = []
    for _ in range(400):
        t = torch.randn(700, generator=generator, dtype=torch.float64)
        samples = torch.stack([t, t**2], -1)
        whole = float(samples[:, 1].mean() - samples[:, 0].mean() ** 2)
        bias, _ = jackknife(lambda rows: rows[:, 1] - rows[:, 0] ** 2, samples, whole)
        assert bias is not None
        gaps.append(bias * 700)
    gaps_tensor = torch.tensor(gaps, dtype=torch.float64)
    assert abs(float(gaps_tensor.mean()) + 1) < 4 * float(gaps_tensor.std()) / 20 < 0.1


def test_jackknife_error_agrees_with_the_delta_method() -> None:
    t = torch.randn(4000, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    measure = Measure(lambda s: s[1] - s[0] ** 2, lambda t: torch.stack([t, t**2], -1), GAUSS)
    found = plug_in(measure, measure.samples(t))
    assert found.jackknife_error == pytest.approx(found.std_error, rel=0.15)


def test_plug_in_bias_of_the_determinant() -> None:
    """H = diag(.5, 1, 2), det(I + H) = 9: means 10.31, 9.284, 9.066 at n = 16, 64, 256; the jackknife takes it away."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for n, mean, repeats in ((16, 10.31, 60_000), (64, 9.284, 40_000), (256, 9.066, 20_000)):
        draws = torch.randn(repeats, n, 3, generator=generator, dtype=torch.float64)
        s = torch.exp(-0.5 * (draws.square() @ values)).mean(1)
        plain = s**-2
        assert abs(float(plain.mean()) - mean) < 4 * float(plain.std()) / math.sqrt(repeats) + 0.01 * (n == 16)
    measure, corrected = catalogue.det(1.0).measure, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        for _ in range(600):
            t = 0.5 * (torch.randn(64, 3, generator=generator, dtype=torch.float64).square() @ values)
            found = plug_in(measure, measure.samples(t))
            assert found.bias is not None
            corrected.append((found.value - found.bias, found.bias))
    table = torch.tensor(corrected, dtype=torch.float64)
    error = table.std(0) / math.sqrt(600)
    assert abs(float(table[:, 0].mean()) - 9) < 4 * float(error[0]) < 0.5
    assert abs(float(table[:, 1].mean()) - 0.284) < 4 * float(error[1]) + 0.02


def test_uncorrected_bias_is_flagged() -> None:
    diag = torch.diag(torch.tensor([0.5, 1.0, 2.0])).double()
    measure = Measure(lambda s: s[0] ** 2, same, samplers.gaussian(), name="square")
    shifted = Measure(lambda s: (s[0] - 1.75) ** 2, same, samplers.gaussian(), name="square about the mean")
    with pytest.warns(NumericalWarning, match="is off by about .* correct it with correct_bias=True"):
        estimate = evaluate(shifted, diag, n_probes=400)
    assert "plug-in-bias" in estimate.flags
    quiet = evaluate(measure, diag, n_probes=400, correct_bias=True)
    assert quiet.flags == ()
    assert quiet.details["bias_corrected"]


def test_no_curvature_no_error() -> None:
    estimate = evaluate(catalogue.frob().measure, torch.zeros(3, 3).double(), n_probes=10, correct_bias=True)
    assert estimate.value == pytest.approx(0.0, abs=1e-100)
    assert estimate.std_error == pytest.approx(0.0, abs=1e-100)


# Tails


def test_effective_size() -> None:
    assert effective_size(torch.ones(50)) == pytest.approx(50)
    assert effective_size(torch.tensor([1e300] + [1e-300] * 9, dtype=torch.float64)) == pytest.approx(1)


@pytest.mark.parametrize(("kurtosis", "law"), [(3.0, "normal"), (9.0, "exponential"), (1.8, "uniform")])
def test_degrees_of_freedom_of_a_variance(kurtosis: float, law: str) -> None:
    generator = torch.Generator().manual_seed(5)
    n = 40_000
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    drawn = {
        "normal": torch.randn(n, generator=generator, dtype=torch.float64),
        "exponential": -torch.log(uniform),
        "uniform": uniform,
    }[law]
    assert spread_df(3 * drawn - 7) == pytest.approx(min(2 * n / (kurtosis - 1), n - 1), rel=0.08)


def test_a_norm_from_few_draws_says_so() -> None:
    A = torch.diag(torch.linspace(0.5, 1.5, 50).double())
    few, enough = (evaluate(catalogue.frob().measure, A, n_probes=n, correct_bias=True) for n in (127, 128))
    assert (few.flags, enough.flags) == (("few-probes",), ())
    assert evaluate(catalogue.trace().measure, A, n_probes=8).flags == ()
    # The interval is that of the square's reciprocal: nothing of a sampled norm is known.
    low, high = enough.interval()
    assert low**-2 - enough.value**-2 == pytest.approx(enough.value**-2 - high**-2)


def test_degrees_of_freedom_by_hand() -> None:
    assert spread_df(torch.tensor([1.0, -1.0, 1.0, -1.0])) == 3.0
    assert spread_df(torch.full((5,), 2.0)) == 4.0
    # One number of 100 differs: kurtosis 98.01 + 1 / 99 - ..., so that 2 n / (k - 1) is just above 2.
    lonely = torch.zeros(100, dtype=torch.float64)
    lonely[0] = 1e200
    p = 0.01
    assert spread_df(lonely) == pytest.approx(200 / ((1 - 3 * p * (1 - p)) / (p * (1 - p)) - 1), rel=1e-9)


def test_cumulants_of_a_broad_spectrum_are_not_called_heavy_and_those_of_one_eigenvalue_are() -> None:
    generator = torch.Generator().manual_seed(2)
    measure, heavy, inside = catalogue.cumulant(3).measure, [], 0
    for _ in range(60):
        t = 0.5 * torch.randn(1000, 50, generator=generator, dtype=torch.float64).square().sum(1)
        found = plug_in(measure, measure.samples(t))
        assert found.bias is not None
        heavy.append(found.heavy)
        inside += abs(found.value - found.bias - 50) < student_quantile(0.975, found.df) * found.std_error
    assert sum(heavy) <= 2
    assert inside >= 52
    t = 5.0 * torch.randn(60, 1000, generator=generator, dtype=torch.float64).square()
    fourth = catalogue.cumulant(4).measure
    alone = [plug_in(fourth, fourth.samples(row)) for row in t]
    assert sum(one.heavy for one in alone) >= 30
    assert sorted(one.df for one in alone)[30] < FEW_DF


def test_heavy_tails_are_said() -> None:
    # exp(-t) has a tail of index 1/0.9: its mean exists, its variance does not.
    diag = torch.diag(torch.tensor([-0.9, 0.1, 0.2])).double()
    with pytest.warns(NumericalWarning, match="logdet: few of the 4000 draws carry the mean of psi"):
        estimate = evaluate(catalogue.logdet(1.0).measure, diag, n_probes=4000, correct_bias=True)
    assert "heavy-tailed-mean" in estimate.flags
    assert estimate.df < FEW_DF_ONE
    # A wide positive spectrum: weights are bounded, but a handful carries them.
    steep = torch.diag(torch.full((40,), 30.0)).double()
    with pytest.warns(NumericalWarning, match="effective ones"):
        estimate = evaluate(catalogue.logdet(1.0).measure, steep, n_probes=1000, correct_bias=True)
    assert estimate.details["effective_samples"] < 30
    # And a law narrow enough says nothing.
    narrow = evaluate(catalogue.logdet(0.1).measure, steep, n_probes=1000, correct_bias=True)
    assert narrow.flags == ()


# Sharing and comparing


def test_forms_are_shared_and_counted() -> None:
    operator = operator_of_h()
    forms = Forms(operator, GAUSS, Point(3), seed=4)
    kinds = (catalogue.trace(), catalogue.frob(), catalogue.logdet(0.5))
    shared = [evaluate(e.measure, operator, n_probes=300, forms=forms, correct_bias=True) for e in kinds]
    alone = [evaluate(e.measure, operator, n_probes=300, seed=4, correct_bias=True) for e in kinds]
    assert [e.value for e in shared] == pytest.approx([e.value for e in alone], rel=1e-12)
    assert [e.matvecs for e in shared] == [300, 0, 0]
    assert forms.matvecs == 300


def test_agreement() -> None:
    one, other = Estimate(5.0, ErrorParts(0.3)), Estimate(4.0, ErrorParts(0.4))
    assert agreement(one, other) == pytest.approx(2.0)
    assert agreement(other, one) == pytest.approx(-2.0)
    assert agreement(one.with_(errors=ErrorParts(0.3, None, 0.5)), other) == pytest.approx(1.0)
    assert agreement(Estimate(1.0), Estimate(1.0 + 1e-14)) == 0.0
    assert agreement(Estimate(1.0), Estimate(2.0)) == -math.inf


def test_the_error_of_a_cumulant_comes_from_a_sweep_and_is_paid_for() -> None:
    # 300 dimensions: more than a sweep takes. Its spectrum gives the error that the true one gives.
    values = torch.cat([torch.tensor([20.0, -9.0, 5.0]).double(), torch.linspace(-0.3, 0.4, 297).double()])
    A, measure = torch.diag(values), catalogue.cumulant(3).measure
    found = evaluate(measure, A, n_probes=64, correct_bias=True)
    assert found.details["error_from"] == "law"
    assert 64 + 8 * 16 < found.matvecs <= 64 + 8 * 16 + 8 + 96 + 16
    assert found.df == math.inf
    spectrum, products = spectrum_of(aslinearoperator(A), 0)
    assert found.matvecs == 64 + products
    for power in (2, 3, 4, 6):
        assert spectrum.power_sum(power) == pytest.approx(float(values.pow(power).sum()), rel=0.02)
    assert found.std_error == law_error(measure, spectrum, 64, correct_bias=True)
    # Given a spectrum nothing is added, and other measures do not ask for one.
    given = evaluate(measure, A, n_probes=64, correct_bias=True, spectrum=Spectrum.of(values))
    assert (given.matvecs, given.value) == (64, found.value)
    assert evaluate(catalogue.trace().measure, A, n_probes=8).matvecs == 8


def test_the_law_of_t_has_the_moments_of_the_formula() -> None:
    # Multiplicities need not be whole: two of 1.5 and 2.5 have those of four eigenvalues in cumulants.
    spectrum = Spectrum(torch.tensor([2.0, -1.0]).double(), torch.tensor([1.5, 2.5]).double())
    error = law_error(catalogue.trace().measure, spectrum, 50, correct_bias=False)
    # Var(2 t) = 2 Tr H^2.
    assert error == pytest.approx(math.sqrt(2 * (1.5 * 4 + 2.5) / 50), rel=0.08)
    assert law_error(Measure(lambda s: s[0], lambda t: t, samplers.cube()), spectrum, 50, correct_bias=False) is None
