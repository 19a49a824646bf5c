from __future__ import annotations

import json
import shutil

import pytest
import torch

from hessprobe.training import load_checkpoint


@pytest.fixture
def here(digits_checkpoint, tmp_path, monkeypatch):
    """A folder with a checkpoint, its bare weights, and a record."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(digits_checkpoint, "digits.pt")
    torch.save(load_checkpoint("digits.pt").model.state_dict(), "plain.pt")
    record = {"schema": "hessprobe.record/1", "command": "measure", "results": []}
    (tmp_path / "record.json").write_text(json.dumps(record, indent=1))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (
            ["measure", "digits.pt", "--device", "gpu"],
            2,
            "--device must be a device of this machine (cpu); got 'gpu'. torch sees no GPU here. Write --device cpu",
        ),
        (
            ["measure", "digits.pt", "--data", "cifar10"],
            2,
            "--data must be left out for digits.pt, which names its own; got 'cifar10'.",
        ),
        (
            ["measure", "plain.pt", "--model", "mlp", "--data", "cifar10"],
            2,
            "got 'cifar10'. Nothing is fetched unasked: write image-folder:PATH",
        ),
        (
            ["plot", "digits.pt"],
            2,
            "RECORD must be a record; got the checkpoint 'digits.pt'. Measure it first: hessprobe measure digits.pt "
            "--json digits.json",
        ),
        (
            ["info", "record.json"],
            2,
            "CKPT must be a checkpoint; got the record 'record.json' of hessprobe measure. See it with: "
            "hessprobe report record.json",
        ),
        (["measure", "record.json"], 2, "CKPT must be a checkpoint; got the record 'record.json' of hessprobe measure"),
        (["compare", "digits.pt", "absent.pt"], 1, "hessprobe: error: absent.pt does not exist. Check the path."),
        (["measure", "plain.pt", "--data", "digits"], 2, "--model and --data must be given together"),
    ],
)
def test_a_file_in_the_wrong_place_is_told_what_it_is_and_what_takes_it(run, here, monkeypatch, words, code, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = run(*words)
    assert (done.code, done.out) == (code, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_weights_without_an_ending_are_known_by_what_they_hold(run, here):
    shutil.copy("digits.pt", "weights")
    assert "got the checkpoint 'weights'" in run("plot", "weights").err
    assert "got the checkpoint 'weights'" in run("report", "weights").err


def test_gpu_is_cuda_where_there_is_one(monkeypatch):
    from hessprobe.cli import load
    from hessprobe.cli.process import UsageError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"\(cpu, cuda:0, cuda:1\); got 'gpu'. Write --device cuda, or leave it out"):
        load.resolve_device("gpu")


def test_compare_measures_nothing_where_a_file_is_missing(run, here, monkeypatch):
    from hessprobe.cli import load

    monkeypatch.setattr(load, "load_subject", lambda *_, **__: pytest.fail("it began to work"))
    assert run("compare", "digits.pt", "absent.pt", "--json", "c.json").code == 1
    assert not (here / "c.json").exists()
