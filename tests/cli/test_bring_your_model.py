"""The commands that the page "Bring your model" shows are commands of this program."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from hessprobe.cli.app import app
from hessprobe.models.spec import parse_spec

PAGE = (Path(__file__).parents[2] / "docs" / "bring-your-model.md").read_text()
COMMANDS = re.findall(r"^hessprobe .*$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page(line):
    words = shlex.split(line, comments=True)
    command = typer.main.get_command(app).commands[words[1]]
    known = {name for each in command.params for name in each.opts}
    assert {word for word in words if word.startswith("--")} <= known
    if "--model" in words:
        parse_spec(words[words.index("--model") + 1])


def test_every_kind_is_shown_in_at_most_three_lines():
    assert len(COMMANDS) > 12
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert all(len(block.splitlines()) <= 3 for block in blocks)
    for option in ("--key", "--loss", "--normalize", "--image-size", "--text-column", "--label-column", "--tokenizer",
                   "--context", "--pack", "--task"):  # fmt: skip
        assert option in PAGE
