"""What stands on a page of the documentation, block by block, and how a block is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from hessprobe.cli.app import main

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"^(?:<!-- setup\n(?P<setup>.*?)^-->"
    r"|(?:<!-- (?P<mark>not run|file|command): (?P<said>.*?) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```)",
    re.MULTILINE | re.DOTALL,
)
# Whoever reads a page types these; what they print is shown in blocks of their own.
RUN = ("python", "sh")
SHOWN = ("text", "toml", "json")
# More than a program with its arguments.
_SHELL = re.compile(r"[|&;<>$*]|^(for|do|done)\b")


@dataclass(frozen=True)
class Block:
    """One fenced block, or a hidden one that makes ready for those after it.

    Attributes:
        line: of the page, from 1.
        language: as the fence says.
        code: what stands in it.
        mark: ``"not run"``, ``"file"``, ``"command"`` or None.
        said: beside the mark: why it is not run, the name of the file, the command of .ci/run that it is.
    """

    line: int
    language: str
    code: str
    mark: str | None
    said: str


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    found = []
    for each in _BLOCK.finditer(text):
        language, code = ("python", each["setup"]) if each["setup"] is not None else (each["language"], each["code"])
        found.append(Block(text.count("\n", 0, each.start()) + 1, language, code, each["mark"], each["said"] or ""))
    return found


def run_python(block: Block, page: str, names: dict[str, object]) -> str:
    """Run a block in the names that those before it left, and return what it printed."""
    # Tracebacks and linecache then speak of the line of the page.
    code = compile("\n" * block.line + block.code, page, "exec")
    printed = StringIO()
    with redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def run_shell(block: Block) -> str:
    """Run the lines of a block, calls of the program alone in this process, and return what they printed."""
    printed = ""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "hessprobe" and not _SHELL.search(line.partition(" #")[0]):
            printed += _program(words[1:])
        else:
            printed += _bash(line)
    return printed


def _program(words: list[str]) -> str:
    before, printed = sys.argv, StringIO()
    sys.argv = ["hessprobe", *words]
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            main()
    except SystemExit as left:
        if left.code:
            raise AssertionError(f"hessprobe {shlex.join(words)}: exit {left.code}\n{printed.getvalue()}") from left
    finally:
        sys.argv = before
    return printed.getvalue()


def _bash(line: str) -> str:
    shim = f'python() {{ "{sys.executable}" "$@"; }}\nhessprobe() {{ python -m hessprobe "$@"; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shim + line], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, f"{line}: exit {done.returncode}\n{done.stderr}"
    return done.stdout
