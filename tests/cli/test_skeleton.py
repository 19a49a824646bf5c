from __future__ import annotations

import inspect
import io
import json
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from hessprobe.cli import outputs, process, skeleton
from hessprobe.measures import Progress


@dataclass(frozen=True)
class Part:
    depth: int | None = None
    deep: bool = False


@dataclass(frozen=True)
class Asked:
    name: Annotated[str, typer.Argument()]
    json: Annotated[str | None, typer.Option("--json")] = None
    part: Part = Part()
    debug: Annotated[bool, typer.Option("--debug")] = False


PARTS = {
    "depth": Annotated[int | None, typer.Option("--depth")],
    "deep": Annotated[bool, typer.Option("--deep")],
}


@pytest.fixture(autouse=True)
def unasked():
    """Nobody has asked for an end, whatever a test before has left."""
    with process.handled():
        yield


def test_the_fields_of_a_dataclass_are_the_options_of_its_command():
    asked = []

    @skeleton.declared(Asked, part=PARTS)
    def command(request):
        """Ask."""
        asked.append(request)

    assert list(inspect.signature(command).parameters) == ["name", "json", "debug", "depth", "deep"]
    assert inspect.signature(command).parameters["name"].default is inspect.Parameter.empty
    app = typer.Typer()
    app.command()(command)
    runner = CliRunner()
    assert runner.invoke(app, ["x", "--depth", "3", "--debug"]).exit_code == 0
    assert runner.invoke(app, ["x", "--deep"]).exit_code == 0
    assert runner.invoke(app, []).exit_code == 2
    assert asked == [Asked("x", debug=True, part=Part(depth=3)), Asked("x", part=Part(deep=True))]
    command(name="y")
    assert asked[-1] == Asked("y")


def test_options_about_other_libraries_stand_beside_the_others_in_a_record():
    @dataclass(frozen=True)
    class Request:
        seed: int = 3
        opening: Part = Part(depth=1)
        debug: bool = False

    assert list(skeleton.arguments_of(Request()).items()) == [
        ("seed", 3),
        ("debug", False),
        ("depth", 1),
        ("deep", False),
    ]


def carried_out(request, collect, *, facts=None):
    """Carry a command out; return what was called in order, and what was published."""
    called, published = [], []

    def step(name, result=None):
        def call(*_):
            called.append(name)
            return result

        return call

    def publish(_, inputs, outcome):
        called.append("publish")
        published.append((inputs, outcome))

    def run():
        with outputs.invocation("measure", {}):
            return skeleton.carry_out(
                request,
                check=step("check"),
                opened=step("open", ("inputs", [])),
                collect=collect,
                publish=publish,
                facts=facts,
            )

    return run, called, published


def test_what_came_out_is_published_whatever_ends_the_work(capsys):
    def collect(request, inputs, outcome):
        outcome.found.append((request.name, inputs))
        if request.name != "done":
            raise KeyboardInterrupt if request.name == "stop" else ValueError("nothing is left")

    run, called, published = carried_out(Asked("done"), collect)
    assert run() is published[0][1]
    assert called == ["check", "open", "publish"]
    outcome = published[0][1]
    assert (outcome.found, outcome.ending, outcome.interrupted) == ([("done", "inputs")], "", False)

    for name, code, ending in (("stop", process.INTERRUPTED, "interrupted"), ("fail", process.FAILED, "failed")):
        run, called, published = carried_out(Asked(name), collect)
        with pytest.raises(typer.Exit) as left:
            run()
        assert (left.value.exit_code, published[0][1].ending) == (code, ending)
        assert published[0][1].found == [(name, "inputs")]
    assert capsys.readouterr().err == "hessprobe: error: nothing is left\n"


def test_a_journal_is_kept_until_the_work_is_published_and_done(tmp_path):
    record = tmp_path / "r.json"
    journal = tmp_path / "r.json.journal"
    seen = []

    def collect(request, *_):
        seen.append(journal.exists())
        if request.name == "fail":
            raise ValueError("stop")

    run, *_ = carried_out(Asked("fail", json=str(record)), collect, facts=lambda *_: {"content": "a"})
    with pytest.raises(typer.Exit):
        run()
    assert (seen, journal.exists()) == ([True], True)
    run, *_ = carried_out(Asked("done", json=str(record)), collect, facts=lambda *_: {"content": "a"})
    run()
    assert (seen, journal.exists()) == ([True, True], False)


def test_a_report_keeps_the_last_event_of_each_stage():
    outcome = skeleton.Outcome([])
    with skeleton.watched(outcome) as report:
        report(Progress(1, 9, stage="probes"))
        report(Progress(5, None, 2.0, 0.25, stage="eigenvalues"))
        report(Progress(9, 9, 1.0, 0.5, stage="probes"))
    assert outcome.partial() is None
    outcome.failure = KeyboardInterrupt()
    assert [(row.stage, row.done, row.value) for row in outcome.partial()] == [
        ("probes", 9, 1.0),
        ("eigenvalues", 5, 2.0),
    ]
    console = Console(file=io.StringIO(), width=80)
    skeleton.print_unfinished(outcome, console)
    assert console.file.getvalue() == "interrupted; what was under way:\n  eigenvalues: 2.00 ± 0.25 (after 5)\n"


def test_an_end_that_was_asked_for_and_swallowed_ends_the_work_at_the_next_report(monkeypatch):
    monkeypatch.setattr(process, "asked", lambda: True)
    with skeleton.watched(skeleton.Outcome([])) as report, pytest.raises(KeyboardInterrupt):
        report(Progress(1, 9, stage="probes"))


def test_a_record_to_stdout_is_alone_there_and_files_are_written_all_the_same(tmp_path, capsys):
    record = {"schema": "hessprobe.record/1"}
    written = []

    def files():
        written.append("figure.png")
        return written

    skeleton.deliver(record, "-", lambda console: console.print("table"), files)
    assert json.loads(capsys.readouterr().out) == record
    skeleton.deliver(record, str(tmp_path / "r.json"), lambda console: console.print("table"), files)
    assert capsys.readouterr().out == "table\nwrote figure.png\nwrote figure.png\n"
    assert json.loads((tmp_path / "r.json").read_text()) == record


def test_a_disk_that_is_full_hides_no_table(capsys):
    def files():
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        skeleton.deliver({}, None, lambda console: console.print("table"), files)
    assert capsys.readouterr().out == "table\n"
