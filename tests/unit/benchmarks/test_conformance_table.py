"""The conformance table: a process a tool, a limit a case, a cell for all that can happen, and the page of it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hessprobe.benchmarks.conformance import CASES, Tool, compare, page, problems
from hessprobe.benchmarks.conformance.compare import ABSENT
from hessprobe.benchmarks.conformance.own import HESSPROBE
from hessprobe.benchmarks.conformance.peers import PEERS
from hessprobe.cli.app import app
from hessprobe.hvp import engines
from hessprobe.journal import Journal

BY_NAME = {case.name: case for case in CASES}
SMALL = tuple(
    dataclasses.replace(BY_NAME[name], build=partial(problems.classifier, (4, 2), k=1))
    for name in ("ragged-batches", "left-alone", "both-ends")
)
# The package is installed under this name wherever the tests run.
HERE = "torch"


def exact(problem):
    return problems.hvp(problem)


def unweighted(problem):
    parts = [problems.hvp(dataclasses.replace(problem, batches=[batch])) for batch in problem.batches]
    return torch.stack(parts).mean(0)


def drawing(problem):
    return torch.rand(1)


def killed(problem):
    os.kill(os.getpid(), signal.SIGKILL)


def endless(problem):
    while True:
        time.sleep(0.01)


def printing(problem):
    print("a line of the package's own")
    return problems.hvp(problem)


def raising(problem):
    raise RuntimeError("no `second`\nderivative")


FAKES = {
    "good": {"hvp": exact, "trace": lambda problem: torch.ones(1), "ends": problems.ends},
    "careless": {"hvp": unweighted, "trace": drawing},
    "raising": {"hvp": raising, "ends": raising},
    "killed": {"hvp": exact, "trace": killed},
    "endless": {"hvp": endless, "trace": lambda problem: torch.ones(1)},
    "printing": {"hvp": printing},
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch):
    tools = {name: (HERE, partial(Tool, name, "7", answers)) for name, answers in FAKES.items()}
    tools["absent"] = ("no-such-distribution-as-this", partial(Tool, "absent", "7", {}))
    monkeypatch.setattr(compare, "PARTS", {"curvature": compare.Part("Curvature", SMALL, tools)})
    monkeypatch.setattr(page, "PARTS", compare.PARTS)


@pytest.mark.usefixtures("parts")
def test_what_a_tool_does_stays_in_its_column(capfd: pytest.CaptureFixture[str]):
    told = []
    cells = compare.compare_tools(limit=1, jobs=2, finished=lambda tool, column: told.append((tool, len(column))))
    found = {tool: [cell.status for cell in cells if cell.tool == tool] for tool in (*FAKES, "absent")}
    assert found == {
        "good": ["right", "right", "right"],
        "careless": ["wrong", "wrong", "missing"],
        "raising": ["refused", "missing", "refused"],
        "killed": ["crashed", "crashed", "crashed"],
        "endless": ["refused", "right", "missing"],
        "printing": ["right", "missing", "missing"],
        "absent": ["not installed"] * 3,
    }
    assert sorted(told) == sorted((tool, 3) for tool in found)
    assert [cell.tool for cell in cells] == [tool for tool in found for _ in range(3)]
    assert "a line of the package's own" not in capfd.readouterr().out
    notes = {cell.tool: cell.note for cell in cells if cell.case == "ragged-batches"}
    assert notes["endless"] == "TimeoutError: no answer within 1 seconds"
    assert "SIGKILL" in notes["killed"]
    versions = {cell.tool: cell.version for cell in cells}
    assert versions["good"] == torch.__version__.partition("+")[0] or versions["good"] == torch.__version__
    assert versions["absent"] == ""


@pytest.mark.usefixtures("parts")
def test_columns_that_are_known_are_not_made_again():
    known = {place: compare._lost(*place, "was slow") for place in compare.columns() if place[1] != "good"}
    told = []
    cells = compare.compare_tools(limit=1, finished=lambda tool, column: told.append(tool), known=known)
    assert told == ["good"]
    assert [cell.tool for cell in cells] == [tool for _, tool in compare.columns() for _ in range(3)]
    assert {cell.status for cell in cells} == {"right", "crashed"}


def test_the_process_of_a_tool_does_not_write_on_the_journal_of_its_parent(tmp_path, monkeypatch):
    ours = {"hessprobe": ("hessprobe", lambda: HESSPROBE)}
    monkeypatch.setattr(compare, "PARTS", {"curvature": compare.Part("Curvature", SMALL, ours)})
    journal = Journal(tmp_path / "j", {})
    with engines.replayed(journal):
        cells = compare.compare_tools(limit=30)
    assert [cell.status for cell in cells] == ["right"] * 3
    journal.close()
    assert (tmp_path / "j").stat().st_size == journal.size


@pytest.mark.usefixtures("parts")
def test_a_cell_is_the_same_whenever_it_is_made():
    first, second = (
        [(cell.status, cell.error) for cell in compare.column("curvature", "careless", 30)] for _ in range(2)
    )
    assert first == second


@pytest.mark.usefixtures("parts")
def test_the_page_has_a_short_cell_and_a_sentence_for_each_that_fails():
    rows = [cell.row() for cell in compare.compare_tools(limit=1)]
    text = page.page(rows, "torch 2.")
    lines = text.splitlines()
    table = {line.split(" | ")[0].strip("| "): line.strip("|").split(" | ") for line in lines if line.startswith("|")}
    ragged = [cell.strip() for cell in table["ragged-batches"]][1:]
    off = next(row["error"] for row in rows if (row["tool"], row["case"]) == ("careless", "ragged-batches"))
    assert ragged == [
        "pass",
        f"**off {off:.0%}**".replace("%", " %"),
        "**error**",
        "**crash**",
        "**error**",
        "pass",
        ABSENT,
    ]
    assert [cell.strip() for cell in table["left-alone"]][2] == "**changes state**"
    assert [cell.strip() for cell in table["both-ends"]][2] == "-"
    assert [cell.strip() for cell in table["**held**"]][1:] == [
        "3 of 3",
        "0 of 2",
        "0 of 2",
        "0 of 3",
        "1 of 2",
        "1 of 1",
        "n/a",
    ]
    assert f"    - careless: off by {off:.0%} of the truth (Euclidean norm).".replace("%", " %") in lines
    assert "    - careless: the global generator was changed." in lines
    assert "    - raising: `RuntimeError: no 'second' derivative`" in lines
    assert all("good" not in line for line in lines if line.startswith("    - "))
    assert lines[-1] == "torch 2."


def row(status: str, error: float | None, rule: str = "equal", note: str = "") -> dict:
    return {
        **compare.Cell("curvature", "one", "7", "c", "It holds.", rule, status, error, note).row(),
    }


@pytest.mark.parametrize(
    ("given", "cell"),
    [
        (row("wrong", 251.0), "**off 251 times**"),
        (row("wrong", 0.014), "**off 1 %**"),
        (row("wrong", 3e-7), "**off 3e-07**"),
        (row("wrong", 0.15, "at least", "at least 0.9"), "**0.15**"),
        (row("wrong", None, note="not finite"), "**nan**"),
        (row("wrong", None, note="shape (2,) where (3,) was asked"), "**wrong**"),
        (row("right", None, note="refused: ValueError: weighting"), "refuses"),
    ],
)
def test_cells(given: dict, cell: str):
    assert f"| c | {cell} |" in page.tables([given])


@pytest.mark.usefixtures("parts")
def test_the_command_writes_record_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare, "LIMIT", 1)
    record, table = tmp_path / "c.json", tmp_path / "c.md"
    result = CliRunner().invoke(app, ["bench", "--conformance", "--json", str(record), "--markdown", str(table)])
    assert result.exit_code == 0, result.output
    rows = json.loads(record.read_text())["timings"]
    assert {(each["tool"], each["case"]) for each in rows} >= {("good", "both-ends"), ("absent", "left-alone")}
    assert table.read_text().startswith("# The same cases on several tools")
    assert json.loads(record.read_text())["arguments"]["suite"] == "conformance"


def test_the_committed_page_is_of_its_record_and_of_the_present_cases():
    reports = Path(__file__).parents[3] / "reports"
    record = json.loads((reports / "conformance.json").read_text())
    rows, machine = record["timings"], record["environment"]
    said = f"torch {machine['torch']}, {machine['threads']} threads, {machine['device']}."
    assert (reports / "conformance.md").read_text() == page.page(rows, said)
    own = {(each["part"], each["case"]): each for each in rows if each["tool"] == "hessprobe"}
    assert {key: each["must_hold"] for key, each in own.items()} == {
        (name, case.name): case.must_hold for name, part in compare.PARTS.items() for case in part.cases
    }
    assert {each["status"] for each in own.values()} == {"right"}
    assert all(each["version"] for each in rows)


def test_two_suites_are_refused():
    result = CliRunner().invoke(app, ["bench", "--conformance", "--suite", "steps"])
    assert result.exit_code == 2
    assert "--conformance is --suite conformance; got --suite steps as well." in " ".join(result.output.split())


def test_adapters_answer_what_is_asked():
    from hessprobe.benchmarks.conformance import QUANTITIES

    assert set(PEERS) == {"curvlinops", "hessian-eigenthings", "PyHessian", "loss-landscapes"}
    for distribution, opened in PEERS.values():
        try:
            tool = opened()
        except ImportError:
            continue
        assert distribution.startswith(tool.name)
        assert set(tool.answers) <= set(QUANTITIES)
