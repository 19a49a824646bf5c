"""kill -9 at moments spread over a run of every command: the next run repeats at most one product, to the same bits.

``FAULT_MOMENTS`` sets at how many moments each command ends.
"""

from __future__ import annotations

import json
import os
import shutil

import forked
import pytest
import torch

from hessprobe import validation
from hessprobe.estimators import trace
from hessprobe.hvp import Hessian
from hessprobe.objective import EmpiricalRisk
from hessprobe.validation import Claim, Finding
from hessprobe.validation.claim import agrees

MOMENTS = int(os.environ.get("FAULT_MOMENTS", "4"))
SMALL = ("--examples", "20", "--batch-size", "12", "--threads", "1")
ENGINE = ("--engine", "double-backward")
PLANE = ("--examples", "20", "--threads", "1", "--no-overlays", "--out", "l.svg", "--json", "r.json", "--size")
# Each with what a second run of it is given.
COMMANDS = {
    "measure": (("measure", "a.pt", "-m", "lambda-max", "-m", "frob", "--probes", "4", *SMALL, *ENGINE), "--resume"),
    "sharpness": (("sharpness", "a.pt", *SMALL, *ENGINE, "--rho", "0.05", "--probes", "4"), "--resume"),
    "invariance": (("invariance", "a.pt", *SMALL, *ENGINE, "-m", "trace", "--probes", "4"), "--resume"),
    "compare": (("compare", "a.pt", "b.pt", *SMALL, *ENGINE, "-m", "trace", "--probes", "4"), "--resume"),
    "landscape of losses": (("landscape", "a.pt", *PLANE, "9"), None),
    "landscape of eigenvalues": (
        ("landscape", "a.pt", "--directions", "eigen", "--line", "--map", "lambda-max", *PLANE, "5"),
        None,
    ),
    "track": (("track", "a-epoch-0000.pt", "a-epoch-0001.pt", *SMALL, "-m", "frob", "--out", "t.svg"), None),
    "validate": (("validate",), "--resume"),
    "validate --coverage": (
        ("validate", "trace-gaussian", "--coverage", "--family", "flat", "--probes", "8,9,10,11", "--seeds", "40",
         "--confirm", "0", "--out", "v", "--json", "r.json"),
        None,
    ),
}  # fmt: skip
# Of a record: what differs between two runs of one command.
TIMES = frozenset({"seconds", "cost", "points_computed", "created", "started", "found", "finished"})


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """Two checkpoints, and those on the way of the first."""
    folder = tmp_path_factory.mktemp("faults") / "work"
    folder.mkdir()
    model = ("--model", "mlp:hidden=8", "--threads", "1")
    assert forked.run(["train", *model, "--epochs", "1", "--save-every", "1", "--out", "a.pt"], folder).code == 0
    assert forked.run(["train", *model, "--epochs", "1", "--seed", "1", "--out", "b.pt"], folder).code == 0
    return folder


@pytest.fixture
def begin(material, tmp_path):
    """A new folder with the checkpoints: ``begin("name") -> Path``."""

    def make(name):
        folder = tmp_path / name / "work"
        shutil.copytree(material, folder)
        return folder

    return make


@pytest.fixture(autouse=True)
def small_claims(monkeypatch):
    """Claims that take milliseconds, each with products; children inherit them."""

    def claim(seed):
        def check():
            generator = torch.Generator().manual_seed(seed)
            data = [(torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator))]
            risk = EmpiricalRisk(torch.nn.Linear(3, 2), torch.nn.MSELoss(), data)
            found = trace(Hessian(risk, engine="double_backward"), n_probes=4, seed=seed)
            return Finding((agrees("trace", found.value, found.value, 1.0),), note=f"{found.value!r}")

        return Claim(f"small/{seed}", "It holds.", "nobody", check)

    monkeypatch.setattr(validation, "select", lambda pattern, *, full: tuple(map(claim, range(4))))


def numbers(value):
    """A record without its times."""
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items() if key not in TIMES}
    return [numbers(each) for each in value] if isinstance(value, list) else value


def results(folder):
    record = json.loads((folder / "r.json").read_text())
    return numbers({key: record[key] for key in ("results", "data", "checkpoint", "timings", "flags") if key in record})


def spread(count):
    """``MOMENTS`` numbers over ``range(count)``, the first and the last among them."""
    return sorted({round(index * (count - 1) / max(MOMENTS - 1, 1)) for index in range(MOMENTS)})


def left_behind(folder, whole):
    """Files that a run that was never stopped does not leave."""
    return sorted({path.name for path in folder.rglob("*")} - {path.name for path in whole.rglob("*")})


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_loses_one_product_at_most_and_ends_at_the_same_bits(begin, name):
    words, resume = COMMANDS[name]
    words = [*words, *(() if "--json" in words else ("--json", "r.json"))]
    again = [*words, *([resume] if resume else [])]
    forked.warm(words, begin("warm"))
    whole = begin("whole")
    first = forked.run(words, whole)
    assert (first.code, first.err) == (0, "")
    assert first.begun > 15
    for number in spread(first.begun):
        folder = begin(str(number))
        killed = forked.run(words, folder, forked.Ending(number, ("kill", "torn")[number % 2]))
        assert killed.code == -9, (number, killed.err)
        if (folder / "r.json").exists() and not list(folder.glob("*.journal")):
            # Nothing is left to do, and the record is whole.
            assert results(folder) == results(whole)
            continue
        done = forked.run(again, folder)
        assert done.code == 0, (number, done.err)
        assert killed.products + done.products <= first.products + 1, number
        assert results(folder) == results(whole), number
        assert left_behind(folder, whole) == [], number
