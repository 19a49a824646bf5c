"""Mutated input of every kind within a fixed budget: documented exit codes, one sentence, nothing written elsewhere.

2,000 mutants in all. ``FUZZ_MUTANTS`` makes it so many times 100 of each kind that are tried; each has a seed of its
own, which a failure names.
"""

from __future__ import annotations

import json
import os
import random
import resource
import time

import numpy as np
import pytest
import torch
import typer

from hessprobe import report
from hessprobe.cli import process
from hessprobe.cli.app import app, merged
from hessprobe.errors import HessprobeError, JournalError, RecordError
from hessprobe.journal import Journal
from hessprobe.models import tables
from hessprobe.report import sources
from hessprobe.training import Recipe
from hessprobe.training.recipe import read_recipe

BUDGET = int(os.environ.get("FUZZ_MUTANTS", "100"))
# Seconds that one of them may take on a busy machine, and bytes by which all of a test may raise the peak.
LONGEST, LARGEST = 20.0, 2**30
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


@pytest.fixture(autouse=True)
def bounded():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < LARGEST


@pytest.fixture
def tried(run, monkeypatch):
    """Run the program on many inputs: ``tried(seed, words)``; its commands are put together once."""
    program = typer.main.get_command(app)
    monkeypatch.setattr(typer.main, "get_command", lambda _: program)

    def call(seed, words, most=1):
        began = time.monotonic()
        done = run(*words)
        assert time.monotonic() - began < LONGEST, seed
        require_documented(done, seed, most)
        return done

    return call


@pytest.fixture
def weights(digits_checkpoint, tmp_path):
    """The same network as other programs save it: ``weights("legacy") -> Path``."""

    def make(kind):
        tensors = torch.load(digits_checkpoint, weights_only=True)["state_dict"]
        path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")
        if kind == "safetensors":
            pytest.importorskip("safetensors.torch").save_file(tensors, path)
        elif kind == "legacy":
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
        elif kind == "lightning":
            torch.save({"state_dict": tensors, "pytorch-lightning_version": "2", "epoch": 3}, path)
        else:
            torch.save(tensors, path)
        return path

    return make


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_mutated_checkpoints(tried, digits_checkpoint, tmp_path, kind):
    whole, content = digits_checkpoint.read_bytes(), torch.load(digits_checkpoint, weights_only=True)
    plain = {key: value for key, value in content.items() if key not in ("state_dict", "optimizer", "progress")}
    for seed in range(2 * BUDGET):
        draw = random.Random(seed)
        if kind == "bytes":
            (tmp_path / "m.pt").write_bytes(mutated(whole, draw))
        else:
            mutant = changed(plain, draw)
            torch.save({**content, **mutant} if isinstance(mutant, dict) else mutant, tmp_path / "m.pt")
        tried(seed, ("info", tmp_path / "m.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("kind", ["plain", "legacy", "lightning", "safetensors"])
def test_mutated_weights_of_other_programs(tried, weights, tmp_path, kind):
    path = weights(kind)
    whole = path.read_bytes()
    for seed in range(BUDGET):
        draw = random.Random(seed)
        # Most of a file is numbers; what says what they are stands at its ends.
        head, tail = whole[:1200], whole[1200:]
        path.write_bytes(mutated(head, draw) + tail if draw.random() < 0.5 else mutated(whole, draw))
        tried(seed, ("info", path))
    assert list(tmp_path.iterdir()) == [path]


def arrays():
    generator = np.random.default_rng(0)
    return {"x": generator.standard_normal((6, 3)).astype(np.float32), "y": np.arange(6) % 3}


@pytest.mark.parametrize("kind", ["npz", "csv", "jsonl", "text"])
def test_mutated_data(tmp_path, kind):
    path = tmp_path / f"d.{kind}"
    rows = [{"text": f"some words {index}", "label": index % 2} for index in range(6)]
    read = {
        "npz": lambda: tables.load_npz("d", path),
        "csv": lambda: tables.load_csv("d", path),
        "jsonl": lambda: tables.read_rows("jsonl", str(path), "d"),
        "text": lambda: tables.read_rows("text", str(path), "d"),
    }[kind]
    if kind == "npz":
        np.savez(path, **arrays())
    else:
        lines = ["a,b,label", "1,2,0", "3,4.5,1", "-1,1e3,0"] if kind == "csv" else [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    whole = path.read_bytes()
    read()
    for seed in range(BUDGET // 2):
        path.write_bytes(mutated(whole, random.Random(seed)))
        try:
            read()
        except HessprobeError as error:
            assert str(path) in str(error), seed  # noqa: PT017  # any sentence that names the file
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_mutated_records(run, tried, digits_checkpoint, tmp_path, kind, fake):
    record = tmp_path / "r.json"
    assert run("measure", digits_checkpoint, "--json", record, "--per-layer").code == 0
    whole, content = record.read_bytes(), report.read_record(record)
    for seed in range(BUDGET):
        draw = random.Random(seed)
        text = mutated(whole, draw) if kind == "bytes" else json.dumps(changed(content, draw)).encode()
        record.write_bytes(text)
        try:
            sources.gather([record])
        except RecordError as error:
            assert str(record) in str(error), seed  # noqa: PT017  # any sentence that names the file
            continue
        # A page takes a while to draw, and bytes are mostly refused.
        if seed % 5 == 0:
            tried(seed, ("report", record, "--out", tmp_path / "p.html"))
        assert {path.name for path in tmp_path.iterdir()} <= {"r.json", "p.html"}, seed


def test_mutated_recipes(tmp_path):
    whole = b'optimizer = "gsam"\nrho = 0.3\nepochs = 2\nmilestones = [1, 2]\n[optimizer_args]\nalpha = 0.7\n'
    path = tmp_path / "r.toml"
    for seed in range(2 * BUDGET):
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
    for seed in range(2 * BUDGET):
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


def test_mutated_options_from_a_file(tmp_path):
    whole = b'seed = 3\nrtol = 0.05\n[measure]\nmeasure = ["trace", "frob"]\nper-layer = true\n[track]\nlr = 0.1\n'
    path, group = tmp_path / "c.toml", typer.main.get_command(app)
    for seed in range(2 * BUDGET):
        path.write_bytes(mutated(whole, random.Random(seed)))
        try:
            line = merged(["measure", "a.pt", "--config", str(path)], group, {})
        except process.UsageError as error:
            assert str(path) in str(error), seed  # noqa: PT017  # any sentence that names the file
            continue
        assert line.words[0] == "measure", seed
        assert line.words[-1] == "a.pt", seed


def test_command_lines_of_strange_words(tried, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = ("measure", "sharpness", "landscape", "compare", "plot", "info", "report", "invariance", "track", "x")
    words = ("--seed", "--rtol", "--probes", "--json", "--k", "--measure", "--dtype", "--memory", "--examples", "no.pt",
             "9" * 30, "9" * 5000, "-1", "1e400", "nan", "", "\udcff", "a\x00b", "m" * 300, "--", "-", "--rtol=", "=",
             "trace", "\x1b[31m", "../..", "/dev/zero", "--device", "cuda:99", "--out", "--force")  # fmt: skip
    for seed in range(2 * BUDGET):
        draw = random.Random(seed)
        line = [draw.choice(commands), *draw.choices(words, k=draw.randrange(1, 6))]
        tried((seed, line), line, most=len(line) if line[0] in ("compare", "plot") else 1)
    assert list(tmp_path.iterdir()) == []
