"""Options of how data are read that the data named do not use are said, each in a sentence."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from hessprobe.models.data import load, load_for
from hessprobe.models.spec import Opening

ALL = {
    "normalize": "none",
    "text_column": "t",
    "label_column": "l",
    "tokenizer": "folder",
    "context": 4,
    "pack": True,
}


def idle(notes):
    return {note.split()[0][2:].replace("-", "_") for note in notes if " has no effect here; it is for " in note}


def test_tables_use_the_column_of_targets_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x=np.ones((2, 1)), l=[0, 1])
    (tmp_path / "d.csv").write_text("x,l\n1.0,0\n2.0,1\n")
    for name in ("npz:d.npz", "csv:d.csv", "d.csv"):
        _, notes = load(name, Opening(**ALL, image_size=8))
        assert idle(notes) == {"image_size", "normalize", "text_column", "tokenizer", "context", "pack"}
        assert idle(load(name, Opening(label_column="l"))[1]) == set()
    assert "--tokenizer has no effect here; it is for texts, for networks of transformers" in notes


def test_images_use_size_and_normalisation_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for label in ("ant", "bee"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for index in range(4):
            Image.fromarray(np.full((5, 5, 3), 40 * index, np.uint8)).save(f"pictures/{label}/{index}.png")
    _, notes = load("pictures", Opening(**ALL, image_size=4))
    assert idle(notes) == {"text_column", "label_column", "tokenizer", "context", "pack"}
    assert idle(load("digits", Opening(**ALL))[1]) == {*ALL}


@pytest.mark.parametrize(
    ("task", "row", "used"),
    [
        ("causal-lm", {"input_ids": [1, 2]}, {"context", "pack"}),
        ("seq2seq", {"input_ids": [1, 2], "l": [1]}, {"context", "label_column"}),
        ("sequence-classification", {"input_ids": [1, 2], "l": 1}, {"context", "label_column"}),
    ],
)
def test_rows_of_tokens_need_no_tokenizer_and_no_text(task, row, used, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace()
    found = load_for(model, "folder", task, "jsonl:d.jsonl", Opening(**ALL, image_size=8))
    assert idle(found.notes) == {*ALL, "image_size"} - used
