from __future__ import annotations

import shlex

import pytest
import typer

from hessprobe.cli import repeat
from hessprobe.cli.app import app

GROUP = typer.main.get_command(app)


def asked(command, *words):
    """Return what the program makes of a command line, by argument name."""
    given = GROUP.commands[command].make_context(command, list(words)).params
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def again(command, **arguments):
    line = repeat.command_line({"command": command, "arguments": arguments}, GROUP)
    program, *words = shlex.split(line)
    assert program == "hessprobe"
    return words


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("measure", ["a.pt"]),
        (
            "measure",
            ["a.pt", "-m", "frob", "-m", "trace", "--per-layer", "--rtol", "0.003", "--json", "-"],
        ),
        ("measure", ["--objective", "my file.py:risk", "--params", "layers.0.*", "--params", "b", "--memory", "2 GB"]),
        ("measure", ["a $(x) 'y'.pt", "--probes", "9", "--shift", "1e-9", "--csv", "a;b.csv"]),
        ("measure", ["--per-layer", "--", "-x.pt"]),
        ("sharpness", ["a.pt", "--rho", "0.1", "--rho", "0.30000000000000004", "--diagnostics", "--adaptive", "layer"]),
        ("invariance", ["a.pt", "-t", "permutation", "--strength", "0.5", "--resolution", "0.01"]),
        ("landscape", ["a.pt", "--directions", "line", "--with", "b.pt", "--with", "c.pt", "--no-overlays", "--match"]),
        ("landscape", ["a.pt", "--size", "31", "--out", "a.svg", "--map", "error"]),
        (
            "train",
            ["--out", "a.pt", "--optimizer", "gsam", "--optimizer-arg", "alpha=0.3", "--no-flip"],
        ),
        ("train", ["--out", "a.pt", "--flip", "--milestone", "0.5", "--milestone", "0.75", "--resume"]),
        ("compare", ["a.pt", "b.pt", "c d.pt", "--baseline", "b.pt", "--probes", "8"]),
        ("validate", ["wen-ma-li", "--full"]),
        ("bench", ["--case", "mlp", "--rounds", "3"]),
        ("report", ["a.json", "b dir", "--out", "x.html"]),
    ],
)
def test_the_rebuilt_command_asks_for_the_same(command, words):
    given = asked(command, *words)
    rebuilt = again(command, **given)
    assert rebuilt[0] == command
    assert asked(command, *rebuilt[1:]) == given


def test_the_program_s_own_records_give_their_command_back(run, digits_checkpoint, tmp_path):
    from hessprobe.report import read_record

    line = ["measure", str(digits_checkpoint), "--measure", "trace", "--probes", "4", "--examples", "30"]
    line += ["--json", str(tmp_path / "a b.json")]
    assert run(*line).code == 0
    words = again("measure", **read_record(tmp_path / "a b.json")["arguments"])
    assert asked("measure", *words[1:]) == asked(*line)


def test_a_fixed_number_of_probes_stands_without_the_tolerance_that_would_have_been():
    assert again("measure", ckpt="a.pt", measure=["frob"], probes=9, rtol=0.01) == [
        *("measure", "a.pt", "--measure", "frob", "--probes", "9")
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"command": "transmogrify", "arguments": {"ckpt": "a.pt"}},
        {"command": "measure", "arguments": {"ckpt": "a.pt", "warp": 9}},
        {"command": "info", "arguments": {}},
    ],
)
def test_what_this_version_does_not_know_is_not_made_up(record):
    assert repeat.command_line(record, GROUP) == ""


def test_an_option_of_a_later_version_that_was_not_used_does_no_harm():
    assert again("measure", ckpt="a.pt", warp=None, bend=False) == ["measure", "a.pt"]
