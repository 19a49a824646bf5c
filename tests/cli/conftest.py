from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fake_measures
import pytest

from hessprobe.cli.app import app, main
from hessprobe.measures import registry

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def heeding_interrupts():
    """Started in the background of a script, the tests and all that they start would ignore Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the program in this process: ``run("measure", "a.pt") -> Finished``."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hessprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return Finished(left.value.code or 0, captured.out, captured.err)

    return call


@pytest.fixture
def fake(monkeypatch):
    """Replace the measures by chosen numbers; ``fake(FAKE_FAIL="trace")`` sets what they do."""
    monkeypatch.setattr(registry, "measure_all", fake_measures.measure_all)

    def configure(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return configure


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory):
    """A small network trained for three epochs by the program itself."""
    path = tmp_path_factory.mktemp("cli") / "digits.pt"
    with pytest.raises(SystemExit) as left:
        app(["train", "--model", "mlp:hidden=8", "--epochs", "3", "--out", str(path)], prog_name="hessprobe")
    assert not left.value.code
    return path


@pytest.fixture
def program():
    """Start the program on the stand-in measures in a process of its own."""

    def start(*arguments, **options):
        command = [sys.executable, str(HERE / "fake_measures.py"), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)

    return start
