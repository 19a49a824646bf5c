from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys

import pytest
import torch

from hessprobe.errors import CheckpointError, NonFiniteError
from hessprobe.training import Recipe, load_checkpoint, load_dataset, loop, train
from hessprobe.training import run as run_module
from hessprobe.training.models import build_model
from hessprobe.training.optimizers import names
from hessprobe.training.run import make_plan, read_state, train_to_file

SMALL = {"subset": 0.05, "batch_size": 30, "data": "digits", "epochs": 4}
MODELS = {
    "mlp": {"hidden": [8]},
    "cnn": {"widths": [2, 3]},
    "vit": {"patch": 4, "layers": 1, "d_model": 8, "n_heads": 2, "dropout": 0.3},
}


class StoppedError(Exception):
    pass


def plan(folder, model="mlp", save_every=None, **changes):
    recipe = Recipe(**{**SMALL, **changes})
    return make_plan(recipe, folder / "a.pt", model, MODELS[model], save_every=save_every)


def stop_after(epochs):
    def report(epoch):
        if epoch.epoch == epochs:
            raise StoppedError

    return report


def stop_and_resume(one, epochs=3):
    """Stop after the last step of an epoch, of which the state before that step is there; go on from it."""
    with pytest.raises(StoppedError):
        train_to_file(one, report=stop_after(epochs))
    state = read_state(one)
    assert (state["epoch"], state["step"]) == (epochs - 1, 2)
    return train_to_file(one, resume=True)


def same(first, second):
    """Equal to the last bit: weights, buffers, optimizer state, curve."""
    states = [each.model.state_dict() for each in (first, second)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert first.metrics["curve"] == second.metrics["curve"]
    left, right = (each.optimizer.state_dict() for each in (first, second))
    assert set(left["state"]) == set(right["state"])
    for key, entries in left["state"].items():
        for name, value in entries.items():
            other = right["state"][key][name]
            assert torch.equal(value, other) if torch.is_tensor(value) else value == other


@pytest.fixture(autouse=True)
def save_after_every_epoch(monkeypatch):
    monkeypatch.setattr(run_module, "_SAVING_SHARE", 1e9)


@pytest.mark.parametrize("optimizer", names())
def test_every_optimizer_resumes_bit_for_bit(tmp_path, optimizer):
    (tmp_path / "b").mkdir()
    extra = {"optimizer_args": {"shards": 3}} if optimizer == "m-sam" else {}
    model = "cnn" if optimizer == "sam-on" else "mlp"
    whole = train_to_file(plan(tmp_path, model, optimizer=optimizer, **extra))
    again = stop_and_resume(plan(tmp_path / "b", model, optimizer=optimizer, **extra))
    same(whole, again)
    assert len(again.metrics["curve"]) == 4


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("cnn", {"crop": 1, "flip": True, "schedule": "multistep", "warmup": 1.0}),
        ("vit", {"optimizer": "gsam", "base": "adamw", "rho_schedule": "like-lr"}),
        ("vit", {"optimizer": "sam", "rho_schedule": "linear", "accumulate": 2, "label_noise": 0.3}),
        ("mlp", {"optimizer": "sam", "rho_schedule": "cosine", "rho_min": 0.01, "clip_grad_norm": 0.5}),
        ("mlp", {"amp": "bf16"}),
        ("mlp", {"amp": "fp16", "optimizer": "sam"}),
    ],
)
def test_every_part_of_the_loop_resumes_bit_for_bit(tmp_path, model, changes):
    (tmp_path / "b").mkdir()
    same(train_to_file(plan(tmp_path, model, **changes)), stop_and_resume(plan(tmp_path / "b", model, **changes)))


def test_run_killed_outright_continues_as_if_nothing_had_happened(tmp_path):
    (tmp_path / "b").mkdir()
    program = f"""
import os, signal, sys
sys.path[:0] = {[*sys.path]!r}
from pathlib import Path
from hessprobe.training import loop
from hessprobe.training import run as run_module
from test_resume import plan
run_module._SAVING_SHARE = 1e9

class Kill(run_module._Saver):
    def after_epoch(self, run):
        super().after_epoch(run)
        if run.epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)

run_module._Saver = Kill
run_module.train_to_file(plan(Path({str(tmp_path / "b")!r}), "vit", optimizer="vasso", epochs=6))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    stopped = plan(tmp_path / "b", "vit", optimizer="vasso", epochs=6)
    assert read_state(stopped)["epoch"] == 3
    assert not stopped.out.exists()
    again = train_to_file(stopped, resume=True)
    same(train_to_file(plan(tmp_path, "vit", optimizer="vasso", epochs=6)), again)
    assert stopped.out.exists()
    assert not stopped.resume_path.exists()


def test_file_of_a_stopped_run_is_an_ordinary_checkpoint(tmp_path):
    one = plan(tmp_path)
    with pytest.raises(StoppedError):
        train_to_file(one, report=stop_after(3))
    loaded = load_checkpoint(one.resume_path)
    assert loaded.progress["epoch"] == 2
    assert float(loaded.risk().loss()) > 0
    assert [each["epoch"] for each in loaded.metrics["curve"]] == [1, 2]


def test_trajectory_holds_the_weights_of_every_kth_epoch_from_the_start(tmp_path):
    trained = train_to_file(plan(tmp_path, save_every=2))
    files = sorted(each.name for each in tmp_path.iterdir())
    assert files == ["a-epoch-0000.pt", "a-epoch-0002.pt", "a-epoch-0004.pt", "a.pt"]
    first, middle, last = (load_checkpoint(tmp_path / name) for name in files[:3])
    initial = build_model("mlp", {"hidden": [8]}, 0).state_dict()
    assert all(torch.equal(initial[key], value) for key, value in first.model.state_dict().items())
    final = trained.model.state_dict()
    assert all(torch.equal(final[key], value) for key, value in last.model.state_dict().items())
    assert middle.metrics["epochs"] == 2
    assert float(middle.risk().loss()) == pytest.approx(middle.metrics["train_loss"], rel=1e-5)


def test_saving_costs_a_bounded_share_of_the_time(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(run_module, "_SAVING_SHARE", 1e-9)
    save = run_module._write
    monkeypatch.setattr(run_module, "_write", lambda *given: written.append(given[1].name) or save(*given))
    train_to_file(plan(tmp_path))
    assert written == ["a-resume.pt", "a.pt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.2}, r"lr must be 0\.1, as in the run that .*a-resume\.pt holds; got 0\.2\. Give the same recipe"),
        ({"epochs": 9}, r"epochs must be 4, as in the run"),
        ({"optimizer": "sam"}, r"optimizer must be 'sgd', as in the run that .* holds; got 'sam'"),
        ({"subset": 0.06}, r"subset must be 0\.05, as in the run"),
        ({"data_seed": 1}, r"data_seed must be 0, as in the run"),
        ({"data": "synthetic"}, r"hash of the data must be '\w+', as in the run that .*; got '\w+'"),
    ],
)
def test_another_recipe_is_refused_by_the_key_that_differs(tmp_path, changes, message):
    one = plan(tmp_path)
    with pytest.raises(StoppedError):
        train_to_file(one, report=stop_after(3))
    before = one.resume_path.read_bytes()
    with pytest.raises(ValueError, match=message):
        train_to_file(plan(tmp_path, **changes), resume=True)
    assert one.resume_path.read_bytes() == before
    assert not one.out.exists()


def test_other_model_arguments_are_refused(tmp_path):
    one = plan(tmp_path)
    with pytest.raises(StoppedError):
        train_to_file(one, report=stop_after(2))
    other = dataclasses.replace(one, model_arguments={**one.model_arguments, "hidden": [9]})
    with pytest.raises(ValueError, match=r"arguments of the model must be .*'hidden': \[8\].*got .*'hidden': \[9\]"):
        train_to_file(other, resume=True)


def test_state_of_another_device_or_with_something_missing_is_refused(tmp_path):
    one = plan(tmp_path)
    with pytest.raises(StoppedError):
        train_to_file(one, report=stop_after(2))
    state, model = read_state(one), build_model("mlp", one.model_arguments)
    with pytest.raises(CheckpointError, match=r"was on cuda, this one is on cpu, .* Pass --device cuda, or begin anew"):
        train(model, one.data, one.recipe, state={**state, "device": "cuda"})
    with pytest.raises(CheckpointError, match=r"holds a state that does not fit: 'order' Begin anew without --resume"):
        train(model, one.data, one.recipe, state={key: value for key, value in state.items() if key != "order"})


def test_resume_without_a_stopped_run_begins(tmp_path):
    (tmp_path / "b").mkdir()
    same(train_to_file(plan(tmp_path), resume=True), train_to_file(plan(tmp_path / "b")))


def test_divergence_leaves_what_was_saved_and_the_weights(tmp_path, monkeypatch):
    one = plan(tmp_path)
    with pytest.raises(StoppedError):
        train_to_file(one, report=stop_after(3))
    before = one.resume_path.read_bytes()
    state = read_state(one)
    state["weights"]["layers.0.weight"].fill_(float("nan"))
    monkeypatch.setattr(run_module, "read_state", lambda plan: state)
    with pytest.raises(
        NonFiniteError, match=r"training loss became nan in epoch 3, step 3, with lr 0\.1\..* is as it was"
    ):
        train_to_file(one, resume=True)
    assert one.resume_path.read_bytes() == before
    assert not one.out.exists()


def test_recipe_without_data_says_so(tmp_path):
    with pytest.raises(
        ValueError, match=r"data must be given for this recipe; got none\. Pass for example image-folder"
    ):
        make_plan(Recipe(data=""), tmp_path / "a.pt", "mlp", {})


def test_data_are_those_of_the_recipe_and_can_be_had_again_from_the_file(tmp_path):
    one = plan(tmp_path, label_noise=0.3, data_seed=2)
    trained = train_to_file(one)
    loaded = load_checkpoint(one.out)
    assert (
        loaded.data.load().sha256
        == one.data.sha256
        == load_dataset("digits", part=0.05, label_noise=0.3, seed=2).sha256
    )
    assert float(loaded.risk().loss()) == pytest.approx(trained.metrics["train_loss"], rel=1e-5)
    assert float(loaded.risk("test").loss()) == pytest.approx(trained.metrics["test_loss"], rel=1e-5)


def test_scale_of_a_resumed_run_is_that_of_a_whole_one(tmp_path, monkeypatch):
    # A scale that grows often: with torch's usual interval of 2,000 steps it would not move in a test.
    monkeypatch.setattr(loop, "_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3))
    one, scalers = plan(tmp_path, amp="fp16"), {}
    model = build_model("mlp", one.model_arguments)

    def note(run):
        scalers[run.epoch, run.step] = run.scaler.state_dict()

    train(model, one.data, one.recipe, after_epoch=note, after_step=note)
    with pytest.raises(StoppedError):
        train_to_file(one, report=stop_after(3))
    state = read_state(one)
    assert state["scaler"] == scalers[state["epoch"], state["step"]]
    assert state["step"] > 0
    seen = []
    train(model, one.data, one.recipe, state=state, after_epoch=lambda run: seen.append(run.scaler.state_dict()))
    assert seen[-1] == scalers[4, 0]
    assert scalers[4, 0]["scale"] > scalers[1, 0]["scale"] > 4.0
