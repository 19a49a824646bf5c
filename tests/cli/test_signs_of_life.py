"""What is shown on stderr while the work goes on, on a terminal and off one."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hessprobe.cli import outputs, process

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent


class Terminal:
    """Collects what is written to it."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_a_sign_of_life_stands_until_there_is_more_to_say(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with outputs.starting():
        assert terminal.text == "starting ..."
        process.say("note: something")
        assert terminal.text == "starting ...\r\x1b[2Khessprobe: note: something\n"
    assert terminal.text.endswith("something\n")
    with outputs.starting():
        pass
    assert terminal.text.endswith("starting ...\r\x1b[2K")


def test_off_a_terminal_there_is_none(capsys):
    with outputs.starting():
        pass
    assert capsys.readouterr().err == ""


def test_off_a_terminal_a_line_a_minute_says_how_far_each_stage_is(capsys, monkeypatch):
    # What was not shown, the 70 % of the third event, cannot be gone back from.
    now = [1000.0]
    monkeypatch.setattr(outputs.time, "monotonic", lambda: now[0])
    with outputs.progress_bars() as update:
        for after, *event in (
            (0, "trace", 1, 10, ""),
            (61, "trace", 6, 10, "3.1 ± 0.2"),
            (90, "trace", 7, 10, ""),
            (130, "trace", 8, 100, ""),
            (200, "search", 12, None, ""),
        ):
            now[0] = 1000.0 + after
            update(*event)
    assert capsys.readouterr().err == "trace: 60%, 3.1 ± 0.2\ntrace: 60%\nsearch: 12 done\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_shows_something_before_torch_is_loaded(tmp_path):
    """The first sign of life may not wait for the heavy import, which takes seconds."""
    ours, theirs = os.openpty()
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "hessprobe", "measure", "absent.pt"]
    started = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path)
    os.close(theirs)
    shown, until = b"", time.monotonic() + 30
    try:
        while b"starting" not in shown and time.monotonic() < until:
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 4096)
        assert b"starting ..." in shown
    finally:
        started.kill()
        started.wait()
        os.close(ours)
