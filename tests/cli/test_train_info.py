from __future__ import annotations

import json

import pytest
import torch

from hessprobe import report
from hessprobe.training import load_checkpoint
from hessprobe.training import loop as loop_module


def test_training_writes_a_checkpoint_and_says_how_good_it_is(run, tmp_path):
    path = tmp_path / "a.pt"
    done = run("train", "--model", "mlp:hidden=8,activation=tanh", "--optimizer", "adamw", "--epochs", "2", "--lr",
               "0.01", "--seed", "3", "--out", path, "--json", tmp_path / "a.json")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    loaded = load_checkpoint(path)
    assert loaded.model_arguments["activation"] == "tanh"
    assert {key: loaded.recipe[key] for key in ("optimizer", "epochs", "lr", "seed")} == {
        "optimizer": "adamw",
        "epochs": 2,
        "lr": 0.01,
        "seed": 3,
    }
    assert f"{loaded.metrics['test_accuracy']:.2%}" in done.out
    assert f"wrote {path}: 610 parameters" in done.out
    record = report.read_record(tmp_path / "a.json")
    assert record["checkpoint"]["sha256"] == loaded.sha256
    assert record["training"]["metrics"] == loaded.metrics


def test_same_command_same_weights(run, tmp_path):
    for name in ("a.pt", "b.pt"):
        assert run("train", "--model", "mlp:hidden=8", "--epochs", "1", "--out", tmp_path / name).code == 0
    first, second = (load_checkpoint(tmp_path / name).model.state_dict() for name in ("a.pt", "b.pt"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_cnn_takes_its_channels_from_the_data(run, tmp_path):
    done = run("train", "--model", "cnn:widths=2-3", "--epochs", "1", "--out", tmp_path / "c.pt", "--json", "-")
    assert done.code == 0
    record = json.loads(done.out)
    assert record["checkpoint"]["model"]["arguments"] == {"in_channels": 1, "widths": [2, 3], "n_classes": 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "mpl"], "model must be one of mlp, cnn, resnet, gpt; got 'mpl'. Did you mean 'mlp'?"),
        (["--model", "mlp:hiden=3"], "Did you mean 'hidden'?"),
        (["--model", "gpt"], "layout must be one of vector, image for data 'digits'; got 'tokens'."),
        (["--data", "digit"], "data must be one of digits; got 'digit'. Did you mean 'digits'?"),
        (["--optimizer", "adam"], "optimizer must be one of sgd, adamw; got 'adam'. Did you mean 'adamw'?"),
        (["--lr", "0"], "lr must be a finite number > 0; got 0.0."),
        (["--lr", "nan"], "lr must be a finite number > 0; got nan."),
        (["--epochs", "-1"], "epochs must be an integer >= 0; got -1."),
        (["--seed", "-1"], "--seed must be an integer >= 0; got -1."),
        (["--device", "cuda:99"], "--device must be a device of this machine (cpu"),
        (["--device", "gpu"], "got 'gpu'."),
        (["--json", "no/such/r.json"], "--json must lie in an existing folder; got 'no/such/r.json'."),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run, tmp_path, arguments, message):
    done = run("train", "--epochs", "1", "--out", tmp_path / "a.pt", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_output_folder_is_checked_before_training(run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "_step", lambda *_: pytest.fail("training began"))
    done = run("train", "--out", tmp_path / "no" / "a.pt")
    assert done.code == 2
    assert "--out must lie in an existing folder" in done.err


def test_diverging_training_fails_with_one_line_and_no_file(run, tmp_path):
    done = run("train", "--lr", "1e30", "--out", tmp_path / "a.pt")
    assert done.code == 1
    assert "training loss became" in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(run, tmp_path):
    done = run("train", "--lr", "1e30", "--out", tmp_path / "a.pt", "--debug")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err


def test_interrupted_training_writes_nothing(run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "_step", interrupt)
    done = run("train", "--out", tmp_path / "a.pt")
    assert (done.code, done.err) == (130, "hessprobe: interrupted; no checkpoint was written\n")
    assert list(tmp_path.iterdir()) == []


def test_info_shows_what_the_checkpoint_says(run, digits_checkpoint):
    done = run("info", digits_checkpoint)
    loaded = load_checkpoint(digits_checkpoint)
    assert done.code == 0
    for text in ("mlp", loaded.sha256, loaded.data.sha256, f"{loaded.metrics['test_loss']:.6g}", "sgd"):
        assert text in done.out
    record = json.loads(run("info", digits_checkpoint, "--json", "-").out)
    assert record["command"] == "info"
    assert record["checkpoint"]["recipe"]["epochs"] == 3


def test_info_on_what_is_not_a_checkpoint(run, tmp_path):
    done = run("info", tmp_path / "no.pt")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("no.pt does not exist. Check the path.\n")
