"""``hessprobe measure --dry-run``: what a measurement will take, told and written, and nothing measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hessprobe.cli.app import app


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dry") / "digits.pt"
    result = run("train", "--model", "mlp", "--data", "digits", "--epochs", "1", "--seed", "0", "--out", str(path))
    assert result.exit_code == 0, result.output
    return str(path)


def test_a_table_and_what_stands_below_it(checkpoint: str):
    result = run("measure", checkpoint, "--measure", "lambda-max", "--measure", "frob", "--rtol", "0.1", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].endswith("not measured: foreseen")
    assert lines[1].split() == ["measure", "products", "seconds"]
    assert [line.split()[0] for line in lines[2:5]] == ["lambda-max", "frob", "all"]
    assert "about" in lines[2]
    assert "1 of 6 batches" in result.output
    assert "it fits the" in result.output
    assert "95%" not in result.output


def test_json_to_a_file_and_to_stdout(checkpoint: str, tmp_path: Path):
    path = tmp_path / "f.json"
    asked = ("measure", checkpoint, "--measure", "trace", "--rtol", "0.1", "--dry-run", "--json")
    assert run(*asked, str(path)).exit_code == 0
    found = json.loads(path.read_text())
    assert found["schema"] == "hessprobe-forecast/1"
    assert found["measures"][0]["measure"] == "trace"
    assert found["low"] <= found["seconds"] <= found["high"]
    assert found["batches"] == 6
    again = run(*asked, "-")
    assert json.loads(again.stdout)["measures"][0]["products"] == found["measures"][0]["products"]
    assert list(tmp_path.iterdir()) == [path]


def test_one_batch_is_the_measurement_itself(checkpoint: str):
    asked = ("--measure", "lambda-max", "--rtol", "0.1", "--batch-size", "2000", "--dry-run")
    result = run("measure", checkpoint, *asked)
    assert "this was the measurement itself" in result.output


def test_figures_are_refused(checkpoint: str):
    result = run("measure", checkpoint, "--measure", "density", "--out", "x.png", "--dry-run")
    assert result.exit_code == 2
    assert "--dry-run measures nothing that could be drawn" in result.output


def test_spread_weights_are_refused(checkpoint: str):
    result = run("measure", checkpoint, "--measure", "trace", "--shard", "fsdp", "--dry-run")
    assert result.exit_code == 2
    assert "--dry-run is of one process" in result.output
