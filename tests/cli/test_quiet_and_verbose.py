from __future__ import annotations

import sys

import pytest
import typer

from hessprobe.cli import outputs
from hessprobe.cli.app import app

GROUP = typer.main.get_command(app)


def test_every_command_takes_them():
    for name, command in GROUP.commands.items():
        assert {"--quiet", "--verbose"} <= {each for one in command.params for each in one.opts}, name


def test_quiet_leaves_results_and_takes_notes_away(run, digits_checkpoint, fake):
    words = ("measure", digits_checkpoint, "-m", "trace", "--shift", "0.1")
    told, quiet = run(*words), run(*words, "--quiet")
    assert "note: --shift has no effect here" in told.err
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.out == told.out


def test_quiet_takes_no_error_away(run):
    assert run("measure", "absent.pt", "-q").err == "hessprobe: error: absent.pt does not exist. Check the path.\n"


def test_quiet_takes_progress_away(monkeypatch, capsys):
    monkeypatch.setattr(outputs, "_MINUTE", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with outputs.invocation("measure", {}, quiet=True):
        with outputs.starting():
            pass
        with outputs.progress_bars() as update:
            update("trace", 1, 2, "")
        with outputs.status_line() as say:
            say("round 1")
    assert capsys.readouterr().err == ""


def test_verbose_says_what_is_done_and_how_long_it_took(run, digits_checkpoint):
    words = ("measure", digits_checkpoint, "-m", "trace", "--examples", "20", "--probes", "4")
    done = run(*words, "--verbose")
    lines = done.err.splitlines()
    assert lines[0].startswith("hessprobe: hessprobe ")
    assert "torch " in lines[0]
    assert "threads " in lines[0]
    assert any(line.startswith("hessprobe: trace: ") and " done, " in line for line in lines)
    assert lines[-1].startswith("hessprobe: measure took ")
    assert run(*words).err == ""


@pytest.mark.parametrize("said", ["quiet", "verbose"])
def test_what_a_command_runs_inside_is_as_quiet_as_it_is(said):
    with outputs.invocation("demo", {}, **{said: True}), outputs.invocation("measure", {}, **{said: False}):
        assert getattr(outputs.current_invocation(), said)
    with outputs.invocation("demo", {}), outputs.invocation("measure", {}):
        assert not getattr(outputs.current_invocation(), said)


def test_both_are_refused(run):
    done = run("measure", "absent.pt", "-q", "-v")
    assert done.code == 2
    assert "--quiet must be given without --verbose; got both." in done.err


@pytest.mark.parametrize("command", ["info", "doctor"])
def test_other_commands_say_how_long_they_took(run, digits_checkpoint, command):
    done = run(command, *([digits_checkpoint] if command == "info" else []), "-v")
    assert done.err.splitlines()[-1].startswith(f"hessprobe: {command} took ")
