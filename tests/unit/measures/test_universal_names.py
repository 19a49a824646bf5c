"""``universal:NAME``: the value, the Hessian-based estimate beside it, and the z-score between them."""

from __future__ import annotations

import math

import nets
import pytest
import torch

import hessprobe as hp
from hessprobe.estimators import spectral_sketch
from hessprobe.measures import UNIVERSAL, MeasureSettings, Result, measure_all
from hessprobe.measures.universal import spectral_reference
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.analytic import Quadratic
from hessprobe.universal import Spectrum, catalogue

pytestmark = pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")

NAMES = [name for name in UNIVERSAL if name != "universal:lebesgue-det"]


@pytest.fixture(scope="module")
def risk() -> EmpiricalRisk:
    return nets.mlp((16, 16, 16, 8)).risk()


@pytest.fixture(scope="module")
def results(risk: EmpiricalRisk) -> dict[str, Result]:
    settings = MeasureSettings(n_probes=1500, engine="double_backward")
    return {result.measure: result for result in measure_all(NAMES, risk, settings)}


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_its_hessian_based_partner(results: dict[str, Result], name: str) -> None:
    result = results[name]
    value, error = result.arrays["hessian_based"].tolist()
    z = float(result.arrays["z"][0])
    assert abs(z) < 4
    assert "disagrees-with-hessian" not in result.estimate.flags
    assert result.notes[0].startswith("Hessian-based (")
    assert f"z = {z:.2f}" in result.notes[0]
    together = math.hypot(result.estimate.std_error, error)
    if together > 0:
        assert z == pytest.approx((result.estimate.value - value) / together, abs=0.05)
    else:
        assert result.estimate.value == pytest.approx(value, rel=1e-3)
    # The error bar says something: it is well below the value, but for high cumulants of a spectrum with outliers.
    share = {"universal:tr3": 1.0, "universal:tr4": 2.0}.get(name, 0.15)
    assert 4 * result.estimate.std_error < 4 * share * abs(result.estimate.value)
    assert result.unit == UNIVERSAL[name].unit


def test_partners_agree_with_the_dense_matrix(risk: EmpiricalRisk, results: dict[str, Result]) -> None:
    matrix = hp.Hessian(risk).to_dense().double()
    spectrum = Spectrum.of_matrix(matrix)
    truths = {
        "universal:trace": spectrum.power_sum(1),
        "universal:frob": math.sqrt(spectrum.power_sum(2)),
        "universal:tr2": spectrum.power_sum(2),
        "universal:tr3": spectrum.power_sum(3),
        "universal:tr4": spectrum.power_sum(4),
        "universal:worst": float(spectrum.values.max()),
        "universal:soft-max": catalogue.soft_max(4).closed_form(spectrum),
    }
    for name, truth in truths.items():
        value, error = results[name].arrays["hessian_based"].tolist()
        assert abs(value - truth) < 4 * error + 1e-3 * abs(truth), name
        assert error < 0.05 * abs(truth), name
    shift = 2.0 ** math.ceil(math.log2(2 * math.sqrt(spectrum.power_sum(2))))
    truth = catalogue.logdet(1 / math.sqrt(shift)).closed_form(spectrum)
    value, error = results["universal:logdet"].arrays["hessian_based"].tolist()
    assert abs(value - truth) < 4 * error + 1e-3 * abs(truth)
    assert f"log det(A/{shift:g} + I)" in results["universal:logdet"].notes[1]


def test_products_are_shared() -> None:
    # Above 784 parameters, and the draws, the matrix is not made.
    risk = Quadratic(torch.linspace(1, 2, 800, dtype=torch.float64).diag())
    names = ["universal:trace", "universal:frob", "universal:tr2", "universal:soft-max", "universal:log-exp"]
    settings = MeasureSettings(n_probes=400, engine="double_backward")
    spent = [result.estimate.matvecs for result in measure_all(names, risk, settings)]
    assert (sorted(spent[:3]), sorted(spent[3:])) == ([0, 0, 400], [0, 400])
    # Here 1500 draws of two laws, and the spectrum, cost the 800 products of the matrix.
    settings = MeasureSettings(n_probes=1500, engine="double_backward")
    found = list(measure_all(names, risk, settings))
    assert [result.estimate.matvecs for result in found] == [800, 0, 0, 0, 0]
    assert {result.estimate.samples for result in found} == {1500}


def test_the_spectrum_of_a_small_matrix_is_no_estimate(risk: EmpiricalRisk) -> None:
    H = hp.Hessian(risk, engine="double_backward")
    settings = MeasureSettings(n_probes=20, engine="double_backward")
    (result,) = measure_all(["universal:tr3"], risk, settings, operator=H)
    truth = float((torch.linalg.eigvalsh(H.to_dense()) ** 3).sum())
    assert result.arrays["hessian_based"].tolist() == [pytest.approx(truth, rel=1e-8), 0.0]
    assert result.estimate.matvecs == risk.dim


def test_a_tolerance_is_planned_and_capped(risk: EmpiricalRisk) -> None:
    flat = Quadratic(torch.linspace(1, 2, 200, dtype=torch.float64).diag())
    loose = hp.measure("universal:trace", flat, rtol=0.03, engine="double_backward")
    assert loose.half_width() <= 0.04 * abs(loose.value)
    assert loose.matvecs == loose.samples + 64 < 200
    tight = hp.measure("universal:frob", risk, rtol=0.001, engine="double_backward")
    assert (tight.samples, {"budget-exhausted", "tolerance-missed"} <= set(tight.flags)) == (2048, True)


def test_from_losses_on_an_analytic_objective() -> None:
    H = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
    risk = Quadratic(H, terms=2)
    settings = MeasureSettings(n_probes=800, radius=0.05, engine="double_backward")
    for result in measure_all(list(UNIVERSAL), risk, settings):
        assert abs(float(result.arrays["z"][0])) < 4, result.measure
        assert result.estimate.method.startswith("losses/")
        assert any("losses at radii 0.05 and 0.025, extrapolated" in note for note in result.notes)


def test_a_kink_seen_by_losses_is_said() -> None:
    """Losses see |x| beyond 0 as curvature; products at x do not."""

    def kinked(theta: torch.Tensor) -> torch.Tensor:
        return (theta**2).sum() / 2 + (theta - 0.001).relu().sum()

    risk = Quadratic(torch.eye(3, dtype=torch.float64), theta=torch.zeros(3).double())
    risk.terms = lambda: iter([type(next(Quadratic.terms(risk)))(kinked)])  # type: ignore[method-assign]  # a kink
    (result,) = measure_all(
        ["universal:trace"], risk, MeasureSettings(n_probes=200, radius=0.1, engine="double_backward")
    )
    assert "disagrees-with-hessian" in result.estimate.flags
    assert any("losses see the kinks of ReLU" in note for note in result.notes)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("universal:frob", {"operator": "ggn", "radius": 0.1}, "radius must be None for operator='ggn'; got 0.1"),
        ("universal:lebesgue-det", {}, "universal:lebesgue-det must have at most 8 parameters"),
        ("universal:frobb", {}, "Did you mean 'universal:frob'"),
        ("universal:tr4", {"n_probes": 3}, "n_probes must be an integer >= 4; got 3"),
        (
            "universal:frob",
            {"radius": 1e-9, "n_probes": 10},
            "radius / 2, the smaller of the two in use, must be >= .* drown",
        ),
    ],
)
def test_refusals(risk: EmpiricalRisk, name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hp.measure(name, risk, engine="double_backward" if settings.get("operator") is None else "auto", **settings)


def test_lebesgue_needs_a_definite_matrix() -> None:
    risk = Quadratic(torch.diag(torch.tensor([1.0, -0.5])).double())
    with pytest.raises(ValueError, match=r"must have a positive definite matrix; got an eigenvalue -0\.5"):
        hp.measure("universal:lebesgue-det", risk)


def test_radius_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"radius must be a finite number > 0; got 0\.0"):
        MeasureSettings(radius=0.0)


def test_spectral_reference_covers(risk: EmpiricalRisk) -> None:
    matrix = hp.Hessian(risk).to_dense().double()
    spectrum = Spectrum.of_matrix(matrix)
    shift = 4 * math.sqrt(spectrum.power_sum(2))
    entry = catalogue.logdet(1 / math.sqrt(shift))
    truth, hits = entry.closed_form(spectrum), 0
    for seed in range(60):
        sketch = spectral_sketch(matrix, n_probes=12, steps=10, seed=seed, method="slq")
        low, high = spectral_reference(sketch, entry.closed_form).interval()
        hits += low <= truth <= high
    assert hits >= 51
    exact_trace = hp.trace(matrix, method="exact")
    exact_norm = hp.frobenius_norm(matrix, n_probes=2, deflate=torch.eye(len(matrix)).double())
    sharper = spectral_reference(sketch, entry.closed_form, exact_trace, exact_norm)
    assert sharper.std_error < 0.1 * spectral_reference(sketch, entry.closed_form).std_error
    assert sharper.value == pytest.approx(truth, rel=0.01)
