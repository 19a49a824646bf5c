from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from hessprobe.errors import CheckpointError
from hessprobe.training import DataSpec, Recipe, foreign_checkpoint, load_checkpoint, save_checkpoint
from hessprobe.training import checkpoint as module
from hessprobe.training.building import build_optimizer
from hessprobe.training.datasets import load_dataset
from hessprobe.training.loop import train
from hessprobe.training.models import build_model, complete_arguments


def make(path, name="mlp", layout="vector", **given):
    data, recipe = load_dataset("digits"), Recipe(epochs=1, batch_size=256)
    arguments = complete_arguments(name, given, data.implied_arguments)
    trained = train(build_model(name, arguments), data, recipe, layout=layout)
    save_checkpoint(
        path,
        model=trained.model,
        model_name=name,
        model_arguments=arguments,
        data=DataSpec("digits", layout, data.sha256),
        recipe=recipe,
        optimizer=trained.optimizer,
        metrics=trained.metrics,
    )
    return trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "mlp.pt"
    return path, make(path, hidden=[8])


def edited(path, target, **changes):
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save(content, target)
    return target


def test_round_trip_gives_the_same_network_and_everything_known_about_it(trained):
    path, run = trained
    loaded = load_checkpoint(path)
    inputs = torch.rand(5, 64)
    assert torch.equal(loaded.model(inputs), run.model(inputs))
    assert not loaded.model.training
    assert loaded.model_arguments == {
        "in_features": 64,
        "hidden": [8],
        "n_classes": 10,
        "activation": "relu",
        "norm": "none",
    }
    assert loaded.recipe == Recipe(epochs=1, batch_size=256).as_dict()
    assert loaded.metrics == run.metrics
    assert loaded.n_parameters == 64 * 8 + 8 + 8 * 10 + 10
    assert loaded.versions["torch"] == str(torch.__version__)
    assert loaded.sha256 == module.file_sha256(path)


def test_optimizer_state_continues_the_run(trained):
    path, run = trained
    state = load_checkpoint(path).optimizer
    assert state["name"] == "sgd"
    fresh = build_optimizer(Recipe(), build_model("mlp", {"hidden": [8]}), 1, 1)
    fresh.load_state_dict(state["state"])
    kept = [entry["momentum_buffer"] for entry in run.optimizer.state.values()]
    again = [entry["momentum_buffer"] for entry in fresh.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert len(kept) == 4


def test_file_is_read_by_torch_alone_without_code(trained):
    content = torch.load(trained[0], weights_only=True)
    assert content["format"] == "hessprobe.checkpoint"
    assert set(content) >= {"version", "model", "data", "loss", "recipe", "optimizer", "metrics", "state_dict"}


def test_batchnorm_statistics_travel(tmp_path):
    run = make(tmp_path / "cnn.pt", "cnn", "image", widths=[3, 4])
    loaded = load_checkpoint(tmp_path / "cnn.pt")
    assert torch.equal(loaded.model.features[1].running_mean, run.model.features[1].running_mean)
    assert float(loaded.model.features[1].running_mean.abs().max()) > 0
    assert loaded.risk(batchnorm="batch").dim == loaded.n_parameters


def test_risk_is_the_training_loss_of_the_split(trained):
    path, run = trained
    loaded = load_checkpoint(path)
    for split in ("train", "test"):
        risk = loaded.risk(split, batch_size=100)
        assert float(risk.loss()) == pytest.approx(run.metrics[f"{split}_loss"], rel=1e-5)
    everything = loaded.risk("all")
    mixed = (1433 * run.metrics["train_loss"] + 364 * run.metrics["test_loss"]) / 1797
    assert float(everything.loss()) == pytest.approx(mixed, rel=1e-5)


def test_risk_options_reach_it_and_leave_the_model_alone(trained):
    loaded = load_checkpoint(trained[0])
    before = loaded.model.layers[0].weight.clone()
    risk = loaded.risk(examples=50, batch_size=20, dtype=torch.float64, params="layers.0.*")
    described = risk.describe()
    assert (described["examples"], described["batches"], described["dtype"]) == (50, 3, "float64")
    assert risk.dim == 64 * 8 + 8
    assert loaded.model.layers[0].weight.dtype == torch.float32
    assert torch.equal(loaded.model.layers[0].weight, before)
    single = loaded.risk(examples=50, batch_size=20, params="layers.0.*")
    assert float(single.loss()) == pytest.approx(float(risk.loss()), rel=1e-6)
    assert loaded.risk(examples=50, seed=1).fingerprint() != loaded.risk(examples=50, seed=2).fingerprint()
    with pytest.raises(ValueError, match=r"examples must be at most 1433"):
        loaded.risk(examples=5000)


def test_changed_data_are_noticed(trained):
    loaded = load_checkpoint(trained[0])
    other = dataclasses.replace(loaded, data=dataclasses.replace(loaded.data, sha256="0" * 64))
    with pytest.raises(
        CheckpointError, match=r"trained on data 'digits' with hash 000000000000, but here they hash to"
    ):
        other.risk()


def test_missing_and_empty_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.pt does not exist\. Check the path\."):
        load_checkpoint(tmp_path / "no.pt")
    with pytest.raises(CheckpointError, match=r"is a folder, not a checkpoint"):
        load_checkpoint(tmp_path)
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CheckpointError, match=r"empty\.pt is empty"):
        load_checkpoint(tmp_path / "empty.pt")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_file(trained, tmp_path, share):
    whole = trained[0].read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pt is truncated, damaged or not a PyTorch file\. Copy or save"):
        load_checkpoint(tmp_path / "cut.pt")


def test_one_flipped_bit_in_a_weight_is_seen(trained, tmp_path):
    raw = bytearray(trained[0].read_bytes())
    weight = load_checkpoint(trained[0]).model.layers[0].weight.detach().numpy().tobytes()
    raw[raw.index(weight) + 5] ^= 1
    (tmp_path / "flip.pt").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"flip\.pt is damaged: the checksum of .* is wrong"):
        load_checkpoint(tmp_path / "flip.pt")


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["PAYLOAD"],)


def test_code_in_a_pickle_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    torch.save({"format": "hessprobe.checkpoint", "model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(
        CheckpointError, match=r"holds a Python object \(\w+\.mkdir\), which could run code .*nothing was"
    ):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_foreign_content_says_what_to_pass(tmp_path):
    torch.save(build_model("mlp", {}).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(
        CheckpointError,
        match=r"is a plain state_dict: .*--model FILE.py:FUNCTION --data npz:FILE; or --objective FILE.py:FUNCTION",
    ):
        load_checkpoint(tmp_path / "plain.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"is not a hessprobe checkpoint\. Make one with 'hessprobe train'"):
        load_checkpoint(tmp_path / "list.pt")


def test_newer_format_and_missing_entries(trained, tmp_path):
    newer = edited(trained[0], tmp_path / "new.pt", version=3)
    with pytest.raises(CheckpointError, match=r"has checkpoint format 3, but this hessprobe reads up to 2\. Update"):
        load_checkpoint(newer)
    broken = edited(trained[0], tmp_path / "broken.pt", recipe=None)
    with pytest.raises(CheckpointError, match=r"has no usable entry 'recipe'"):
        load_checkpoint(broken)
    unknown = edited(trained[0], tmp_path / "unknown.pt", model={"name": "vti", "arguments": {}})
    with pytest.raises(CheckpointError, match=r"cannot build: model must be one of mlp, .*; got 'vti'"):
        load_checkpoint(unknown)


@pytest.mark.parametrize("name", ["name", "layout", "sha256"])
def test_data_of_a_wrong_kind_are_named(trained, tmp_path, name):
    data = torch.load(trained[0], weights_only=True)["data"]
    odd = edited(trained[0], tmp_path / "odd.pt", data={**data, name: 1.5})
    with pytest.raises(CheckpointError, match=f"cannot build: the {name} of data must be a text; got float"):
        load_checkpoint(odd)


def test_weights_that_do_not_fit_name_the_tensor(trained, tmp_path):
    state = torch.load(trained[0], weights_only=True)["state_dict"]
    cases = {
        r"has layers\.2\.weight of shape \(10, 9\), but the model has \(10, 8\)": {
            **state,
            "layers.2.weight": torch.zeros(10, 9),
        },
        r"has nan or inf in 2 of the 8 entries of layers\.0\.bias\. Its training diverged": {
            **state,
            "layers.0.bias": torch.tensor([float("nan"), float("inf"), 0, 0, 0, 0, 0, 0]),
        },
        r"lacks layers\.0\.bias and has unknown extra\.": {
            **{key: value for key, value in state.items() if key != "layers.0.bias"},
            "extra": torch.zeros(1),
        },
        r"has a list as layers\.0\.bias, where the model has a tensor\. Save it again\.": {
            **state,
            "layers.0.bias": [0.0] * 8,
        },
    }
    for message, changed in cases.items():
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(edited(trained[0], tmp_path / "odd.pt", state_dict=changed))


def test_failed_save_leaves_the_old_file(trained, tmp_path, monkeypatch):
    target = tmp_path / "a.pt"
    target.write_bytes(b"old")

    def interrupted(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(
            target,
            model=trained[1].model,
            model_name="mlp",
            model_arguments={},
            data=DataSpec("digits", "vector"),
            recipe=Recipe(),
            optimizer=trained[1].optimizer,
            metrics={},
        )
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("form", ["plain", "wrapped", "ddp", "safetensors"])
def test_plain_weights_become_a_checkpoint(trained, tmp_path, form):
    model = trained[1].model
    state, path = model.state_dict(), tmp_path / "weights.pt"
    if form == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        path = tmp_path / "weights.safetensors"
        safetensors.save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif form == "ddp":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = foreign_checkpoint(path, "mlp", {"hidden": [8]}, "digits")
    assert torch.equal(loaded.model.layers[0].weight, model.layers[0].weight)
    assert float(loaded.risk().loss()) == pytest.approx(trained[1].metrics["train_loss"], rel=1e-5)


def test_plain_weights_that_are_none(tmp_path):
    torch.save({"a": 1}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds no state_dict"):
        foreign_checkpoint(tmp_path / "a.pt", "mlp", {}, "digits")
    (tmp_path / "a.safetensors").write_bytes(b"\x01" * 40)
    pytest.importorskip("safetensors")
    with pytest.raises(CheckpointError, match=r"is truncated or not a safetensors file"):
        foreign_checkpoint(tmp_path / "a.safetensors", "mlp", {}, "digits")


def test_format_1_still_loads_with_the_meaning_it_had(trained, tmp_path):
    content = torch.load(trained[0], weights_only=True)
    del content["progress"]
    content["version"] = 1
    content["data"] = {key: content["data"][key] for key in ("name", "layout", "sha256")}
    content["recipe"] = {key: content["recipe"][key] for key in ("optimizer", "epochs", "lr", "seed")}
    torch.save(content, tmp_path / "old.pt")
    loaded = load_checkpoint(tmp_path / "old.pt")
    assert loaded.data == DataSpec("digits", "vector", load_dataset("digits").sha256)
    assert loaded.progress == {}
    assert float(loaded.risk().loss()) == pytest.approx(trained[1].metrics["train_loss"], rel=1e-5)


def test_resnet_of_format_1_has_three_stages(tmp_path):
    arguments = {"blocks": 1, "width": 2, "in_channels": 1, "n_classes": 10}
    path = tmp_path / "r.pt"
    make(path, "resnet", "image", **arguments)
    content = torch.load(path, weights_only=True)
    content |= {"version": 1, "model": {"name": "resnet", "arguments": arguments}}
    torch.save(content, path)
    assert load_checkpoint(path).n_parameters == sum(p.numel() for p in build_model("resnet", arguments).parameters())
