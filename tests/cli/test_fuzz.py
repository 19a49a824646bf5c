"""Mutated input of every kind within a fixed budget: documented exit codes, one sentence, nothing written elsewhere.

``FUZZ_MUTANTS`` sets how many mutants of a kind are tried; each has a seed of its own, which a failure names.
"""

from __future__ import annotations

import json
import os
import random

import pytest
import torch

from hessprobe import report
from hessprobe.errors import JournalError
from hessprobe.journal import Journal
from hessprobe.training import Recipe
from hessprobe.training.recipe import read_recipe

BUDGET = int(os.environ.get("FUZZ_MUTANTS", "15"))
DOCUMENTED = (0, 1, 2)
VALUES = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    float("1e308"),
    "",
    "x\x1b[31m",
    "\udcff",
    [],
    [[]],
    {},
    {"a": 1},
    ["a"],
    [None],
)


def mutated(content, draw):
    """Return bytes with some flipped, cut out, repeated or replaced."""
    broken = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if not broken:
            break
        at = draw.randrange(len(broken))
        kind = draw.randrange(5)
        if kind == 0:
            broken[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del broken[at : at + draw.randrange(1, 64)]
        elif kind == 2:
            broken[at:at] = broken[at : at + draw.randrange(1, 64)]
        elif kind == 3:
            broken[at] = draw.randrange(256)
        else:
            del broken[at:]
    return bytes(broken)


def changed(tree, draw):
    """Return a tree of plain values with one of its values replaced or left out."""
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        key = draw.choice(list(tree))
        if draw.random() < 0.1:
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: changed(tree[key], draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.9:
        index = draw.randrange(len(tree))
        return [*tree[:index], changed(tree[index], draw), *tree[index + 1 :]]
    return draw.choice(VALUES)


def require_documented(done, seed, most=1):
    assert done.code in DOCUMENTED, (seed, done)
    assert "Traceback" not in done.err, (seed, done.err)
    assert "--debug shows where" not in done.err, (seed, done.err)
    errors = [line for line in done.err.splitlines() if ": error: " in line]
    # compare and plot go on with the others, and say one sentence for each that it cannot use.
    assert bool(errors) == (done.code != 0), (seed, done.err)
    assert len(errors) <= most, (seed, done.err)
    assert not set(done.err) & set("\x1b\x07"), (seed, done.err)


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_mutated_checkpoints(run, digits_checkpoint, tmp_path, kind):
    whole, content = digits_checkpoint.read_bytes(), torch.load(digits_checkpoint, weights_only=True)
    plain = {key: value for key, value in content.items() if key not in ("state_dict", "optimizer", "progress")}
    for seed in range(BUDGET):
        draw = random.Random(seed)
        if kind == "bytes":
            (tmp_path / "m.pt").write_bytes(mutated(whole, draw))
        else:
            mutant = changed(plain, draw)
            torch.save({**content, **mutant} if isinstance(mutant, dict) else mutant, tmp_path / "m.pt")
        require_documented(run("info", tmp_path / "m.pt"), seed)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_mutated_records(run, digits_checkpoint, tmp_path, kind, fake):
    record = tmp_path / "r.json"
    assert run("measure", digits_checkpoint, "--json", record, "--per-layer").code == 0
    whole, content = record.read_bytes(), report.read_record(record)
    for seed in range(BUDGET):
        draw = random.Random(seed)
        text = mutated(whole, draw) if kind == "bytes" else json.dumps(changed(content, draw)).encode()
        record.write_bytes(text)
        done = run("report", record, "--out", tmp_path / "p.html")
        require_documented(done, seed)
        assert {path.name for path in tmp_path.iterdir()} <= {"r.json", "p.html"}, seed


def test_mutated_recipes(tmp_path):
    whole = b'optimizer = "gsam"\nrho = 0.3\nepochs = 2\nmilestones = [1, 2]\n[optimizer_args]\nalpha = 0.7\n'
    path = tmp_path / "r.toml"
    for seed in range(10 * BUDGET):
        path.write_bytes(mutated(whole, random.Random(seed)))
        try:
            Recipe(**read_recipe(path))
        except (ValueError, TypeError) as error:
            assert str(error), seed  # noqa: PT017  # any sentence, of either kind


def test_mutated_journals(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path, {"command": "measure"})
    for index in range(4):
        journal.keep_product(str(index), torch.full((2,), float(index)))
    journal.close()
    whole = path.read_bytes()
    for seed in range(10 * BUDGET):
        path.write_bytes(mutated(whole, random.Random(seed)))
        try:
            read = Journal(path, {"command": "measure"}, resume=True)
        except JournalError:
            continue
        # What is read is what was written, whatever has been cut off behind it.
        for index in range(4):
            known = read.product(str(index))
            assert known is None or torch.equal(known, torch.full((2,), float(index))), seed
        read.close()


def test_command_lines_of_strange_words(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = ("measure", "sharpness", "landscape", "compare", "plot", "info", "report", "invariance", "track", "x")
    words = ("--seed", "--rtol", "--probes", "--json", "--k", "--measure", "--dtype", "--memory", "--examples", "no.pt",
             "9" * 30, "9" * 5000, "-1", "1e400", "nan", "", "\udcff", "a\x00b", "m" * 300, "--", "-", "--rtol=", "=",
             "trace", "\x1b[31m", "../..", "/dev/zero", "--device", "cuda:99", "--out", "--force")  # fmt: skip
    for seed in range(3 * BUDGET):
        draw = random.Random(seed)
        line = [draw.choice(commands), *draw.choices(words, k=draw.randrange(1, 6))]
        done = run(*line)
        require_documented(done, (seed, line), most=len(line) if line[0] in ("compare", "plot") else 1)
    assert list(tmp_path.iterdir()) == []
