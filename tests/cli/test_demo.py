from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer

from hessprobe.cli import repeat
from hessprobe.cli.app import app
from hessprobe.cli.commands import demo

GROUP = typer.main.get_command(app)


@pytest.fixture
def small(monkeypatch):
    """Shorten everything that takes time; which commands are called stays as it is."""
    monkeypatch.setattr(demo, "_MODEL", "mlp:hidden=4")
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    monkeypatch.setattr(demo, "_OPTIMIZERS", ("sgd", "sam"))
    monkeypatch.setattr(demo, "_MEASURES", ("lambda-max", "trace"))
    monkeypatch.setattr(demo, "_KINDS", ("ascent",))
    monkeypatch.setattr(demo, "_COMPARED", ("lambda-max",))
    monkeypatch.setattr(demo, "_CHECKED", ("trace",))
    monkeypatch.setattr(demo, "_POINTS", 5)


@pytest.fixture
def calls(monkeypatch):
    """Count the commands that are run."""
    made, genuine = [], demo._run

    def run(words, program):
        made.append(words[0])
        genuine(words, program)

    monkeypatch.setattr(demo, "_run", run)
    return made


def test_everything_is_made_once(run, small, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "demo"
    words = ["demo", "--out", "demo", "--no-open"]
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    order = ["train"] * 2 + ["measure"] * 2 + ["sharpness"] * 2 + ["compare", "invariance", "landscape", "report"]
    assert calls == order
    assert "[1/9] hessprobe train --out demo/sgd.pt" in done.out
    table = done.out[done.out.index("measure     sgd") :].splitlines()
    assert [line.split()[0] for line in table[:3]] == ["measure", "lambda-max", "trace"]
    assert table[-1].startswith("wrote demo/report.html in ")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "hessprobe landscape demo/sgd.pt" in text
    assert any(path.suffix == ".svg" for path in (folder / "figures").iterdir())

    calls.clear()
    again = run(*words)
    assert (again.code, calls) == (0, ["report"])
    assert again.out.count("(done before)") == 9

    steps = {step.record.stem: step for step in demo.steps_of(Path("demo"), 0, None)}

    def undone():
        return [name for name, step in steps.items() if not demo.is_done(step, GROUP)]

    assert undone() == []
    # A record that is gone, one that is damaged, one of other settings, and one that was interrupted are made again.
    (folder / "measure-sgd.json").unlink()
    (folder / "measure-sam.json").write_text("{")
    for name, change in (("invariance-sgd", {"arguments": {"seed": 3}}), ("sharpness-sam", {"flags": ["interrupted"]})):
        record = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps(record | change))
    assert undone() == ["measure-sgd", "measure-sam", "sharpness-sam", "invariance-sgd"]
    # So is what was drawn into a file that is gone, and what was measured on another checkpoint of the same name.
    (folder / "landscape-sgd.png").unlink()
    assert "landscape-sgd" in undone()
    (folder / "sgd.pt").write_bytes((folder / "sgd.pt").read_bytes() + b"0")
    assert {"train-sgd", "compare-all"} < set(undone())
    assert "train-sam" not in undone()


@pytest.mark.parametrize(("seed", "device"), [(0, None), (7, "cpu")])
def test_the_commands_are_those_that_their_records_give_back(tmp_path, seed, device):
    for step in demo.steps_of(tmp_path, seed, device):
        command, *words = step.words
        asked = GROUP.commands[command].make_context(command, words).params
        rebuilt = repeat.words({"command": command, "arguments": asked}, GROUP)
        assert sorted(rebuilt) == sorted(step.words)
    assert len({step.record for step in demo.steps_of(tmp_path, seed, device)}) == 12


def test_a_step_that_fails_ends_it_and_keeps_the_rest(run, small, tmp_path, monkeypatch):
    genuine = demo._run

    def failing(words, program):
        if words[0] == "measure":
            raise typer.Exit(130)
        genuine(words, program)

    monkeypatch.setattr(demo, "_run", failing)
    done = run("demo", "--out", tmp_path / "demo", "--no-open")
    assert done.code == 130
    assert "what is finished is kept; the same command goes on from there" in done.err
    assert (tmp_path / "demo" / "sam.pt").exists()
    assert not (tmp_path / "demo" / "report.html").exists()


def test_a_file_in_the_place_of_the_folder(run, tmp_path):
    (tmp_path / "demo").write_text("")
    done = run("demo", "--out", tmp_path / "demo")
    assert done.code == 2
    assert "--out must be a folder that can be made; got" in done.err


@pytest.mark.parametrize(
    ("platform", "variables", "display"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "w"}, True),
        ("darwin", {}, True),
    ],
)
def test_a_browser_is_opened_only_where_there_is_a_display(monkeypatch, platform, variables, display):
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert demo._has_display() is display
