"""Every command and every snippet of the documentation runs, or says why it is not run."""

from __future__ import annotations

import re

import pages
import pytest
import torch

import hessprobe as hp
from hessprobe.cli.wording import FLAGS
from hessprobe.measures import NAMES, UNIVERSAL

PAGES = [*sorted(pages.ROOT.glob("docs/*.md")), *(pages.ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING"))]


@pytest.fixture
def names():
    """What a page's first block begins with; a measure that the page registers goes with it."""
    before = set(NAMES)
    yield {"__name__": "__page__"}
    for name in set(NAMES) - before:
        hp.measures.unregister(name)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_shows_runs(path, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    for block in pages.blocks_of(path.read_text(encoding="utf-8")):
        where = f"{path.name}:{block.line}"
        assert block.language in (*pages.RUN, *pages.SHOWN), f"{where}: a block of no known language"
        if block.mark == "not run":
            assert len(block.said.split()) > 3, f"{where}: say why it is not run"
        if block.mark in ("not run", "command") or (block.language in pages.SHOWN and block.mark != "file"):
            continue
        if block.mark == "file":
            (tmp_path / block.said).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            pages.run_python(block, where, names)
        else:
            pages.run_shell(block)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_is_there(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"`((?:hessprobe|tests|reports|docs)/[\w/.-]+)`", text):
        assert (pages.ROOT / name).exists(), name


def test_every_flag_is_explained():
    explained = set(
        re.findall(r"^\| `([\w-]+)` \|", (pages.ROOT / "docs" / "read-an-error.md").read_text(), re.MULTILINE)
    )
    assert explained >= set(FLAGS)


def test_every_measure_and_every_sharpness_is_told_when_to_be_used():
    text = (pages.ROOT / "docs" / "which-measure.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in NAMES)
    assert all(f"`{name}`" in text or f"`{name.removeprefix('universal:')}`" in text for name in UNIVERSAL)


PAGE = """
<!-- setup
x = 1
-->

```python
x += 1
print(x)
```

<!-- not run: it needs a machine that is not here -->
```sh
false
```

<!-- file: own.py -->
```python
y = 2
```

```text
2
```

```sh
true && echo 3  # a comment
```
"""


def test_the_blocks_of_a_page():
    found = pages.blocks_of(PAGE)
    assert [each.language for each in found] == ["python", "python", "sh", "python", "text", "sh"]
    assert [each.mark for each in found] == [None, None, "not run", "file", None, None]
    assert [each.line for each in found] == [2, 6, 11, 16, 21, 25]
    assert (found[2].said, found[3].said) == ("it needs a machine that is not here", "own.py")
    names = {}
    assert [pages.run_python(found[i], "page", names) for i in (0, 1)] == ["", "2\n"]
    assert pages.run_shell(found[5]) == "3\n"


@pytest.mark.parametrize("line", ["hessprobe measure nothing.pt", "false", "hessprobe train --no-such-option"])
def test_a_command_that_fails_fails_the_page(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="exit"):
        pages.run_shell(pages.Block(1, "sh", line, None, ""))
