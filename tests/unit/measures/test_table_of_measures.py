"""The table of measures: what an entry may say, and that one entry is all that a new measure takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import measures_added
import nets
import pytest
import torch
from stats import assert_agrees

import hessprobe as hp
from hessprobe.comparison.names import direction, grows_with_size, moved_by_rescaling
from hessprobe.invariance import MEASURES as CHECKED
from hessprobe.invariance.verdict import expected
from hessprobe.measures import (
    NAMES,
    TABLE,
    UNIVERSAL,
    Entry,
    MeasureSettings,
    Result,
    measure_all,
    register,
    taking,
    unregister,
)
from hessprobe.measures.table import NEEDS, OPTIONS, entry_of, function_of
from hessprobe.objective import Quadratic
from hessprobe.objective.preconditioner import Preconditioner
from hessprobe.tracking import measure_point
from hessprobe.tracking.names import TRACKED

ENTRY = measures_added.ENTRY
EXACT = {"n_probes": 64, "engine": "double_backward"}


def _risk(sizes: tuple[int, ...]) -> hp.EmpiricalRisk:
    """A network with the preconditioner of an optimizer that is not there."""
    risk = nets.mlp(sizes).risk()
    risk.preconditioner = Preconditioner(torch.linspace(0.5, 2.0, risk.dim, dtype=torch.float64))
    return risk


@pytest.fixture
def added() -> Iterator[Entry]:
    register(ENTRY)
    yield ENTRY
    unregister(ENTRY.name)


def test_the_table_is_read_without_torch_and_every_function_is_there() -> None:
    code = "import sys, hessprobe.measures as m; assert m.NAMES and m.UNIVERSAL; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(callable(function_of(entry)) for entry in TABLE.values())
    assert set(TABLE) == {*NAMES, *UNIVERSAL}
    assert not set(NAMES) & set(UNIVERSAL)
    for entry in TABLE.values():
        assert entry.unit
        assert entry.meaning
        assert entry.reference
        assert entry.needs
    assert {need for entry in TABLE.values() for need in entry.needs} == set(NEEDS)
    assert all(taking(option) for option in OPTIONS)


def test_what_has_layers_says_how_they_add_up() -> None:
    risk = _risk((5,))
    for name, entry in NAMES.items():
        found = hp.measure(name, risk, per_layer=True, **EXACT)
        assert bool(found.layers) == (entry.layers is not None), name
        if entry.layers is None:
            continue
        values = [float(layer) for layer in found.layers.values()]
        if entry.layers.adding == "apart":
            assert max(values) <= float(found) * 1.001, name
        else:
            # Shares are sampled, each with its own error.
            whole, near = (1.0, 0.1) if entry.layers.adding == "shares" else (float(found), 1e-9)
            assert sum(values) == pytest.approx(whole, rel=near), name


def test_a_setting_changes_the_numbers_of_the_measures_that_say_so() -> None:
    risk = _risk((16, 16))
    plain = {"n_probes": 8, "engine": "double_backward", "seed": 0}
    changed = {"n_probes": 12, "shift": 0.3}
    names = [name for name in NAMES if name != "density"]
    found = {name: float(hp.measure(name, risk, **plain)) for name in names}
    for option, value in changed.items():
        for name in names:
            other = float(hp.measure(name, risk, **{**plain, option: value}))
            # The sweep takes all of a matrix as small as this one, whatever the number of probes.
            sampled = option == "shift" or "sweep" not in NAMES[name].needs
            assert (other != found[name]) == (option in NAMES[name].options and sampled), (name, option)


def test_one_entry_is_all_that_a_measure_takes(added: Entry) -> None:
    risk = nets.mlp((5,)).risk()
    name = added.name
    found = hp.measure(name, risk, **EXACT)
    assert_agrees(found, float(hp.Hessian(risk).to_dense().trace()) / risk.dim, 0.1)
    assert found.details["unit"] == "curvature per parameter"
    assert found.matvecs == hp.measure("trace", risk, **EXACT).matvecs
    both = hp.measure(["trace", name], risk, **EXACT)
    assert float(both["trace"]) == pytest.approx(risk.dim * float(both[name]))
    assert name in NAMES
    assert name in CHECKED
    assert name in TRACKED
    other = nets.mlp((5,)).risk()
    compared = hp.compare({"a": risk, "b": other}, measures=[name], n_probes=64)
    assert [line.verdict for line in compared.lines] == ["within error"]
    point, _ = measure_point(risk, MeasureSettings(**EXACT), [name], step=1)
    assert point.values[name] == pytest.approx(float(found))
    assert (direction(name, 1.0), grows_with_size(name), moved_by_rescaling(name)) == ("sharper", False, True)
    with pytest.raises(
        ValueError, match=r"measure must be one of .*pseudo-logdet, mean-curvature, universal:.*Did you"
    ):
        hp.measure("mean-curvatur", risk)


def test_a_measure_that_is_taken_out_is_unknown_again(added: Entry) -> None:
    unregister(added.name)
    assert added.name not in TABLE
    with pytest.raises(ValueError, match="must be one of"):
        hp.measure(added.name, nets.mlp((5,)).risk())
    bare = entry_of(added.name)
    assert (bare.words, bare.symbol, bare.meaning) == (added.name, added.name, "")
    register(added)


def test_products_of_ones_own_are_counted_along_a_run() -> None:
    def norm_of_a_product(context: hp.measures.Context) -> hp.Estimate:
        v = torch.ones(context.A.dim, dtype=context.A.dtype)
        return hp.Estimate(float((context.A @ v).norm()), kind="exact", matvecs=1.0)

    risk = nets.mlp((5,)).risk()
    settings = MeasureSettings(**EXACT)
    register(Entry("ones", norm_of_a_product, "curvature", "length of H 1"))
    try:
        with_it, _ = measure_point(risk, settings, ["ones"], step=1)
    finally:
        unregister("ones")
    without, _ = measure_point(risk, settings, [], step=1)
    assert with_it.matvecs == without.matvecs + 1


def test_products_of_adaptive_measures_are_counted_once_along_a_run() -> None:
    risk, settings = nets.mlp((5,)).risk(), MeasureSettings(**EXACT, k=3)
    without, _ = measure_point(risk, settings, [], step=1)
    alone = {name: hp.measure(name, risk, **EXACT).matvecs for name in ("adaptive-trace", "adaptive-lambda-max")}
    point, _ = measure_point(risk, settings, list(alone), step=1)
    assert point.matvecs == without.matvecs + sum(alone.values())
    # One eigenvalue of the adaptive matrix, however many of H are wanted.
    found = {result.measure: result for result in point.results}
    assert len(found["lambda-max"].arrays["eigenvalues"]) == 3
    assert len(found["adaptive-lambda-max"].arrays["eigenvalues"]) == 1


def test_stages_say_which_matrix_they_are_about() -> None:
    stages: list[str] = []
    names, settings = ["adaptive-lambda-max", "lambda-max"], MeasureSettings(**EXACT)
    list(measure_all(names, nets.mlp((5,)).risk(), settings, lambda event: stages.append(event.stage)))
    assert set(stages) == {"adaptive eigenvalues", "eigenvalues"}


def test_arrays_and_notes_come_with_an_answer() -> None:
    def answered(context: hp.measures.Context) -> Result:
        return Result(hp.Estimate(2.0, kind="exact"), arrays={"of": torch.ones(2)}, notes=("said",))

    register(Entry("answered", answered, "1", "two"))
    try:
        found = hp.measure("answered", nets.mlp((5,)).risk())
    finally:
        unregister("answered")
    assert (float(found), found.details["notes"], list(found.details["arrays"])) == (2.0, ("said",), ["of"])


def test_what_a_function_returns_has_an_error() -> None:
    register(Entry("bare", lambda context: 1.0, "1", "a number alone"))
    try:
        with pytest.raises(TypeError, match="the function of 'bare' must return an Estimate or a Result; got float"):
            hp.measure("bare", nets.mlp((5,)).risk())
    finally:
        unregister("bare")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"name": "trace"}, ValueError, "no measure has yet; got 'trace'. Choose another."),
        ({"name": "universal:mine"}, ValueError, "name must be lower-case words joined by hyphens"),
        ({"name": "Mean Curvature"}, ValueError, "got 'Mean Curvature'"),
        ({"function": 3}, TypeError, "function must be a function of a context; got 3"),
        ({"function": "nowhere"}, TypeError, "'package.module:function'"),
        ({"unit": ""}, ValueError, "unit must be a text; got ''"),
        ({"meaning": None}, ValueError, "meaning must be a text; got None"),
    ],
)
def test_an_entry_that_cannot_stand_in_the_table_is_refused(changes, kind, message) -> None:
    before = list(TABLE)
    with pytest.raises(kind) as refused:
        register(replace(ENTRY, **changes))
    assert message in str(refused.value)
    assert list(TABLE) == before


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"needs": ("trac",)}, ValueError, "Did you mean 'trace'"),
        ({"needs": "trace"}, TypeError, r"Write \('trace',\)"),
        ({"options": ("probes",)}, ValueError, "options must be one of rtol, n_probes,"),
        ({"drawn": ("pie",)}, ValueError, "drawn must be one of bar,"),
        ({"invariances": ("scaling",)}, ValueError, "invariances must be one of permutation, rescaling"),
    ],
)
def test_words_that_no_entry_has_are_refused(changes, kind, message) -> None:
    with pytest.raises(kind, match=message):
        replace(ENTRY, **changes)


def test_a_name_is_taken_once_or_replaced_on_request(added: Entry) -> None:
    with pytest.raises(ValueError, match="Choose another, or pass replace=True"):
        register(added)
    register(replace(added, unit="other"), replace=True)
    assert NAMES[added.name].unit == "other"
    with pytest.raises(ValueError, match="got 'trace'"):
        register(replace(added, name="trace"), replace=True)
    with pytest.raises(ValueError, match=r"registered measure \(mean-curvature\); got 'trace'"):
        unregister("trace")
    with pytest.raises(TypeError, match="entry must be an Entry; got function"):
        register(measures_added.mean_curvature)


def test_theory_says_nothing_of_a_measure_whose_entry_does_not(added: Entry) -> None:
    D, value = torch.tensor([2.0, 0.5], dtype=torch.float64), hp.Estimate(1.0)
    ones = torch.ones(2, dtype=torch.float64)
    assert expected(added.name, "permutation", ones, value).invariant is True
    assert expected(added.name, "layer-rescaling", D, value).invariant is False
    register(replace(added, invariances=()), replace=True)
    assert expected(added.name, "permutation", ones, value).invariant is None
    assert expected(added.name, "layer-rescaling", D, value).invariant is None
    register(replace(added, invariances=("permutation", "rescaling")), replace=True)
    found = expected(added.name, "layer-rescaling", D, value)
    assert (found.invariant, found.reason) == (True, "its entry says that no rescaling moves it")


def _measured(matrix: torch.Tensor, theta: torch.Tensor) -> dict[str, float]:
    """Return every measure of a quadratic with this Hessian at ``theta``, up to rounding."""
    how = {"rtol": 1e-6, "engine": "double_backward", "shift": 0.1, "data_error": False}
    quadratic = Quadratic(matrix, theta=theta)
    # The root of a mean squared gradient is divided by what its parameter is multiplied by, and so is P.
    quadratic.preconditioner = Preconditioner(theta.sqrt())
    found = hp.measure(list(NAMES), quadratic, **how)
    return {name: float(estimate) for name, estimate in found.items()}


def test_what_an_entry_says_of_transforms_and_of_size_holds_for_a_matrix() -> None:
    draws = torch.Generator().manual_seed(0)
    N = torch.randn(6, 6, generator=draws, dtype=torch.float64)
    theta = torch.rand(6, generator=draws, dtype=torch.float64) + 0.5
    H, order = N + N.T, torch.randperm(6, generator=draws)
    D = torch.tensor([2.0, 0.5, 4.0, 0.25, 3.0, 1 / 3], dtype=torch.float64)
    before = _measured(H, theta)
    transformed = {
        "permutation": _measured(H[order][:, order], theta[order]),
        "rescaling": _measured(H / D[:, None] / D, theta * D),
    }
    # The quadratic of two copies of the network.
    twice = _measured(torch.block_diag(H, H), theta.repeat(2))
    for name, entry in NAMES.items():
        for kind, after in transformed.items():
            stays = after[name] == pytest.approx(before[name], rel=1e-5)
            # Volume is preserved here, det D = 1; a pseudo-determinant that is none follows it.
            assert stays == (kind in entry.invariances or (kind, name) == ("rescaling", "pseudo-logdet")), (name, kind)
        grown = abs(twice[name]) > 1.1 * abs(before[name])
        assert grown == entry.extensive, name


def test_eigenvalues_come_first_and_the_rest_in_the_order_asked_for() -> None:
    names = ["frob", "trace", "spectral-norm", "effective-rank", "lambda-max"]
    found = [result.measure for result in measure_all(names, nets.mlp((5,)).risk(), MeasureSettings(**EXACT))]
    assert found == ["lambda-max", "spectral-norm", "frob", "trace", "effective-rank"]
