"""Every named measure on every operator against the dense matrix; what is shared; what the settings refuse."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import nets
import pytest
import torch
from stats import assert_agrees
from torch import Tensor, nn

import hessprobe as hp
from hessprobe import krylov
from hessprobe.estimate import Estimate
from hessprobe.hvp import Fisher, FunctionalPart, GaussNewton, Hessian
from hessprobe.measures import NAMES, MeasureSettings, Progress, Result, context, measure_all
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.preconditioner import Preconditioner

SHIFT = 0.05


def _logdet(values: Tensor, psd: bool) -> Tensor:
    return (values + SHIFT).log().sum() if psd else (values**2 + SHIFT**2).log().sum() / 2


def _dimension(values: Tensor, psd: bool) -> Tensor:
    values = values.clamp_min(0) if psd else values**2
    return (values / (values + (SHIFT if psd else SHIFT**2))).sum()


TRUTH: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "lambda-max": lambda values, psd: values.max(),
    "lambda-min": lambda values, psd: values.min(),
    "spectral-norm": lambda values, psd: values.abs().max(),
    "trace": lambda values, psd: values.sum(),
    "frob": lambda values, psd: values.norm(),
    # Of the block diagonal.
    "block-frob": lambda values, psd: values.norm(),
    "logdet": _logdet,
    # The smallest x that half of the eigenvalues do not exceed.
    "density": lambda values, psd: values.sort().values[(len(values) - 1) // 2],
    "diagonal": lambda values, psd: values.mean(),
    "effective-rank": lambda values, psd: values.sum() ** 2 / values.square().sum(),
    "effective-dimension": _dimension,
    "adaptive-lambda-max": lambda values, psd: values.max(),
    "adaptive-trace": lambda values, psd: values.sum(),
    "adaptive-frob": lambda values, psd: values.norm(),
    "preconditioned-lambda-max": lambda values, psd: values.max(),
    "pseudo-logdet": lambda values, psd: values[values.abs() > 1e-14 * values.abs().max()].abs().log().sum(),
}
OPERATORS = {"hessian": Hessian, "ggn": GaussNewton, "fisher": Fisher}


def _scale(risk: EmpiricalRisk) -> Tensor:
    """P^-1/2 of an optimizer that is not there: any positive numbers, of a wide range."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(risk.dim, generator=generator, dtype=torch.float64).exp()


def _measured(risk: EmpiricalRisk, operator: str, **settings: object) -> dict[str, Result]:
    how = MeasureSettings(operator=operator, shift=SHIFT, rtol=0.05, engine="double_backward", **settings)
    return {result.measure: result for result in measure_all(list(NAMES), risk, how)}


@pytest.fixture(
    scope="module",
    params=["hessian-mlp", "ggn-mlp", "fisher-mlp", "hessian-cnn", "hessian-attention", "ggn-attention"],
)
def measured(request: pytest.FixtureRequest) -> tuple[str, EmpiricalRisk, dict[str, Result], Tensor]:
    operator, _, net = request.param.partition("-")
    risk = nets.mlp((16, 16, 16, 8)).risk() if net == "mlp" else nets.CASES[net]().risk()
    risk.preconditioner = Preconditioner(_scale(risk), threshold=1.0)
    matrix = OPERATORS[operator](risk).to_dense()
    return operator, risk, _measured(risk, operator, per_layer=True), matrix


def test_every_name_has_a_measure_and_a_truth() -> None:
    assert set(TRUTH) == set(NAMES)


@pytest.mark.parametrize("name", list(NAMES))
def test_agrees_with_the_dense_matrix(
    measured: tuple[str, EmpiricalRisk, dict[str, Result], Tensor], name: str
) -> None:
    operator, risk, results, matrix = measured
    C = risk.theta.abs() if name.startswith("adaptive") else torch.ones_like(risk.theta)
    C = _scale(risk) if name.startswith("preconditioned") else C
    if name == "block-frob":
        matrix = torch.block_diag(*(matrix[where, where] for where in risk.layout.slices.values()))
    values = torch.linalg.eigvalsh(C[:, None] * matrix * C)
    truth = float(TRUTH[name](values, operator != "hessian"))
    estimate = results[name].estimate
    scale = float(values.abs().max()) if name.startswith("lambda") or name == "density" else abs(truth)
    assert_agrees(estimate, truth, max(0.2 * scale, 1e-12))
    assert results[name].engine == "double_backward"
    assert results[name].unit == NAMES[name].unit


def test_layers_add_up(measured: tuple[str, EmpiricalRisk, dict[str, Result], Tensor]) -> None:
    _, risk, results, matrix = measured
    for name, where in risk.layout.slices.items():
        layer = results["trace"].layers[name]
        assert_agrees(layer, float(matrix.diagonal()[where].sum()), 0.3 * float(matrix.trace()))
        share = results["frob"].layers[name]
        truth = float(matrix[where].square().sum() / matrix.square().sum())
        assert abs(share.value - truth) < 4 * share.errors.probe + 0.02
    assert sum(share.value for share in results["frob"].layers.values()) == pytest.approx(1.0, rel=0.1)


def test_layers_carry_what_is_said_of_the_probes_and_errors_of_their_own() -> None:
    risk = nets.mlp((16,)).risk()
    for probes, flags in ((4, ("few-probes",)), (8, ())):
        how = MeasureSettings(operator="functional", n_probes=probes, per_layer=True, engine="double_backward")
        (found,) = measure_all(["trace"], risk, how)
        assert found.layers is not None
        assert tuple(flag for flag in found.estimate.flags if flag == "few-probes") == flags
        assert all(layer.flags == flags for layer in found.layers.values())
        own = [layer.df for layer in found.layers.values() if layer.std_error > 0]
        assert own == pytest.approx([probes - 1.0] * len(own))
        assert found.estimate.df >= probes - 1


def test_the_largest_eigenvalue_of_each_layer_is_that_of_its_block(
    measured: tuple[str, EmpiricalRisk, dict[str, Result], Tensor],
) -> None:
    _, risk, results, matrix = measured
    layers = results["lambda-max"].layers
    assert list(layers) == list(risk.layout.slices)
    for name, where in risk.layout.slices.items():
        truth = float(torch.linalg.eigvalsh(matrix[where, where])[-1])
        layer = layers[name]
        assert abs(layer.value - truth) <= layer.errors.solver + 1e-9
        assert layer.errors.solver < 0.05 * abs(truth) + 1e-9
        assert layer.value <= results["lambda-max"].estimate.value + layer.errors.solver
        assert layer.matvecs > 0


def test_the_functional_part_is_measured_like_any_other_matrix() -> None:
    risk = nets.mlp((8, 6, 5)).risk()
    how = MeasureSettings(operator="functional", rtol=0.05, engine="double_backward")
    found = {each.measure: each for each in measure_all(["lambda-max", "lambda-min", "trace", "frob"], risk, how)}
    matrix = FunctionalPart(risk).to_dense()
    values = torch.linalg.eigvalsh(matrix)
    assert float(values[0]) < 0 < float(values[-1])
    norm = float(matrix.norm())
    for name, truth in (("lambda-max", values[-1]), ("lambda-min", values[0]), ("trace", values.sum())):
        assert_agrees(found[name].estimate, float(truth), 0.2 * norm)
    assert_agrees(found["frob"].estimate, norm, 0.1 * norm)
    assert {each.engine for each in found.values()} == {"double_backward"}


def test_arrays(measured: tuple[str, EmpiricalRisk, dict[str, Result], Tensor]) -> None:
    _, _, results, matrix = measured
    diagonal = results["diagonal"].arrays["diagonal"]
    error = results["diagonal"].arrays["diagonal_std_error"]
    assert float((diagonal - matrix.diagonal()).abs().max()) < 6 * float(error.max()) + 1e-12
    density = results["density"].arrays
    cdf = (torch.linalg.eigvalsh(matrix)[None] <= density["grid"][:, None]).double().mean(1)
    assert bool((density["cdf_band_low"] <= cdf + 1e-9).all() and (cdf <= density["cdf_band_high"] + 1e-9).all())


def test_a_density_says_quantiles_and_shares_at_thresholds_that_are_the_same_for_all(
    measured: tuple[str, EmpiricalRisk, dict[str, Result], Tensor],
) -> None:
    operator, _, results, matrix = measured
    found = results["density"]
    values, arrays = torch.linalg.eigvalsh(matrix), found.arrays
    slack = 1e-9 * float(values.abs().max())
    for level, low, high in zip(
        *(arrays[f"quantile{end}"].tolist() for end in ("_levels", "_low", "_high")), strict=True
    ):
        truth = float(values[math.ceil(level * len(values)) - 1])
        assert low - slack <= truth <= high + slack, level
    names = ("share_thresholds", "share_beyond_low", "share_beyond_high")
    for x, low, high in zip(*(arrays[name].tolist() for name in names), strict=True):
        truth = float((values > x if x > 0 else values <= x).double().mean())
        assert low - 1e-9 <= truth <= high + 1e-9, x
    assert arrays["share_thresholds"].tolist() == [-10, -1, -0.1, -0.01, -0.001, 0.001, 0.01, 0.1, 1, 10]
    low, high = found.estimate.interval()
    assert low <= found.estimate.value <= high
    if operator != "hessian":
        below = arrays["grid"] < 0
        assert float(arrays["density"][below].abs().sum() + arrays["cdf"][below].abs().sum()) == 0
        assert low >= 0


def test_a_median_that_the_sweep_cannot_resolve_is_a_bracket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "LARGEST", 8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 5)).double()
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), [(torch.randn(40, 8).double(), torch.randint(5, (40,)))])
    values = torch.linalg.eigvalsh(Hessian(risk).to_dense())
    estimate = hp.measure("density", risk, n_probes=3, engine="double_backward")
    assert (estimate.kind, estimate.std_error) == ("bracket", 0.0)
    low, high = estimate.interval(0.99)
    assert low <= float(values[(len(values) - 1) // 2]) <= high
    assert high - low < 0.05 * float(values[-1])
    assert estimate.details["notes"][0].startswith("quantiles with 95 % intervals: 5 % at -")
    assert "shares of eigenvalues: " in estimate.details["notes"][1]


def test_seconds_of_shared_directions_are_those_of_every_number_that_rests_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    risk = nets.mlp((16, 16, 16, 8)).risk()
    search, clock, passed = krylov.eigsh, time.perf_counter, [0.0]

    def slow(*args: Any, **options: Any) -> krylov.Eigenpairs:
        passed[0] += 1e6
        return search(*args, **options)

    monkeypatch.setattr(krylov, "eigsh", slow)
    monkeypatch.setattr(context, "LARGEST", 0)  # else the whole matrix of this small network answers
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + passed[0])
    how = MeasureSettings(n_probes=8, engine="double_backward")
    found = [result.estimate.seconds for result in measure_all(["trace", "frob", "density"], risk, how)]
    assert [seconds > 5e5 for seconds in found] == [False, True, True]


def test_products_are_shared() -> None:
    risk = nets.mlp((16, 16)).risk()
    counts = []
    for names in (["trace"], ["frob"], ["trace", "frob", "effective-rank"]):
        how = MeasureSettings(n_probes=10, engine="double_backward")
        counts.append([r.estimate.matvecs for r in measure_all(names, risk, how)])
    assert counts[2][:2] == [counts[0][0], counts[1][0]]
    assert counts[2][2] == counts[2][0] + counts[2][1]


def test_without_data_errors_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "LARGEST", 0)  # else the whole matrix of this small network answers
    names = ["lambda-max", "lambda-min", "trace", "frob", "effective-rank", "diagonal", "logdet"]

    def measured(data_error: bool) -> list[Estimate]:
        how = MeasureSettings(n_probes=12, engine="double_backward", shift=SHIFT, data_error=data_error)
        return [result.estimate for result in measure_all(names, nets.mlp((16, 16)).risk(), how)]

    asked, sweep = [], context.estimators.spectral_sketch

    def spied(*args: Any, **how: Any) -> Any:
        asked.append(how["data_error"])
        return sweep(*args, **how)

    monkeypatch.setattr(context.estimators, "spectral_sketch", spied)
    both, one = measured(True), measured(False)
    known = {name for name, told in zip(names, both, strict=True) if told.errors.data}
    assert known >= {"lambda-max", "lambda-min", "frob", "logdet"}
    for told, bare in zip(both, one, strict=True):
        assert bare.errors.data is None
        assert (bare.value, *bare.interval()) == pytest.approx((told.value, *told.interval()), rel=1e-9)
        assert bare.influence is None or bare.influence.batches is None
        assert not any("data-error" in flag for flag in bare.flags)
        assert bare.matvecs <= told.matvecs
    # A chain of the sweep takes a product more to say what each batch does to it.
    assert asked == [True, False]


def test_a_data_error_is_wanted_or_not() -> None:
    with pytest.raises(TypeError, match=r"data_error must be True or False; got 'no'\. False leaves it out\."):
        MeasureSettings(data_error="no")  # type: ignore[arg-type]


def test_eigenvalues_come_first_and_progress_is_told() -> None:
    events: list[Progress] = []
    how = MeasureSettings(n_probes=10, engine="double_backward")
    results = measure_all(["trace", "lambda-max"], nets.mlp((16, 16)).risk(), how, events.append)
    assert [result.measure for result in results] == ["lambda-max", "trace"]
    assert {"eigenvalues", "trace"} <= {event.stage for event in events}
    last = {event.stage: event for event in events}
    assert last["trace"].value is not None


def test_the_function_takes_names_and_settings() -> None:
    risk = nets.mlp((16, 16)).risk()
    estimate = hp.measure("lambda-max", risk, engine="double_backward")
    assert estimate.value == pytest.approx(float(torch.linalg.eigvalsh(nets.full_hessian(risk)).max()), rel=1e-6)
    with pytest.raises(ValueError, match="Did you mean 'lambda-max'"):
        hp.measure("lamda-max", risk)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": 0.0}, "rtol must be"),
        ({"rtol": math.nan}, "rtol must be"),
        ({"n_probes": 1}, "n_probes must be an integer >= 2"),
        ({"k": 0}, "k must be"),
        ({"operator": "hesian"}, "Did you mean 'hessian'"),
        ({"shift": -1.0}, "shift must be"),
        ({"confidence": 1.0}, "confidence must be"),
        ({"k": 10_000}, "k must be at most the number of parameters, 59; got 10000"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hp.measure("trace", nets.mlp((4, 4)).risk(), **settings)


def test_scaling_the_loss_scales_the_measures() -> None:
    case = nets.mlp((16, 16))
    risk = case.risk()
    small = EmpiricalRisk(case.module, lambda outputs, targets: 1e-5 * case.loss(outputs, targets), case.data)
    for name in ("lambda-max", "lambda-min", "trace", "frob"):
        settings: dict[str, object] = {"engine": "double_backward", "seed": 3}
        if name in ("trace", "frob"):
            settings["n_probes"] = 12
        whole, part = hp.measure(name, risk, **settings), hp.measure(name, small, **settings)
        assert part.value == pytest.approx(1e-5 * whole.value, rel=1e-9)
        assert part.errors.probe == pytest.approx(1e-5 * whole.errors.probe, rel=1e-6)


def test_a_measure_that_is_not_named_is_refused() -> None:
    with pytest.raises(ValueError, match=r"measure must name something; got \[\]"):
        hp.measure([], nets.attention().risk())
