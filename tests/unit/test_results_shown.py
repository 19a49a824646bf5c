"""Results as people meet them: printed, formatted, as plain data, as a table of a notebook, as a figure."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import nets
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import nn

import hessprobe as hp
from hessprobe import display
from hessprobe.errors import RecordError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.measures.context import Result
from hessprobe.progress import progress_bars
from hessprobe.records.record import SCHEMA, build_record, result_row, write_record


@cache
def _risk() -> hp.EmpiricalRisk:
    return nets.mlp().risk()


@cache
def _other() -> hp.EmpiricalRisk:
    case = nets.mlp()
    with torch.no_grad():
        for parameter in case.module.parameters():
            parameter.mul_(1.5)
    return case.risk()


@cache
def _hessian() -> hp.Hessian:
    return hp.Hessian(_risk(), engine="double_backward")


@cache
def _tracker() -> hp.SharpnessTracker:
    case = nets.mlp()
    tracker = hp.SharpnessTracker(case.module, case.loss, case.data, measures=["trace"])
    tracker.step(1)
    tracker.step(2)
    return tracker


SAMPLED = Estimate(
    2.0, ErrorParts(probe=0.25, data=0.5, solver=0.0), df=7, matvecs=12, samples=8, method="hutchinson", flags=("few",)
)
BRACKET = Estimate(
    2.0, ErrorParts(solver=0.5), kind="bracket", bracket=(2.0, 2.5), bracket_confidence=0.9, matvecs=5, method="lanczos"
)


def test_an_estimate_is_a_number() -> None:
    assert float(SAMPLED) == 2.0
    assert f"{SAMPLED:.3f}|{SAMPLED:8.1e}" == "2.000| 2.0e+00"
    assert f"{SAMPLED}" == str(SAMPLED)
    np.testing.assert_array_equal(np.array([SAMPLED, BRACKET], dtype=float), [2.0, 2.0])
    assert math.isclose(float(torch.tensor(float(SAMPLED))), 2.0)


def test_an_estimate_is_printed_in_one_line() -> None:
    assert str(SAMPLED) == "2 (95% interval 1.40884 to 2.59116, 12 products, hutchinson) [few]"
    assert str(BRACKET) == "2 (90% interval 2 to 2.5, 5 products, lanczos)"
    assert str(Estimate(3.0, kind="exact", matvecs=4, method="exact")) == "3 (exact, 4 products, exact)"
    rounded = Estimate(3.0, ErrorParts(solver=0.1), kind="exact", method="exact")
    assert str(rounded) == "3 (95% interval 2.9 to 3.1, 0 products, exact)"
    assert str(Estimate(3.0, ErrorParts(solver=0.1), kind="lower bound")) == "3 (lower bound, 0 products)"
    assert repr(SAMPLED) == (
        "Estimate(2, std_error=0.25, 95% interval 1.40884 to 2.59116, matvecs=12, method='hutchinson', "
        "kind='estimate', flags=('few',))"
    )
    assert "\n" not in repr(BRACKET)


def test_an_estimate_as_plain_data() -> None:
    estimate = SAMPLED.with_(
        df=math.inf,
        details={"layers": {"w": Estimate(1.0)}, "arrays": {"a": torch.tensor([1.0, math.nan])}, "n": np.float32(2)},
    )
    plain = estimate.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["value"], plain["std_error"], plain["df"], plain["matvecs"]) == (2.0, 0.25, None, 12)
    assert plain["interval"] == pytest.approx(estimate.interval())
    assert estimate.to_dict(0.5)["interval"] == pytest.approx(estimate.interval(0.5))
    assert plain["errors"]["data"] == 0.5
    assert plain["details"]["arrays"] == {"a": [1.0, None]}
    assert plain["details"]["layers"]["w"]["value"] == 1.0
    assert BRACKET.to_dict()["confidence"] == 0.9
    with pytest.raises(ValueError, match="confidence must be at most"):
        BRACKET.to_dict(0.95)


def test_tables_are_escaped() -> None:
    table = display.html_table([("<b>", 1), ("&", "x")], header=("a<", "b"), caption="<i>")
    assert table == (
        "<table>\n<caption>&lt;i&gt;</caption>\n<tr><th>a&lt;</th><th>b</th></tr>\n"
        "<tr><td>&lt;b&gt;</td><td>1</td></tr>\n<tr><td>&amp;</td><td>x</td></tr>\n</table>"
    )
    assert "<tr><th>k</th><td>v</td></tr>" in display.html_table([("k", "v")])


@cache
def _results() -> dict[str, Any]:
    return {
        "Estimate": hp.measure("lambda-max", _risk(), per_layer=True, k=2),
        "Eigenpairs": hp.eigsh(_hessian(), k=2),
        "Density": hp.spectral_density(_hessian()),
        "Landscape": hp.landscape(_risk(), size=3),
        "Comparison": hp.compare({"a": _risk(), "b": _other()}, n_probes=8, measures=["trace", "lambda-max"]),
        "SharpnessTracker": _tracker(),
    }


RESULTS = ("Estimate", "Eigenpairs", "Density", "Landscape", "Comparison", "SharpnessTracker")


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_shows_itself(name: str) -> None:
    result = _results()[name]
    assert repr(result).startswith(f"{name}(")
    assert "\n" not in repr(result)
    plain = result.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert result._repr_html_().startswith("<table>")
    found = result.plot()
    panels = found if isinstance(found, np.ndarray) else [found]
    assert all(isinstance(panel, Axes) for panel in panels)
    assert len(panels) == len(found.figure.axes)
    # A notebook shows what pyplot does not know.
    assert found._repr_png_().startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_what_the_results_say() -> None:
    results = _results()
    values = torch.linalg.eigvalsh(nets.full_hessian(_risk()))
    pairs = results["Eigenpairs"]
    assert pairs.to_dict()["values"] == pytest.approx(pairs.values.tolist())
    assert f"<td>{float(values[-1]):.6g}</td>" in pairs._repr_html_()
    assert results["Density"].to_dict()["dim"] == 59
    assert np.asarray(results["Landscape"].to_dict()["values"]["loss"]).shape == (3, 3)
    line = results["Comparison"].lines[0]
    shown = results["Comparison"].to_dict()
    assert shown["differences"][0]["value"] == pytest.approx(line.difference.estimate.value)
    assert shown["values"]["b"]["trace"]["value"] == pytest.approx(float(results["Comparison"].values["b"]["trace"]))
    assert line.verdict in results["Comparison"]._repr_html_()
    assert [point["step"] for point in _tracker().to_dict()["points"]] == [1, 2]


def test_a_record_is_drawn_in_one_line(tmp_path: Path) -> None:
    found = hp.measure("trace", _risk(), per_layer=True, n_probes=4)
    rows = [result_row(Result(found, layers=found.layers, measure="trace", operator="hessian"), 0.95)]
    record = build_record("measure", rows, arguments={"ckpt": "a.pt"}, seed=0)
    axes = hp.plot(record, "layers", width=3.25)
    assert axes.figure.get_figwidth() == pytest.approx(3.25)
    # The bars are the layers of the record.
    widths = sorted(bar.get_width() for bar in axes.patches if bar.get_height() < 1)
    values = sorted(float(layer.value) for layer in found.layers.values())
    assert widths == pytest.approx(values)
    write_record(tmp_path / "a.json", record)
    assert hp.plot(tmp_path / "a.json", style="dark").figure.get_facecolor()[:3] != axes.figure.get_facecolor()[:3]
    with pytest.raises(ValueError, match=r"which must be a figure of what is drawn \(layers-hessian\); got 'gap'"):
        hp.plot(record, "gap")
    with pytest.raises(ValueError, match="result must hold something to draw"):
        hp.plot([record, record])
    with pytest.raises(TypeError, match="result must be one that can be drawn; got int"):
        hp.plot(3)


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ValueError, match=r"this one is a single number. Measure with per_layer=True"):
        hp.trace(_hessian(), method="exact").plot()
    with pytest.raises(ValueError, match=r"that this estimate has \(eigenvalues, layers\); got 'density'"):
        _results()["Estimate"].plot("density")
    with pytest.raises(ValueError, match="pairs must be two or more"):
        hp.eigsh(_hessian(), 1, "largest").plot()
    case = nets.mlp()
    with pytest.raises(ValueError, match="a track must hold a point"):
        hp.SharpnessTracker(case.module, case.loss, case.data).plot()
    with pytest.raises(TypeError, match="result must be one that can be drawn; got int"):
        display.draw(3)


def test_layers_come_with_the_measure() -> None:
    H = nets.full_hessian(_risk())
    for name, truth in (
        ("lambda-max", lambda B: float(torch.linalg.eigvalsh(B)[-1])),
        ("trace", lambda B: float(B.trace())),
    ):
        found = hp.measure(name, _risk(), per_layer=True)
        assert list(found.layers) == list(_risk().layout.names)
        for layer, where in _risk().layout.slices.items():
            low, high = found.layers[layer].interval(0.99)
            slack = 1e-6 * float(H.norm())
            assert low - slack <= truth(H[where, where]) <= high + slack
    assert hp.measure("trace", _risk()).layers == {}
    assert found.details["measure"] == "trace"
    assert found.details["operator"] == "hessian"


def test_several_measures_share_their_products() -> None:
    names = ["trace", "lambda-max", "effective-rank", "frob"]
    together = hp.measure(names, _risk())
    assert list(together) == names
    for name in names:
        assert together[name].value == pytest.approx(hp.measure(name, _risk()).value, rel=0.05)
    # The rank is made of the trace and the norm, for no product of its own.
    shared = together["trace"].matvecs + together["frob"].matvecs
    assert together["effective-rank"].matvecs <= shared
    with pytest.raises(ValueError, match="measure must be one of"):
        hp.measure(["trace", "tracee"], _risk())
    with pytest.raises(TypeError, match=r"measure has no argument 'progres'\. Did you mean 'progress'"):
        hp.measure("trace", _risk(), progres=True)


def test_the_largest_eigenvalue_alone() -> None:
    truth = float(torch.linalg.eigvalsh(nets.full_hessian(_risk()))[-1])
    found = hp.lambda_max(_hessian(), rtol=0.05, seed=3)
    assert found.kind in ("bracket", "exact")
    low, high = found.interval(0.99)
    assert low - 1e-12 <= truth <= high
    assert found.value == hp.eigsh(_hessian(), 1, "largest", rtol=0.05, seed=3).estimate(0).value


def test_comparisons_take_what_there_is(tmp_path: Any) -> None:
    found = hp.compare([_risk(), _other()], n_probes=8, measures=["trace"], baseline="1")
    assert (list(found.values), found.baseline, [line.label for line in found.lines]) == (["0", "1"], "1", ["0"])
    assert found.lines[0].difference.estimate.value == pytest.approx(
        found.values["0"]["trace"].value - found.values["1"]["trace"].value, rel=0.5
    )
    for wrong, kind, message in (
        ([_risk()], ValueError, "risks must be two or more; got 1"),
        (_risk(), TypeError, "risks must be a list or a dict of risks; got EmpiricalRisk"),
        ([_risk(), nn.Linear(1, 1)], TypeError, "got Linear for '1'"),
    ):
        with pytest.raises(kind, match=message):
            hp.compare(wrong, n_probes=8)
    with pytest.raises(ValueError, match="baseline must be one of a, b; got 'c'"):
        hp.compare({"a": _risk(), "b": _other()}, baseline="c")


def test_landscapes_by_hand() -> None:
    found = hp.landscape(_risk(), directions="gradient", size=5, span=0.2, maps=["error"], seed=1, rho=0.1)
    assert set(found.values) == {"loss", "error"}
    assert float(found.values["loss"][found.center]) == pytest.approx(float(_risk().loss()))
    line = hp.landscape(_risk(), [_other()], directions="line", size=3, names=["one", "two"])
    assert [mark[0] for mark in line.marks] == ["one", "two"]
    assert any("true loss" in note for note in line.notes)
    with pytest.raises(TypeError, match=r"landscape has no argument 'normalisation'\. Did you mean 'normalization'"):
        hp.landscape(_risk(), normalisation="filter")
    with pytest.raises(ValueError, match="directions must be one of random"):
        hp.landscape(_risk(), directions="any")
    with pytest.raises(ValueError, match="names must be one for each of 1 checkpoints; got 2"):
        hp.landscape(_risk(), names=["a", "b"])
    with pytest.raises(TypeError, match="risk must be an objective"):
        hp.landscape(_hessian())


def test_progress_is_drawn_where_it_is_asked_for(capsys: Any, monkeypatch: Any) -> None:
    hp.measure("trace", _risk(), progress="auto")
    hp.measure("trace", _risk(), progress=False)
    assert capsys.readouterr().err == ""
    for work in (
        lambda: hp.measure("lambda-max", _risk(), progress=True),
        lambda: hp.landscape(_risk(), size=3, progress=True),
        lambda: hp.compare([_risk(), _other()], n_probes=8, measures=["trace"], progress=True),
    ):
        seen: list[str] = []
        monkeypatch.setattr("rich.progress.Progress.add_task", _noting(seen))
        work()
        assert seen
    with pytest.raises(ValueError, match="progress must be one of auto; got 'always'"), progress_bars("always"):  # type: ignore[arg-type]
        pass


def _noting(seen: list[str]) -> Any:
    from rich.progress import Progress

    made = Progress.add_task

    def add_task(self: Any, description: str, **more: Any) -> Any:
        seen.append(description)
        return made(self, description, **more)

    return add_task


def test_auto_draws_in_a_notebook(monkeypatch: Any) -> None:
    from hessprobe import progress

    assert not progress._watched()
    notebook = ModuleType("IPython")
    shell = type("ZMQInteractiveShell", (), {})
    notebook.get_ipython = shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert progress._watched()
    notebook.get_ipython = lambda: None  # type: ignore[attr-defined]
    assert not progress._watched()


def test_names_are_reachable_from_the_package() -> None:
    code = (
        "import sys, hessprobe as hp\n"
        "assert issubclass(hp.HessprobeError, Exception) and 'torch' not in sys.modules\n"
        "assert callable(hp.landscape) and 'torch' not in sys.modules\n"
        "assert hp.optim.SAM.__name__ == 'SAM'\n"
        "import hessprobe.landscape.grid, hessprobe.hvp.engines\n"
        "assert callable(hp.landscape) and callable(hp.hvp)\n"
        "assert callable(hp.compare) and callable(hp.eigsh) and callable(hp.lambda_max)\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert next(iter(inspect.signature(hp.landscape).parameters)) == "risk"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({}, "result is not a hessprobe record"),
        ([1, 2], r"result\[0\] is not a hessprobe record"),
        ([{"schema": SCHEMA}], r"result\[0\] lacks the entry"),
    ],
)
def test_what_is_no_record_is_not_drawn(result: object, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        hp.plot(result)
