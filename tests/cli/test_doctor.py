from __future__ import annotations

import json
import sys
from importlib import metadata

import pytest
import torch

from hessprobe import estimators, hvp
from hessprobe.cli.commands import doctor

CPU = torch.device("cpu")


def by_name(findings):
    return {each.what: each for each in findings}


def test_an_installation_in_order(run, monkeypatch):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    done = run("doctor", "--json", "-")
    assert (done.code, done.err) == (0, "")
    record = json.loads(done.out)
    rows = {row["what"]: row for row in record["results"]}
    assert rows["torch"]["found"] == metadata.version("torch")
    assert rows["self-test cpu"]["found"].startswith("6 numbers of 64 known eigenvalues are right")
    assert {row["state"] for row in rows.values()} <= {"ok", "note"}
    shown = run("doctor")
    assert shown.code == 0
    assert shown.out.splitlines()[-1] == "everything is in order"


class Scaled:
    """An operator whose products are off by a factor."""

    def __init__(self, made, factor):
        self.made, self.factor = made, factor

    def __call__(self, *given, **more):
        return self.factor * self.made(*given, **more)


def test_products_that_are_off_are_found(run, monkeypatch):
    monkeypatch.setattr(hvp, "Hessian", Scaled(hvp.Hessian, 1 + 1e-8))
    found = doctor.self_test(CPU)
    assert (found.state, found.found) == ("wrong", "a product is off by 1e-08 of its size")
    done = run("doctor")
    assert done.code == 1
    assert "Numbers of this device are not to be trusted." in done.out
    assert done.out.splitlines()[-1] == "1 thing wrong"


@pytest.mark.parametrize(
    ("module", "name", "shown"),
    [
        (estimators, "trace", "trace"),
        (estimators, "frobenius_norm", "frob"),
        (estimators, "spectral_sketch", "logdet"),
        (sys.modules["hessprobe.krylov.eigsh"], "eigsh", "lambda-max"),
    ],
)
def test_every_number_of_the_self_test_is_compared(monkeypatch, module, name, shown):
    genuine = getattr(module, name)
    monkeypatch.setattr(module, name, lambda A, **how: genuine(1.1 * A, **how))
    found = doctor.self_test(CPU)
    assert found.state == "wrong"
    assert found.found.startswith(f"{shown} ")
    assert " in place of " in found.found


def test_a_self_test_that_breaks_is_wrong_and_ends_nothing(monkeypatch):
    monkeypatch.setattr(hvp, "Hessian", lambda *_: 1 / 0)
    found = doctor.self_test(CPU)
    assert (found.state, found.mend) == ("wrong", "Please report it, with this line.")


def test_versions_that_are_too_old_or_missing_are_named_with_the_command(monkeypatch):
    genuine = metadata.version

    def version(package):
        if package == "datasets":
            raise metadata.PackageNotFoundError(package)
        return {"torch": "2.8.1+cpu", "numpy": "10.0"}.get(package) or genuine(package)

    # The bounds of the day, which are others from time to time.
    monkeypatch.setattr(
        metadata, "requires", lambda package: ["torch>=2.9", "numpy>=2.0", "peft>=0.15; extra == 'dev'"]
    )
    monkeypatch.setattr(metadata, "version", version)
    found = by_name(doctor.versions())
    assert "peft" not in found
    assert (found["torch"].state, found["torch"].found) == ("wrong", "2.8.1+cpu, needs 2.9")
    assert found["torch"].mend == "Run pip install -U 'torch>=2.9'."
    assert found["numpy"].state == "ok"
    assert (found["datasets"].state, found["datasets"].mend) == (
        "note",
        "Only if you need it: pip install 'hessprobe[hf]'.",
    )


@pytest.mark.parametrize(
    ("built", "driver", "state", "word"),
    [(None, False, "note", ""), (None, True, "wrong", "built without CUDA"), ("12.8", True, "wrong", "nvidia-smi")],
)
def test_a_gpu_that_torch_does_not_see_is_told(built, driver, state, word):
    found = doctor._without_gpu(built, driver)
    assert found.state == state
    assert word in found.mend


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    (found,) = doctor._machine()
    assert (found.state, "load 99.0" in found.mend) == ("note", True)
