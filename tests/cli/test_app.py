from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "pandas", "sklearn")


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["measure", "--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from hessprobe.cli.app import app\n"
        f"try: app({arguments!r}, prog_name='hessprobe')\n"
        f"finally: print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "hessprobe" in done.stdout


@pytest.mark.parametrize("entry", [["-m", "hessprobe"], ["cli.py"]])
def test_both_entries_are_the_same_program(entry):
    done = python(*entry, "--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"hessprobe {version('hessprobe')}")
    assert "Usage: hessprobe [OPTIONS]" in python(*entry, "--help").stdout


def test_help_names_every_command_and_exit_code(run):
    shown = run("--help")
    assert shown.code == 0
    codes = ("Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted", "75 another rank was lost")
    for word in ("train", "measure", "info", *codes):
        assert word in shown.out


@pytest.mark.parametrize("arguments", [["meassure"], ["measure", "--rtoll", "1"], ["train"], ["measure", "--k", "x"]])
def test_unknown_commands_and_options_are_wrong_usage(run, arguments):
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err
