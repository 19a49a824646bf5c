"""How many files, functions and classes a number meets: never more than stand here, lowered where it can be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import walk

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# The engine is given: which one is fastest, and so which files are entered, is another on another machine.
MEASURE = ("--measure", "frob", "--engine", "double-backward")
# Some functions are entered on some machines only, as limits of memory and the time that passes have it.
FILES, FUNCTIONS, HOLDERS = 35, 682, 8


def program(*words):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    path = tmp_path_factory.mktemp("walk") / "mlp.pt"
    program("cli.py", "train", "--model", "mlp:hidden=8", "--epochs", "1", "--out", path)
    return program(HERE / "walk.py", path, *MEASURE)


def test_a_norm_meets_no_more_files_functions_and_classes_than_before(told):
    found = re.search(r"(\d+) files, (\d+) functions, held by (\d+) classes", told)
    assert found is not None, told
    files, functions, holders = map(int, found.groups())
    print(told[told.index("files of") - 4 :])
    assert files <= FILES, told
    assert functions <= FUNCTIONS, told
    assert holders <= HOLDERS, told


def test_the_walk_begins_at_the_command_and_ends_at_what_is_printed(told):
    for name in ("cli/commands/measure.py", "estimators/frobenius.py", "estimate.py", "records/typed.py"):
        assert f"\n{name}: " in told
    for name in ("estimate.Estimate", "measures.context.Result", "cli.skeleton.Outcome"):
        assert f"held by hessprobe.{name}\n" in told
    # Another command of the program, and what was only imported.
    assert "commands/sharpness.py" not in told
    assert "optim/" not in told


def test_only_what_holds_the_number_counts():
    from hessprobe.estimate import ErrorParts, Estimate

    made = walk.walk(lambda: [Estimate(value, ErrorParts(0.5)) for value in (1.25, 2.0)])
    assert made.code[0].value == 1.25
    assert made.holders(1.25) == made.holders(2.0) == ["hessprobe.estimate.Estimate"]
    assert made.holders(0.5) == ["hessprobe.estimate.ErrorParts", "hessprobe.estimate.Estimate"]
    assert made.holders(3.0) == []


def test_what_runs_while_a_module_is_imported_is_not_on_the_way(tmp_path, monkeypatch):
    (tmp_path / "imported_by_the_walk.py").write_text(
        "from hessprobe.errors import LostRunsError, about\nlost = LostRunsError('a')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def run():
        import imported_by_the_walk

        return imported_by_the_walk.about("a", "b")

    assert walk.walk(run).functions == {("errors.py", "about"), ("errors.py", "ArgumentMessage.__new__")}
    sys.modules.pop("imported_by_the_walk")
    monkeypatch.setattr(walk, "HOME", "/nowhere/")
    assert walk.walk(run).files == set()
