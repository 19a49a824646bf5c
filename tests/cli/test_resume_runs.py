from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hessprobe.hvp.batch_products import BatchOperator
from hessprobe.hvp.engines import Product
from hessprobe.hvp.pool import ProductPool
from hessprobe.sharpness.neighborhood import Neighborhood

ROOT = Path(__file__).parents[2]
WORK = ("-m", "lambda-max", "-m", "trace", "-m", "frob", "--examples", "60", "--batch-size", "25")


class Killed(BaseException):
    """As abrupt as a process can end that goes on to test what it left."""


@pytest.fixture
def products(monkeypatch):
    """Count products, and end the run at one of them: ``products(at=5)``; the counter comes back."""
    state = {"made": 0, "at": None}
    whole, term = ProductPool._sum, BatchOperator._multiplied

    def counted(original):
        def make(self, *arguments):
            if state["made"] == state["at"]:
                raise Killed
            state["made"] += 1
            return original(self, *arguments)

        return make

    monkeypatch.setattr(ProductPool, "_sum", counted(whole))
    monkeypatch.setattr(BatchOperator, "_multiplied", counted(term))
    for name in ("_sum", "_slope"):
        monkeypatch.setattr(Neighborhood, name, counted(getattr(Neighborhood, name)))

    def begin(at=None):
        state.update(made=0, at=at)
        return state

    return begin


def numbers(path):
    """A record without what differs between two runs of one command: times and their seconds."""

    def cleaned(value):
        if isinstance(value, dict):
            return {key: cleaned(each) for key, each in value.items() if key not in ("seconds", "cost", "engine")}
        return [cleaned(each) for each in value] if isinstance(value, list) else value

    record = json.loads(path.read_text())
    return cleaned({key: record[key] for key in ("results", "data", "checkpoint") if key in record})


def test_a_run_killed_anywhere_goes_on_to_the_same_numbers(run, digits_checkpoint, tmp_path, products):
    counter = products()
    words = ("measure", digits_checkpoint, *WORK, "--engine", "double-backward")
    assert run(*words, "--json", tmp_path / "whole.json").code == 0
    total = counter["made"]
    assert total > 20
    assert [path.name for path in tmp_path.iterdir()] == ["whole.json"]
    path = tmp_path / "cut.json"
    for at in (0, 1, total // 2, total - 1):
        products(at=at)
        with pytest.raises(Killed):
            run(*words, "--json", path)
        assert not path.exists()
        counter = products()
        done = run(*words, "--json", path, "--resume")
        assert done.code == 0
        assert counter["made"] == total - at
        assert numbers(path) == numbers(tmp_path / "whole.json")
        assert not (tmp_path / "cut.json.journal").exists()
        path.unlink()


SMALL = ("--examples", "40", "--batch-size", "25", "--engine", "double-backward")


@pytest.mark.parametrize(
    "words",
    [
        ("sharpness", "A", *SMALL, "--rho", "0.05", "--probes", "4", "--diagnostics"),
        ("invariance", "A", *SMALL, "-m", "trace", "--probes", "4"),
        ("compare", "A", "B", *SMALL, "-m", "trace", "-m", "frob", "--probes", "4"),
    ],
)
def test_other_commands_go_on_as_well(run, digits_checkpoint, tmp_path, products, monkeypatch, words):
    import torch

    from hessprobe.journal import Journal

    kept, keep = [], Journal.keep_product
    monkeypatch.setattr(Journal, "keep_product", lambda self, key, made: (kept.append(key), keep(self, key, made))[1])
    content = torch.load(digits_checkpoint, weights_only=True)
    content["state_dict"]["layers.0.weight"] *= 1.1
    torch.save(content, tmp_path / "b.pt")
    words = [{"A": str(digits_checkpoint), "B": str(tmp_path / "b.pt")}.get(word, word) for word in words]
    counter = products()
    assert run(*words, "--json", tmp_path / "whole.json").code == 0
    total = counter["made"]
    assert total > 4
    kept.clear()
    at = total * 2 // 3
    products(at=at)
    with pytest.raises(Killed):
        run(*words, "--json", tmp_path / "cut.json")
    counter, before = products(), len(kept)
    assert run(*words, "--json", tmp_path / "cut.json", "--resume").code == 0
    # None is made twice, and none without being written down.
    assert len(set(kept)) == len(kept)
    assert 0 < counter["made"] <= len(kept) - before
    if words[0] != "sharpness":
        # Its searches stop on float32 losses, whose last digits (and once in many runs a step more) differ.
        assert counter["made"] == total - at
    assert numbers(tmp_path / "cut.json") == numbers(tmp_path / "whole.json")
    assert not list(tmp_path.glob("*.journal"))


def test_the_engine_that_was_chosen_by_time_is_kept(run, digits_checkpoint, tmp_path, products, monkeypatch):
    from hessprobe.hvp import batch_products

    words = ("measure", digits_checkpoint, "-m", "lambda-max", "--examples", "40", "--json", tmp_path / "r.json")
    products(at=6)
    with pytest.raises(Killed):
        run(*words)
    monkeypatch.setattr(batch_products, "choose", lambda *_: pytest.fail("chosen again"))
    products()
    assert run(*words, "--resume").code == 0


def test_a_process_that_is_killed_leaves_a_journal_to_go_on_from(run, digits_checkpoint, tmp_path):
    program = """
import os, signal, sys
from hessprobe.hvp.pool import ProductPool
made, original = [], ProductPool._sum
def make(self, V):
    made.append(1)
    if len(made) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, V)
ProductPool._sum = make
from hessprobe.cli.app import main
main()
"""
    words = ["measure", str(digits_checkpoint), *WORK, "--engine", "double-backward"]
    record = tmp_path / "r.json"
    command = [sys.executable, "-c", program, *words, "--json", str(record)]
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL
    done = run(*words, "--json", record, "--resume")
    assert done.code == 0
    assert done.err.startswith(f"hessprobe: going on from {record}.journal: ")
    assert done.err.endswith(" products are known\n")
    assert run(*words, "--json", tmp_path / "whole.json").code == 0
    assert numbers(record) == numbers(tmp_path / "whole.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "whole.json"]


def test_what_a_journal_is_refused_for(run, digits_checkpoint, tmp_path, products):
    record = tmp_path / "r.json"
    words = ("measure", digits_checkpoint, "-m", "lambda-max", "--examples", "40", "--engine", "double-backward")
    products(at=3)
    with pytest.raises(Killed):
        run(*words, "--json", record)
    products()
    for more, difference in (
        (("--seed", "1"), "--seed was 0 and is 1"),
        (("--split", "test"), "--split was None and is 'test'"),
    ):
        done = run(*words, *more, "--json", record, "--resume")
        assert done.code == 1
        assert f"error: {record}.journal is the journal of another run: {difference}. Give the same" in done.err
    other = run("measure", digits_checkpoint, "-m", "frob", "--json", record, "--resume")
    assert "--measure was ['lambda-max'] and is ['frob']" in other.err
    done = run(*words, "--resume")
    assert (done.code, "--resume needs --json FILE" in done.err) == (2, True)
    done = run(*words, "--json", record)
    assert (done.code, f"note: {record}.journal, of a stopped run, is replaced" in done.err) == (0, True)
    done = run(*words, "--json", record, "--resume")
    assert (done.code, f"note: there is no {record}.journal to go on from" in done.err) == (0, True)


def test_an_interrupted_run_keeps_its_journal_and_writes_what_it_has(run, digits_checkpoint, tmp_path, monkeypatch):
    calls, original = [], Product.__call__

    def interrupted(self, V):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return original(self, V)

    monkeypatch.setattr(Product, "__call__", interrupted)
    words = ("measure", digits_checkpoint, *WORK, "--engine", "double-backward", "--json", tmp_path / "r.json")
    stopped = run(*words)
    assert stopped.code == 130
    assert json.loads((tmp_path / "r.json").read_text())["flags"] == ["interrupted"]
    assert (tmp_path / "r.json.journal").exists()
    monkeypatch.undo()
