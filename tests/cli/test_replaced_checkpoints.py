from __future__ import annotations

import shutil

import pytest

from hessprobe.training import load_checkpoint


@pytest.fixture
def here(digits_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(digits_checkpoint, "digits.pt")
    return tmp_path


def test_training_does_not_replace_the_checkpoint_of_another_run(run, here):
    train = ("train", "--model", "mlp:hidden=4", "--subset", "0.1", "--epochs", "1", "--out", "a.pt")
    assert run(*train).code == 0
    first = (here / "a.pt").read_bytes()
    done = run(*train, "--seed", "3")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "hessprobe: error: --out must not replace the checkpoint of another run; got 'a.pt' (seed: there 0, here 3). "
        "Choose another name, or pass --force.\n"
    )
    other_model = run(*(word.replace("hidden=4", "hidden=5") for word in train))
    assert "(model: there mlp:hidden=4, here mlp:hidden=5)" in other_model.err
    assert (here / "a.pt").read_bytes() == first
    # The same run makes the same file again, and --force any.
    assert run(*train).code == 0
    assert run(*train, "--seed", "3", "--force").code == 0
    assert load_checkpoint("a.pt").recipe["seed"] == 3


def test_training_does_not_replace_a_checkpoint_it_cannot_read(run, here):
    content = bytearray((here / "digits.pt").read_bytes())
    content[len(content) // 2] ^= 255
    (here / "damaged.pt").write_bytes(content)
    done = run("train", "--model", "mlp:hidden=4", "--subset", "0.1", "--epochs", "1", "--out", "damaged.pt")
    assert done.code == 2
    assert "got 'damaged.pt' (format: there damaged or of another version)." in done.err
    assert (here / "damaged.pt").read_bytes() == bytes(content)


def test_the_demonstration_replaces_what_it_made_and_no_other_checkpoint(run, here, monkeypatch):
    from hessprobe.cli.commands import demo

    for name, value in {"_MODEL": "mlp:hidden=4", "_EPOCHS": 1, "_OPTIMIZERS": ("sgd",)}.items():
        monkeypatch.setattr(demo, name, value)
    training = demo.steps_of

    monkeypatch.setattr(
        demo, "steps_of", lambda *given: [each for each in training(*given) if each.words[0] == "train"]
    )
    monkeypatch.setattr(demo, "_figures", lambda *_: None)
    monkeypatch.setattr(demo, "_print_table", lambda *_: None)
    shutil.copy("digits.pt", "sgd.pt")
    refused = run("demo", "--out", ".", "--no-open")
    assert refused.code == 2
    assert "--out must not replace the checkpoint of another run; got 'sgd.pt'" in refused.err
    assert run("demo", "--out", ".", "--no-open", "--force").code == 0
    assert load_checkpoint("sgd.pt").model_arguments["hidden"] == 4
    # Of another seed, but its own.
    assert run("demo", "--out", ".", "--no-open", "--seed", "1").code == 0
    assert load_checkpoint("sgd.pt").recipe["seed"] == 1
