from __future__ import annotations

import contextvars
import io
import json
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hessprobe import report
from hessprobe.errors import RecordError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.records import record as module


@dataclass(frozen=True)
class Outcome:
    estimate: Estimate
    measure: str = "trace"
    operator: str = "hessian"
    unit: str = "loss"
    layers: dict | None = None
    arrays: dict = field(default_factory=dict)
    notes: tuple = ()
    engine: str = "double_backward"


ESTIMATE = Estimate(
    2.0, ErrorParts(0.1, 0.3, 0.01), df=9, matvecs=10, samples=10, method="hutchinson", flags=("weak",), seconds=0.5
)


def a_record(*outcomes, **parts):
    rows = [report.result_row(each, 0.9) for each in outcomes or [Outcome(ESTIMATE)]]
    return report.build_record("measure", rows, arguments={"rtol": 0.01}, seed=3, **parts)


def test_row_carries_value_interval_cost_and_the_three_errors():
    row = report.result_row(Outcome(ESTIMATE, layers={"w": ESTIMATE.scaled(0.5)}), 0.9)
    assert row["interval"] == list(ESTIMATE.interval(0.9))
    assert row["errors"] == {"probe": 0.1, "data": 0.3, "solver": 0.01, "data_df": None}
    assert (row["value"], row["std_error"], row["confidence"], row["matvecs"]) == (2.0, 0.1, 0.9, 10)
    assert (row["method"], row["kind"], row["flags"], row["seconds"]) == ("hutchinson", "estimate", ["weak"], 0.5)
    assert row["layers"]["w"]["value"] == 1.0


def test_round_trip_through_a_file(tmp_path):
    record = a_record(checkpoint={"path": "a.pt", "sha256": "ab"}, flags=[], errors=None)
    report.write_record(tmp_path / "r.json", record)
    assert report.read_record(tmp_path / "r.json") == record
    assert list(tmp_path.iterdir()) == [tmp_path / "r.json"]
    assert "errors" not in record
    assert record["schema"] == "hessprobe.record/1"
    assert record["seed"] == 3
    assert record["environment"]["torch"] == str(torch.__version__)
    assert {"python", "numpy", "scipy", "hessprobe", "device", "threads", "platform"} <= set(record["environment"])


def test_numbers_that_are_not_finite_become_null_and_a_flag():
    strange = Estimate(math.nan, ErrorParts(0.1), df=0, matvecs=1, flags=("weak",))
    arrays = {"grid": torch.tensor([1.0, math.inf, math.nan])}
    row = report.result_row(Outcome(strange, arrays=arrays, layers={"w": Estimate(math.inf)}))
    assert row["value"] is None
    assert row["arrays"]["grid"]["values"] == [1.0, None, None]
    assert row["flags"] == [
        "weak",
        "non-finite:value=nan",
        "non-finite:interval[0]=nan",
        "non-finite:interval[1]=nan",
        "non-finite:layers.w.value=inf",
        "non-finite:layers.w.interval[0]=inf",
        "non-finite:layers.w.interval[1]=inf",
        "non-finite:arrays.grid=2 entries",
    ]
    text = report.to_json(a_record(Outcome(strange, arrays=arrays), data={"loss": math.nan}))
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed["data"]["loss"] is None


def test_arrays_and_foreign_numbers_are_plain(monkeypatch):
    row = report.result_row(Outcome(ESTIMATE, arrays={"x": torch.ones(2, 3)}))
    assert row["arrays"]["x"] == {"shape": [2, 3], "dtype": "float32", "values": [[1.0] * 3] * 2}
    monkeypatch.setattr(module, "ARRAY_LIMIT", 5)
    assert report.result_row(Outcome(ESTIMATE, arrays={"x": torch.ones(6)}))["arrays"]["x"]["values"] is None
    record = a_record(data={"a": np.float32(0.5), "b": torch.tensor(2), "c": np.int64(3), "d": torch.float64})
    assert record["data"] == {"a": 0.5, "b": 2, "c": 3, "d": "torch.float64"}


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_content_gives_json_that_reads_back(content):
    record = report.build_record("info", [], arguments={"content": content}, seed=None)
    assert json.loads(report.to_json(record), parse_constant=pytest.fail) == record


def test_csv_has_a_line_a_result_and_a_layer(tmp_path):
    told = ESTIMATE.with_(errors=replace(ESTIMATE.errors, data=0.25))
    record = a_record(Outcome(told, layers={"w": told.scaled(0.5)}), Outcome(ESTIMATE, measure="frob"))
    report.write_csv(tmp_path / "r.csv", record)
    table = pd.read_csv(io.BytesIO((tmp_path / "r.csv").read_bytes()), keep_default_na=False)
    assert list(table["measure"]) == ["trace", "trace", "frob"]
    assert list(table["layer"]) == ["", "w", ""]
    assert list(table["value"]) == [2.0, 1.0, 2.0]
    assert next(zip(table["low"], table["high"], strict=True)) == pytest.approx(ESTIMATE.interval(0.9))
    assert list(table["data_std_error"]) == [0.25, 0.125, 0.3]
    assert list(table["flags"]) == ["weak"] * 3


def test_what_is_not_a_record_is_refused(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(RecordError, match=r"r\.json cannot be read: No such file or directory"):
        report.read_record(path)
    good = a_record()
    cases = [
        (report.to_json(good)[:-40], r"is truncated or not JSON"),
        ("[1]", r"is not a hessprobe record \(schema None\)"),
        (json.dumps({**good, "schema": "other/1"}), r"is not a hessprobe record \(schema 'other/1'\)"),
        (json.dumps({**good, "schema": "hessprobe.record/2"}), r"has schema 'hessprobe\.record/2', but this .* up to"),
        (json.dumps({key: value for key, value in good.items() if key != "environment"}), r"lacks .* 'environment'"),
        (json.dumps({**good, "results": {}}), r"has dict as 'results'"),
        (json.dumps({**good, "results": [3]}), r"results\[0\], is not an object"),
        (json.dumps({**good, "results": [{**good["results"][0], "value": "2"}]}), r"results\[0\], has str as 'value'"),
    ]
    for text, message in cases:
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            report.read_record(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"is not a record, which is JSON text"):
        report.read_record(path)


def test_a_record_tells_the_most_memory_that_the_process_has_held():
    found = report.build_record("measure", [], arguments={}, seed=0)["peak_memory"]["process"]
    status = Path("/proc/self/status").read_text()
    told = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    assert abs(found - told) <= 0.1 * told


@pytest.mark.skipif(sys.platform != "linux", reason="what is held now is read from /proc")
def test_a_record_tells_what_a_measurement_has_held_beside_what_was_there():
    def told():
        return report.build_record("measure", [], arguments={}, seed=0)["peak_memory"]

    def run():
        assert "above_start" not in told()
        module.begin_memory()
        most = told()["process"]
        # More than the process has ever held, so that the peak is one of these numbers.
        held = torch.ones(most // 4 + (50 << 20) // 4)
        del held
        assert 50 << 20 <= told()["above_start"] <= told()["process"]

    contextvars.Context().run(run)
