from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hessprobe.cli import completion
from hessprobe.measures import TABLE
from hessprobe.training import optimizers

ROOT = Path(__file__).parent.parent.parent


def offered(*words):
    """Return what bash would offer for the last word."""
    line = {"COMP_WORDS": "hessprobe " + " ".join(words), "COMP_CWORD": str(len(words))}
    environment = {**os.environ, **line, "_HESSPROBE_COMPLETE": "complete_bash"}
    code = "import sys; from hessprobe.cli.app import main; sys.argv = ['hessprobe']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("measure", "digits.pt", "--measure", "tr"), ["trace"]),
        (("measure", "digits.pt", "-m", "trace,fro"), ["trace,frob"]),
        (("compare", "a.pt", "b.pt", "-m", "adaptive-f"), ["adaptive-frob"]),
        (("measure", "digits.pt", "--operator", "f"), ["fisher", "functional"]),
        (("train", "--optimizer", "frob"), ["frob-sam"]),
        (("train", "--model", "wide"), ["wide-resnet"]),
        (("doc",), ["doctor"]),
        (("measure", "digits.pt", "--per-l"), ["--per-layer"]),
    ],
)
def test_the_shell_completes_names(words, names):
    assert offered(*words) == names


def test_every_name_is_offered():
    assert [name for name, _ in completion.measures_of(TABLE)("")] == list(TABLE)
    assert sorted(completion.optimizers("")) == sorted(optimizers.names())
    assert dict(completion.measures_of(TABLE)("trace"))["trace"] == TABLE["trace"].meaning


def test_the_help_says_how_to_install_it(run):
    assert "--install-completion" in run("--help").out
