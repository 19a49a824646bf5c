from __future__ import annotations

import math
from dataclasses import replace

import nets
import pytest
import torch

from hessprobe.comparison import compare_values, kendall, measure_each, rescaling_of
from hessprobe.comparison.differences import p_value
from hessprobe.errors import UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate, Influence
from hessprobe.measures import Entry, MeasureSettings, register, registry, unregister


def estimate(value, shift=0.0, spread=1.0):
    """Return an estimate of 16 samples of the same probes, with its own part of the spread."""
    shared = torch.linspace(-1, 1, 16, dtype=torch.float64)
    own = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)
    rows = (spread * shared + shift * own)[None]
    return Estimate(value, ErrorParts(float(rows.std()) / 4), df=15, influence=Influence({"probe": rows}))


def test_verdicts_rest_on_the_error_of_the_difference():
    values = {
        "a": {"trace": estimate(10.0), "effective-rank": estimate(5.0)},
        "b": {"trace": estimate(10.1, 0.01), "effective-rank": estimate(4.9, 0.01)},
        "c": {"trace": estimate(10.001, 0.01)},
        "d": {"trace": estimate(9.0, 0.1)},
    }
    lines = compare_values(values, "a")
    found = {(line.measure, line.label): line.verdict for line in lines}
    # Each value is known to 0.3 only; the differences to 0.005.
    assert found == {
        ("trace", "b"): "sharper",
        ("trace", "c"): "within error",
        ("trace", "d"): "flatter",
        ("effective-rank", "b"): "lower",
    }
    assert all(line.baseline == "a" for line in lines)
    assert [line.stands for line in lines] == [True, False, True, True]
    other = {(line.measure, line.label): line for line in compare_values(values, "d")}
    assert other["trace", "a"].difference.estimate.value == 1.0


def test_bounds_and_nan_decide_nothing():
    lines = compare_values(
        {
            "a": {"lambda-max": Estimate(1.0, kind="lower bound"), "trace": Estimate(1.0)},
            "b": {"lambda-max": Estimate(3.0), "trace": Estimate(math.nan)},
        },
        "a",
    )
    assert [(line.verdict, line.p, line.decided) for line in lines] == [("undecided", None, False)] * 2


def test_solver_bounds_explain_a_difference_before_chance_does():
    assert p_value(Estimate(1.0, ErrorParts(solver=1.5))) == 1.0
    assert p_value(Estimate(1.0, ErrorParts(solver=0.5))) == 0.0
    # 2.0 standard errors beyond the bound, and t with 10 degrees of freedom: scipy.stats.t.sf(2, 10) * 2.
    assert p_value(Estimate(-2.5, ErrorParts(probe=1.0, solver=0.5), df=10)) == pytest.approx(0.07338803)


def test_holm_steps_down_by_hand():
    def value(z):
        return Estimate(z, ErrorParts(1.0), influence=Influence({"own": torch.zeros(1, 2)}))

    # Independent: the baseline is known exactly. p = 0.0455, 0.0124, 0.0027, 0.0164; limits 0.05 / 4, 3, 2, 1.
    sizes = {"w": 2.0, "x": 2.5, "y": 3.0, "z": 2.4}
    rows = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    values = {"base": {"frob": Estimate(0.0, kind="exact")}}
    for label, z in sizes.items():
        error = float(rows.std()) / math.sqrt(2)
        sample = Influence({"probe": rows.repeat(500, 1) / math.sqrt(500)})
        values[label] = {"frob": Estimate(z * error, ErrorParts(error), influence=sample)}
    lines = {line.label: line for line in compare_values(values, "base")}
    assert {label: line.stands for label, line in lines.items()} == dict.fromkeys("wxyz", True)
    assert lines["x"].p == pytest.approx(0.0127, abs=3e-4)
    values["v"] = {"frob": values["w"]["frob"].with_(value=1.0)}
    lines = {line.label: line for line in compare_values(values, "base")}
    # With a fifth comparison 0.0027 < 0.05 / 5, but 0.0127 > 0.05 / 4: only the first stands.
    assert {label: line.stands for label, line in lines.items()} == {
        "w": False,
        "x": False,
        "y": True,
        "z": False,
        "v": False,
    }
    assert {label: line.verdict for label, line in lines.items() if label != "v"} == dict.fromkeys("wxyz", "sharper")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": {}}, "b"), "baseline must be one of a; got 'b'"),
        (({"a": {}}, "a", 1.5), "confidence must be a number in"),
    ],
)
def test_compare_refuses(arguments, message):
    values, baseline, *rest = arguments
    with pytest.raises(ValueError, match=message):
        compare_values(values, baseline, confidence=rest[0] if rest else 0.95)


def test_measuring_refuses_a_tolerance_and_an_unknown_name():
    with pytest.raises(ValueError, match=r"settings\.n_probes must be given"):
        list(measure_each(None, ["trace"], MeasureSettings()))
    with pytest.raises(ValueError, match="Did you mean 'adaptive-trace'"):
        list(measure_each(None, ["adaptive-trac"], MeasureSettings(n_probes=8)))


def test_a_measure_that_does_not_exist_here_comes_with_its_reason(monkeypatch):
    risk = nets.mlp((6,)).risk()
    monkeypatch.setattr(registry, "DENSE_LIMIT", risk.dim - 1)
    result, missing = measure_each(risk, ["pseudo-logdet", "trace"], MeasureSettings(n_probes=8))
    assert result.measure == "trace"
    assert missing[0] == "pseudo-logdet"
    assert f"of at most {risk.dim - 1} parameters; got {risk.dim}" in str(missing[1])


def test_the_sentence_on_rescaling_names_what_moves_and_what_stays():
    both = rescaling_of({"a": ("layer-rescaling",), "b": ()}, ["trace", "adaptive-trace"])
    assert (both.kinds, both.moved, both.invariant) == (("layer-rescaling",), ("trace",), ("adaptive-trace",))
    assert both.sentence.startswith("trace changes when a network is rescaled without changing what it computes (layer")
    assert both.sentence.endswith("adaptive-trace stays and --measure adaptive-lambda-max or adaptive-frob would stay")
    none = rescaling_of({"a": (), "b": ()}, ["trace"])
    assert none.sentence == "no rescaling was found that keeps these networks' function, so trace compare as is"
    unknown = rescaling_of({"a": None}, ["trace", "frob"])
    assert (unknown.unknown, unknown.kinds) == (("a",), ())
    assert unknown.sentence.startswith("trace, frob change when")
    assert "moves any" in rescaling_of({"a": None}, ["adaptive-frob"]).sentence


def test_kendall_by_hand():
    # Of 10 pairs 8 agree and 2 do not; with a tie in x 8 of 9, normalised by sqrt(9 * 10).
    assert kendall([1, 2, 3, 4, 5], [2, 1, 3, 5, 4]).tau == pytest.approx(0.6)
    assert kendall([1, 1, 3, 4, 5], [1, 2, 3, 4, 5]).tau == pytest.approx(9 / math.sqrt(90))
    flat = kendall([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])
    assert math.isnan(flat.tau)
    assert (flat.interval, flat.decided) == ((-1.0, 1.0), False)
    perfect = kendall(range(6), range(6))
    assert perfect.tau == 1.0
    assert 0.2 < perfect.interval[0] < 0.9
    assert perfect.interval[1] == 1.0
    assert perfect.decided
    mirrored = kendall(range(6), [-i for i in range(6)])
    assert mirrored.interval == pytest.approx((-1.0, -perfect.interval[0]), abs=0.05)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], "at least 5; got 4 and 4"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4], "as many"),
        ([1, 2, 3, 4, math.nan], [1, 2, 3, 4, 5], "finite"),
    ],
)
def test_kendall_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        kendall(x, y)


@pytest.mark.parametrize(("count", "truth"), [(8, 0.5), (8, 0.0), (60, 0.5)])
def test_kendall_intervals_cover(count, truth):
    rho = math.sin(math.pi * truth / 2)
    generator = torch.Generator().manual_seed(5)
    u, v = torch.randn(2, 300, count, generator=generator, dtype=torch.float64)
    y = rho * u + math.sqrt(1 - rho**2) * v
    # Monotone changes leave the ranks.
    found = [kendall(a.exp().tolist(), (b**3).tolist()) for a, b in zip(u, y, strict=True)]
    hits = sum(low <= truth <= high for low, high in (one.interval for one in found)) / len(found)
    assert 0.93 <= hits <= 0.99
    width = sum(one.interval[1] - one.interval[0] for one in found) / len(found)
    assert width < {8: 1.25, 60: 0.35}[count]


def test_only_a_measure_that_says_so_may_be_missing():
    def refusing(context):
        raise UnsupportedError("too odd")

    risk, entry = nets.mlp((6,)).risk(), Entry("odd", refusing, "1", "what is not there")
    try:
        register(entry)
        with pytest.raises(UnsupportedError, match="too odd"):
            list(measure_each(risk, ["odd"], MeasureSettings(n_probes=8)))
        register(replace(entry, needs=("matrix",)), replace=True)
        ((name, error),) = measure_each(risk, ["odd"], MeasureSettings(n_probes=8))
        assert (name, str(error)) == ("odd", "too odd")
    finally:
        unregister("odd")
