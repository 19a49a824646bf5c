from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hessprobe import measures, report
from hessprobe.cli import process
from hessprobe.measures import registry

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def sleeping(program, digits_checkpoint, tmp_path):
    """A run that waits inside its second measure, and inside the writing of its record when told so."""

    def start(**environment):
        running = program(
            "measure",
            digits_checkpoint,
            "--json",
            tmp_path / "r.json",
            env={**os.environ, "FAKE_SLEEP": "trace", **environment},
            start_new_session=True,
        )
        assert running.stderr.readline() == "ready\n"
        return running

    return start


def test_sigterm_shows_what_is_known_and_exits_143(sleeping, tmp_path):
    running = sleeping()
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (143, "")
    assert "lambda-max" in out
    assert "interrupted; what was under way:\n  probes: 1.25 ± 0.50 (after 10 of 60)" in out
    assert report.read_record(tmp_path / "r.json")["flags"] == ["interrupted"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_lets_what_is_known_be_written(sleeping, tmp_path, number, code):
    running = sleeping(FAKE_SLOW_WRITE="1")
    running.send_signal(number)
    assert running.stderr.readline() == "writing\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (code, "hessprobe: ending; press Ctrl-C again to quit at once\n")
    assert "lambda-max" in out
    assert [row["measure"] for row in report.read_record(tmp_path / "r.json")["results"]] == ["lambda-max"]


def test_a_third_leaves_at_once_without_a_traceback(sleeping, tmp_path):
    running = sleeping(FAKE_SLOW_WRITE="60")
    running.send_signal(signal.SIGINT)
    assert running.stderr.readline() == "writing\n"
    running.send_signal(signal.SIGINT)
    assert running.stderr.readline() == "hessprobe: ending; press Ctrl-C again to quit at once\n"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (130, "")
    # The journal alone, from which --resume goes on.
    assert [path.name for path in tmp_path.iterdir()] == ["r.json.journal"]


def test_a_signal_while_a_finished_result_is_written_loses_nothing(program, digits_checkpoint, tmp_path):
    environment = {**os.environ, "FAKE_SLOW_WRITE": "1"}
    running = program("measure", digits_checkpoint, "--json", tmp_path / "r.json", env=environment)
    assert running.stderr.readline() == "writing\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "")
    assert out.count("-12345.7") >= 3
    assert report.read_record(tmp_path / "r.json")["flags"] == []


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGINT)
    kept = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with process.handled():
            assert signal.getsignal(signal.SIGINT) is not before
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGTERM, kept)


def test_exit_code_says_what_ended_the_work():
    with process.handled():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert process.exit_code(130) == 143
        assert process.exit_code(1) == 1
    with process.handled():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert process.exit_code(130) == 130


def test_training_that_is_terminated_exits_143(run, tmp_path, monkeypatch):
    from hessprobe.cli.commands import train

    monkeypatch.setattr(train, "run", lambda _: signal.raise_signal(signal.SIGTERM))
    done = run("train", "--out", tmp_path / "a.pt")
    assert (done.code, done.err) == (143, "hessprobe: interrupted\n")
    assert sys.exc_info() == (None, None, None)


def swallowing():
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_end_that_foreign_code_swallowed_is_not_a_strange_failure(run, monkeypatch, tmp_path):
    from hessprobe.cli.commands import train

    def broken(_):
        swallowing()
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(train, "run", broken)
    done = run("train", "--out", tmp_path / "a.pt")
    assert (done.code, done.err) == (130, "hessprobe: interrupted\n")


def test_an_end_that_was_swallowed_ends_the_measuring_at_its_next_sign_of_life(run, monkeypatch, digits_checkpoint):
    def measure_all(names, risk, settings, report):
        report(measures.Progress(1, 9, 1.25, 0.5, stage="probes"))
        swallowing()
        report(measures.Progress(2, 9, 1.25, 0.5, stage="probes"))
        pytest.fail("the measuring went on")
        yield

    monkeypatch.setattr(registry, "measure_all", measure_all)
    done = run("measure", digits_checkpoint)
    assert (done.code, done.err) == (130, "")
    assert "interrupted; what was under way:" in done.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "start",
    ["from hessprobe.cli.entry import main; main()", "import runpy; runpy.run_path('cli.py', run_name='__main__')"],
)
def test_a_signal_while_the_program_is_loaded_leaves_no_traceback(number, code, start):
    trap = (
        "import signal, sys\n"
        "class Trap:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'typer': signal.raise_signal({int(number)})\n"
        "sys.meta_path.insert(0, Trap())\n"
        "sys.path.insert(0, '')\n"
    )
    done = subprocess.run([sys.executable, "-c", trap + start], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_after_the_work_changes_no_exit_code(number):
    """One before what is registered to run at the end, and one when the modules are taken down."""
    program = f"""
import atexit, os, signal, sys
class Last:
    def __del__(self, kill=os.kill, here=os.getpid(), number=signal.{number}):
        kill(here, number)
last = Last()
atexit.register(os.kill, os.getpid(), signal.{number})
sys.argv = ["hessprobe", "no-such-command"]
from hessprobe.cli.entry import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
