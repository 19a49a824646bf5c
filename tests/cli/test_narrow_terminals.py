"""At 80, 100 and 120 columns: tables stay tables, and lines break between words."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from hessprobe.cli import process, render
from hessprobe.cli.commands import compare_tables
from hessprobe.cli.process import at_words
from hessprobe.records import typed
from hessprobe.records.compare import CompareRecord
from hessprobe.records.typed import Measured


def terminal(width):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)


def number(value, error, data, **more):
    low, high = value - 1.96 * error, value + 1.96 * error
    errors = {"probe": error, "data": data, "solver": 0.0}
    return {"value": value, "std_error": error, "errors": errors, "interval": [low, high], "confidence": 0.95} | {
        "matvecs": 57,
        "seconds": 1.2,
        "method": "hutchinson",
        "kind": "estimate",
        **more,
    }


def measured(name, checkpoint, value, error, data, **more):
    row = {"measure": name, "operator": "hessian", "unit": "curvature", "notes": [], "flags": [], "engine": "auto"}
    return {**row, **number(value, error, data), "checkpoint": checkpoint, **more}


def compared(label):
    """A comparison of two checkpoints by every measure with a long name, whose differences may vanish."""
    names = ("lambda-max", "trace", "adaptive-trace", "effective-dimension")
    return {
        "results": [measured(name, each, 6.9103, 0.0021, 0.9) for name in names for each in ("sgd", label)],
        "checkpoints": [{"label": each, "path": f"{each}.pt", "dim": 9, "errors": []} for each in ("sgd", label)],
        "baseline": "sgd",
        "differences": [
            {
                "checkpoint": label,
                "measure": name,
                **number(0.047712, 0.0012, 1.1),
                "baseline": "sgd",
                "verdict": "sharper",
                "beyond_data": False,
                "stands": True,
                "p": 0.001,
                "gain": 1.2,
                "flags": [],
                "ratio": None,
                "independent_std_error": 0.002,
            }
            for name in names
        ],
    }


@pytest.mark.parametrize(
    ("width", "label", "shown"),
    [
        (80, "sam", ["value", "(data)"]),
        (100, "sam", ["value", "± measurement", "± data", "(data)"]),
        (100, "runs/epoch-0010-rho-0.05", ["value", "(data)"]),
        (120, "sam", ["value", "± measurement", "± data", "may vanish on other data"]),
    ],
)
def test_a_comparison_stays_a_table(width, label, shown, record_of):
    console = terminal(width)
    compare_tables._table(record_of(compared(label)), ("lambda-max", "trace", "adaptive-trace"), 0.95, console)
    lines = console.file.getvalue().splitlines()
    assert lines[0].split()[:2] == ["measure", "checkpoint"]
    assert all(word in "\n".join(lines) for word in shown)
    assert sum("sharper by 0.0477" in line for line in lines) == 3
    assert max(map(len, lines[:8])) <= width


@pytest.fixture
def record_of():
    def read(content):
        return typed.read(CompareRecord, content, "the record")

    return read


@pytest.mark.parametrize(("name", "header"), [("frob", "share of frob of"), ("trace", "trace of")])
def test_what_is_a_share_of_a_layer_says_so(name, header):
    row = measured(name, "a", 0.3, 0.01, None)
    del row["checkpoint"]
    row["layers"] = {"0.weight": number(0.2, 0.01, None), "0.bias": number(0.8, 0.01, None)}
    console = terminal(80)
    render.layers_table(typed.read(Measured, row, "the row"), console)
    assert console.file.getvalue().splitlines()[0].startswith(header)


SENTENCE = "batches of 32 examples were cut to fit --memory 2GB, see runs/a-rather-long-name.json for all of them"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_lines_on_a_terminal_break_between_words(width):
    console = terminal(width)
    render.print_line(console, SENTENCE)
    lines = console.file.getvalue().splitlines()
    assert [word for line in lines for word in line.split()] == SENTENCE.split()
    assert all(len(line) <= width or " " not in line.strip() for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert len(lines) > 1


def test_off_a_terminal_a_line_is_one_line():
    console = Console(file=io.StringIO(), width=20, force_terminal=False)
    render.print_line(console, SENTENCE)
    assert console.file.getvalue() == SENTENCE + "\n"
    assert at_words("short", 5) == ["short"]


def test_a_message_on_a_terminal_breaks_between_words_too(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("COLUMNS", "40")
    process.say(SENTENCE)
    lines = written.getvalue().splitlines()
    assert " ".join(" ".join(lines).split()) == f"hessprobe: {SENTENCE}"
    assert max(map(len, lines)) <= 40


@pytest.mark.parametrize(
    ("words", "option"), [(["-m", "trace,frobb"], "--measure"), (["-t", "permutation,scaling"], "--transform")]
)
def test_invariance_takes_commas_too(run, words, option):
    done = run("invariance", "absent.pt", *words)
    assert done.code == 2
    assert f"{option} must be one of " in done.err
    assert f"got {json.dumps(words[1].split(',')[1])[1:-1]!r}." in done.err
