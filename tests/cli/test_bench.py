from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hessprobe import benchmarks, report
from hessprobe.benchmarks import CASES, Case
from hessprobe.benchmarks.products import Timing
from hessprobe.errors import about

TINY = Case(
    "mlp",
    "tiny",
    lambda: torch.nn.Linear(3, 2),
    lambda generator: (torch.randn(5, 3, generator=generator), torch.randint(2, (5,), generator=generator)),
    F.cross_entropy,
)


@pytest.fixture
def stopped(monkeypatch):
    """Tiny networks, of which the second ends by the given exception."""

    def configure(error):
        def timed(case, **_):
            if case.name == "resnet20":
                raise error
            return [Timing(case.name, name, 1, 2.0, 1.9, 2.1, 1.0, 0.5, 1, 0.1, 0.0) for name in ("auto", "linearized")]

        monkeypatch.setitem(CASES, "mlp", TINY)
        monkeypatch.setitem(CASES, "resnet20", replace(TINY, name="resnet20"))
        monkeypatch.setattr(benchmarks, "time_products", timed)

    return configure


CHOSEN = ("bench", "--case", "mlp", "--case", "resnet20", "--rounds", "1")


def test_an_interruption_keeps_the_cases_already_timed(run, stopped, tmp_path):
    stopped(KeyboardInterrupt())
    done = run(*CHOSEN, "--json", tmp_path / "b.json", "--markdown", tmp_path / "b.md")
    assert (done.code, done.err) == (130, "hessprobe: interrupted; not timed: resnet20\n")
    assert "tiny, one vector" in done.out
    assert (tmp_path / "b.md").read_text() == done.out
    record = report.read_record(tmp_path / "b.json")
    assert {row["case"] for row in record["timings"]} == {"mlp"}
    assert record["flags"] == ["interrupted"]


def test_a_failure_keeps_them_too_and_an_interruption_of_the_first_has_none(run, stopped, tmp_path):
    stopped(ValueError(about("examples", "must be fewer; got 3.")))
    done = run(*CHOSEN)
    assert (done.code, done.err) == (1, "hessprobe: error: --examples must be fewer; got 3.\n")
    assert "tiny, one vector" in done.out
    stopped(KeyboardInterrupt())
    alone = run("bench", "--case", "resnet20", "--json", tmp_path / "b.json")
    assert (alone.code, alone.out, alone.err) == (130, "", "hessprobe: interrupted; not timed: resnet20\n")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json.journal"]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_shows_case_and_contestant_on_one_line():
    ours, theirs = os.openpty()
    code = (
        "from hessprobe.cli.outputs import status_line\n"
        "with status_line() as say: say('mlp, 1 at once, round 1 of 2: auto'); say('x' * 500)\n"
    )
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, env={**os.environ, "COLUMNS": "40"})
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert shown == "\r\x1b[2Kmlp, 1 at once, round 1 of 2: auto" + "\r\x1b[2K" + "x" * 39 + "\r\x1b[2K"


def test_what_is_being_timed_is_said_and_nothing_off_a_terminal(capsys):
    said = []
    benchmarks.time_products(TINY, vectors=(1,), rounds=1, report=said.append)
    assert "mlp, 1 at once, round 1 of 1: gradient" in said
    assert "mlp, 1 at once, round 1 of 1: linearized" in said
    from hessprobe.cli.outputs import status_line

    with status_line() as say:
        say("anything")
    assert capsys.readouterr().err == ""


def test_a_pipe_gets_a_line_a_minute_from_the_first_minute_on(capsys, monkeypatch):
    from hessprobe.cli import outputs

    now = [1000.0]
    monkeypatch.setattr(outputs.time, "monotonic", lambda: now[0])
    with outputs.status_line() as say:
        for after, text in (
            (0, "1 of 9"),
            (59, "2 of 9"),
            (60, "3 of 9"),
            (61, "4 of 9"),
            (119, "5 of 9"),
            (200, "6 of 9"),
        ):
            now[0] = 1000.0 + after
            say(text)
    assert capsys.readouterr().err == "3 of 9\n6 of 9\n"
