"""A measure that a user registers is a measure of the program: help, messages, tables, record, page, comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import measures_added
import pytest

from hessprobe.measures import register, unregister

ROOT = Path(__file__).parent.parent.parent
HOW = ("--examples", "40", "--engine", "double-backward", "--probes", "8")


@pytest.fixture(autouse=True)
def added():
    register(measures_added.ENTRY)
    yield
    unregister("mean-curvature")


@pytest.mark.parametrize("command", ["measure", "compare", "track", "invariance"])
def test_help_names_it(command):
    words = [sys.executable, measures_added.__file__, command, "--help"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, check=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert "mean-curvature" in done.stdout


def test_a_name_that_is_misspelled_leads_to_it(run, digits_checkpoint):
    done = run("measure", digits_checkpoint, "-m", "mean-curvatur")
    assert done.code == 2
    assert "pseudo-logdet, mean-curvature, universal:trace" in done.err
    assert "Did you mean 'mean-curvature'?" in done.err


def test_table_record_and_page_hold_it(run, digits_checkpoint, tmp_path):
    record, page = tmp_path / "mine.json", tmp_path / "mine.html"
    measure = ("measure", digits_checkpoint, "-m", "mean-curvature,trace", *HOW, "--shift", "0.1")
    done = run(*measure, "--json", record)
    assert done.code == 0
    assert done.err == (
        "hessprobe: note: --shift has no effect here; it is for logdet, effective-dimension, universal:logdet, "
        "universal:det, universal:log-exp\n"
    )
    rows = {row["measure"]: row for row in json.loads(record.read_text())["results"]}
    assert any(line.startswith("mean-curvature ") for line in done.out.splitlines())
    dim = 64 * 8 + 8 + 8 * 10 + 10
    assert rows["mean-curvature"]["value"] == pytest.approx(rows["trace"]["value"] / dim)
    assert rows["mean-curvature"]["unit"] == "curvature per parameter"
    assert run("report", record, "--out", page).code == 0
    text = page.read_text()
    assert "Mean curvature of the Hessian" in text
    assert "mean curvature of a random direction of length 1" in text
    assert "hessprobe measure" in text


def test_checkpoints_are_compared_by_it(run, digits_checkpoint, tmp_path):
    other = tmp_path / "other.pt"
    assert run("train", "--model", "mlp:hidden=8", "--epochs", "1", "--seed", "1", "--out", other).code == 0
    done = run("compare", digits_checkpoint, other, "-m", "mean-curvature", *HOW)
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if "mean-curvature" in line]
    assert any(word in line for line in lines for word in ("sharper", "flatter", "within error"))


def test_a_record_of_it_is_read_where_nobody_knows_it(run, digits_checkpoint, tmp_path):
    record, page = tmp_path / "mine.json", tmp_path / "mine.html"
    assert run("measure", digits_checkpoint, "-m", "mean-curvature", *HOW, "--json", record).code == 0
    unregister("mean-curvature")
    assert run("report", record, "--out", page).code == 0
    assert "Mean-curvature of the Hessian" in page.read_text()
    register(measures_added.ENTRY)
