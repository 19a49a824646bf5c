"""Every example of the gallery runs, and its page, notebook and pictures are those of its script."""

from __future__ import annotations

import json
import sys
import warnings

import matplotlib.pyplot as plt
import pages
import pytest
import torch

GALLERY = pages.ROOT / "docs" / "gallery"
sys.path.insert(0, str(GALLERY))
import make  # noqa: E402


def test_all_scripts_are_examples():
    scripts = {path.stem for path in GALLERY.glob("*.py")} - {"make"}
    assert scripts == set(make.EXAMPLES)
    assert (GALLERY / "index.md").read_text(encoding="utf-8") == make.index()


@pytest.mark.parametrize("name", make.EXAMPLES)
def test_an_example(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(pages.ROOT))
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    with warnings.catch_warnings():
        # Of libraries that an example imports; what hessprobe warns of stays an error.
        warnings.simplefilter("ignore", DeprecationWarning)
        make.write(name, tmp_path)
    torch.set_rng_state(random)
    assert torch.get_num_threads() == threads
    assert plt.get_fignums() == [], "a figure is left open"

    def code(text):
        return [each.code.strip() for each in pages.blocks_of(text) if each.language == "python"]

    # What is printed and drawn may differ in the last digits between machines; what is run may not.
    made, kept = ((folder / f"{name}.md").read_text(encoding="utf-8") for folder in (tmp_path, GALLERY))
    assert code(made) == code(kept)
    assert code(kept), "a page without code"
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == sorted(path.name for path in (GALLERY / "pictures").glob(f"{name}-*.png"))
    assert pictures
    assert kept.count("](pictures/") == len(pictures)

    notebooks = [json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8")) for folder in (tmp_path, GALLERY)]
    sources = [[(cell["cell_type"], "".join(cell["source"])) for cell in each["cells"]] for each in notebooks]
    assert sources[0] == sources[1]
    shown = [output for cell in notebooks[1]["cells"] for output in cell.get("outputs", ())]
    assert sum(output["output_type"] == "display_data" for output in shown) == len(pictures)


def test_cells_are_cut_run_and_written(tmp_path, monkeypatch):
    script = '# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 3\nprint("a")\nx + 1\n\n# %%\ny = x\n'
    monkeypatch.setattr(make, "HERE", tmp_path)
    (tmp_path / "one.py").write_text(script)
    cells = make.run("one")
    assert [(cell.is_code, cell.printed) for cell in cells] == [(False, ""), (True, "a\n4\n"), (True, "")]
    assert cells[0].text == "# Title\n\nText."
    text = make.page("one", cells)
    assert text.startswith('# Title\n\nText.\n\n```python\nx = 3\nprint("a")\nx + 1\n```\n\n```text\na\n4\n```\n\n')
    assert text.endswith("[Script](one.py), [notebook](one.ipynb).\n")
    made = make.notebook(cells)
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert made["cells"][1]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": ["a\n", "4\n"]}]
