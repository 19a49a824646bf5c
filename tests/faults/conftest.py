from __future__ import annotations

import shutil

import forked
import pytest
import stand_ins
import torch
from runs import ENGINE, SMALL, line

from hessprobe import validation
from hessprobe.estimators import trace
from hessprobe.hvp import Hessian
from hessprobe.objective import EmpiricalRisk
from hessprobe.validation import Claim, Finding
from hessprobe.validation.claim import agrees


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """Two checkpoints, and those on the way of the first."""
    folder = tmp_path_factory.mktemp("faults") / "work"
    folder.mkdir()
    model = ("--model", "mlp:hidden=8", "--threads", "1")
    assert forked.run(["train", *model, "--epochs", "1", "--save-every", "1", "--out", "a.pt"], folder).code == 0
    assert forked.run(["train", *model, "--epochs", "1", "--seed", "1", "--out", "b.pt"], folder).code == 0
    measured = ("measure", "a.pt", "-m", "trace", "-m", "frob", "--probes", "4", *SMALL, *ENGINE)
    assert forked.run([*measured, "--json", "m.json"], folder).code == 0
    return folder


@pytest.fixture
def begin(material, tmp_path):
    """A new folder with the checkpoints: ``begin("name") -> Path``."""

    def make(name):
        folder = tmp_path / name / "work"
        shutil.copytree(material, folder)
        return folder

    return make


@pytest.fixture
def never_stopped(begin, small_claims, small_benchmarks, _known):
    """The run of a command that nothing ends, made once: ``never_stopped(name) -> (Run, folder)``."""

    def make(name):
        if name not in _known:
            words, _ = line(name)
            forked.warm(words, begin("warm"))
            folder = begin("whole")
            _known[name] = (forked.run(words, folder), folder)
        return _known[name]

    return make


@pytest.fixture(scope="session")
def _known():
    return {}


@pytest.fixture(autouse=True)
def small_benchmarks(monkeypatch):
    """Benchmarks that take no time; children inherit them."""
    for module, name, instead in (*stand_ins.PARTS, *stand_ins.REST):
        monkeypatch.setattr(module, name, instead)


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
