"""Run the examples of the gallery, and make of each a page with its pictures and a notebook.

``python docs/gallery/make.py [NAME ...]``. An example is a plain script whose cells begin with ``# %%``, those of text
with ``# %% [markdown]``. As in a notebook, a cell shows what it prints, and the value of its last expression.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

HERE = Path(__file__).resolve().parent
EXAMPLES = (
    "own_model",
    "hugging_face",
    "per_layer",
    "edge_of_stability",
    "sam_family",
    "landscapes",
    "compare_checkpoints",
    "custom_measure",
    "operators",
    "records",
)
_TEXT = "[markdown]"


@dataclass
class Cell:
    """One cell.

    Attributes:
        text: Markdown, or code.
        is_code: which of the two.
        printed: by the code.
        pictures: PNG of the figures that it shows.
    """

    text: str
    is_code: bool
    printed: str = ""
    pictures: list[bytes] = field(default_factory=list)


def cells_of(script: str) -> list[Cell]:
    """Return the cells of a script."""
    found = []
    for part in re.split(r"^# %% ?", script, flags=re.MULTILINE)[1:]:
        kind, _, body = part.partition("\n")
        is_code = kind.strip() != _TEXT
        text = body.strip("\n")
        if not is_code:
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
        found.append(Cell(text, is_code))
    return found


def run(name: str) -> list[Cell]:
    """Return the cells of an example with what they show, run here and now."""
    cells, names = cells_of((HERE / f"{name}.py").read_text(encoding="utf-8")), {"__name__": "__main__"}
    for cell in cells:
        if cell.is_code:
            _run(cell, name, names)
    return cells


def _run(cell: Cell, name: str, names: dict[str, Any]) -> None:
    tree = ast.parse(cell.text)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), names)
    cell.printed = printed.getvalue()
    # What draws returns axes.
    figure = getattr(value, "figure", None)
    if hasattr(figure, "savefig"):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
        cell.pictures.append(picture.getvalue())
    elif value is not None:
        cell.printed += f"{value!r}\n"


def page(name: str, cells: list[Cell]) -> str:
    """Return the Markdown page; its pictures lie in ``pictures/`` beside it."""
    parts, count = [], 0
    for cell in cells:
        parts.append(f"```python\n{cell.text}\n```" if cell.is_code else cell.text)
        if cell.printed:
            parts.append(f"```text\n{cell.printed.rstrip()}\n```")
        for _ in cell.pictures:
            count += 1
            parts.append(f"![{_title(cells)}, figure {count}](pictures/{name}-{count}.png)")
    head, *rest = parts
    return "\n\n".join([head, *rest, f"[Script]({name}.py), [notebook]({name}.ipynb)."]) + "\n"


def notebook(cells: list[Cell]) -> dict[str, Any]:
    """Return the notebook, format 4.5, with what its cells showed."""
    made = []
    for index, cell in enumerate(cells):
        one: dict[str, Any] = {"id": f"cell-{index}", "metadata": {}, "source": cell.text.splitlines(keepends=True)}
        if not cell.is_code:
            made.append({**one, "cell_type": "markdown"})
            continue
        outputs: list[dict[str, Any]] = []
        if cell.printed:
            lines = cell.printed.splitlines(keepends=True)
            outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
        for picture in cell.pictures:
            data = {"image/png": base64.b64encode(picture).decode()}
            outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
        made.append({**one, "cell_type": "code", "execution_count": None, "outputs": outputs})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def write(name: str, folder: Path = HERE) -> None:
    """Run an example, and write its page, its notebook and its pictures."""
    cells = run(name)
    (folder / "pictures").mkdir(exist_ok=True)
    for number, picture in enumerate([each for cell in cells for each in cell.pictures], 1):
        (folder / "pictures" / f"{name}-{number}.png").write_bytes(picture)
    (folder / f"{name}.md").write_text(page(name, cells), encoding="utf-8")
    text = json.dumps(notebook(cells), indent=1, ensure_ascii=False)
    (folder / f"{name}.ipynb").write_text(text + "\n", encoding="utf-8")


def index() -> str:
    """Return the page that leads to all, each with its first picture and its first sentence."""
    rows = ["# Gallery", "Ten short examples, each run as it stands: a page, a script, a notebook.", "| | |\n|---|---|"]
    for left, right in zip(EXAMPLES[::2], EXAMPLES[1::2], strict=True):
        rows[-1] += "\n| " + " | ".join(map(_entry, (left, right))) + " |"
    return "\n\n".join(rows) + "\n"


def _entry(name: str) -> str:
    title = _title(cells_of((HERE / f"{name}.py").read_text(encoding="utf-8")))
    return f"[![{title}](pictures/{name}-1.png)<br>{title}]({name}.md)"


def _title(cells: list[Cell]) -> str:
    return cells[0].text.splitlines()[0].removeprefix("# ")


if __name__ == "__main__":
    for each in sys.argv[1:] or EXAMPLES:
        print(each, flush=True)
        write(each)
    (HERE / "index.md").write_text(index(), encoding="utf-8")
