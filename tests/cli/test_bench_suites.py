"""``hessprobe bench --suite``: tables and records of optimizer comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hessprobe.benchmarks import family, landscapes, optimizers, vocabulary
from hessprobe.cli.app import app


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_steps_makes_a_table_and_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimizers, "SHAPES", {"3 x (4)": (3, (4,))})
    monkeypatch.setattr(optimizers, "time_network", lambda rounds: [_timing("SGD twice"), _timing("hessprobe")])
    record, table = tmp_path / "steps.json", tmp_path / "steps.md"
    result = run("--suite", "steps", "--rounds", "2", "--json", str(record), "--markdown", str(table))
    assert result.exit_code == 0
    assert "| tensors | SGD | hessprobe | davda54 style |" in table.read_text()
    rows = json.loads(record.read_text())["timings"]
    assert {row["contestant"] for row in rows if row["case"] == "3 x (4)"} >= {"SGD", "hessprobe", "davda54 style"}


def _timing(contestant: str) -> optimizers.StepTiming:
    return optimizers.StepTiming(optimizers.NETWORK, contestant, 10.0, 1.0, 1.0, 1.0, 2)


def test_optimizers_trains_measures_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        family,
        "compare_optimizers",
        lambda names, seeds, jobs, report: [_run(name, seed, report) for name in names for seed in seeds],
    )
    record, table = tmp_path / "o.json", tmp_path / "o.md"
    arguments = ("--optimizer", "sgd", "--optimizer", "sam", "--seeds", "2", "--rounds", "2")
    result = run("--suite", "optimizers", *arguments, "--json", str(record), "--markdown", str(table))
    assert result.exit_code == 0
    lines = table.read_text().splitlines()
    assert any(line.startswith("| sgd | 91.00 ± 0.50 | 2.50 ± 0.50 |") and line.endswith("| 1.00 |") for line in lines)
    rows = json.loads(record.read_text())["timings"]
    assert [(row["optimizer"], row["seed"]) for row in rows] == [("sgd", 0), ("sgd", 1), ("sam", 0), ("sam", 1)]


def _run(name, seed, report) -> family.TrainedOptimizer:
    measures = dict.fromkeys(family.MEASURES, (2.0 + seed, 0.01))
    result = family.TrainedOptimizer(name, seed, 0.905 + 0.01 * seed, 1.0, measures)
    report(result, seed + 1, 4)
    return result


def test_landscapes_are_timed_beside_plain_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = landscapes.CASES["digits"]
    small = replace(case, data=lambda: tuple(each[:20] for each in case.data()), size=3)
    monkeypatch.setattr(landscapes, "CASES", {"digits": small})
    record, table = tmp_path / "l.json", tmp_path / "l.md"
    result = run("--suite", "landscapes", "--rounds", "2", "--json", str(record), "--markdown", str(table))
    assert result.exit_code == 0
    rows = json.loads(record.read_text())["timings"]
    assert [row["contestant"] for row in rows][:2] == ["plain forward passes", "hessprobe"]
    assert (rows[0]["ratio"], rows[0]["points"], rows[0]["rounds"]) == (1.0, 9, 2)
    assert rows[0]["seconds"] == pytest.approx(51**2 * rows[0]["milliseconds"] / 1e3, rel=0.5)
    assert "| MLP 64-128-64-10, 1,797 digits | hessprobe | " in table.read_text()


def test_a_vocabulary_in_chunks_beside_one_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(vocabulary.CASES, "gpt2", vocabulary.Head("small", 2048, 8, 2000, layers=1))
    record, table = tmp_path / "v.json", tmp_path / "v.md"
    result = run("--suite", "vocabulary", "--case", "gpt2", "--json", str(record), "--markdown", str(table))
    assert result.exit_code == 0, result.output
    rows = json.loads(record.read_text())["timings"]
    assert [(row["matrix"], row["way"]) for row in rows] == [
        (m, w) for m in ("hessian", "ggn") for w in vocabulary.WAYS
    ]
    assert all(row["relative_error"] < 1e-4 for row in rows)
    for whole, chunks in (rows[:2], rows[2:]):
        assert whole["gradient"] == 1.0
        assert whole["further"] < whole["first"]
        assert chunks["further"] < chunks["first"]
        # 4 million logits fit a chunk: still fewer buffers of them than written out.
        assert chunks["peak"] < 0.8 * whole["peak"]
    assert "| small | ggn | in chunks | " in table.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "step"), "Did you mean 'steps'"),
        (("--suite", "optimizers", "--optimizer", "sma"), "Did you mean 'sam'"),
        (("--suite", "steps", "--rounds", "1"), "--rounds must be an integer >= 2; got 1"),
        (("--suite", "vocabulary", "--case", "gpt"), "Did you mean 'gpt2'"),
        (("--gpu", "--device", "cpu"), "--suite gpu needs an accelerator"),
        (("--gpu", "--tiny", "--case", "gpt-1"), "Did you mean 'gpt-1b'"),
        (("--tiny",), "--tiny is for --suite gpu"),
        (("--gpu", "--suite", "steps"), "--gpu is for --suite gpu"),
        (("--suite", "optimizers", "--jobs", "0"), "--jobs must be an integer >= 1; got 0"),
    ],
)
def test_wrong_usage(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
