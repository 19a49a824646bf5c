from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from hessprobe import report
from hessprobe.cli import outputs
from hessprobe.training import load_checkpoint
from hessprobe.training import loop as loop_module
from hessprobe.training.recipe import shipped


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


SMALL = ["--model", "mlp:hidden=8", "--subset", "0.1"]


def test_recipe_is_read_and_options_go_over_it(run, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('optimizer = "gsam"\nrho = 0.3\nepochs = 2\nlr = 0.05\n[optimizer_args]\nalpha = 0.7\n')
    for name, extra in (("a", []), ("b", ["--optimizer-arg", "alpha=0.1"]), ("c", ["--optimizer", "sam"])):
        assert run("train", *SMALL, "--recipe", recipe, "--seed", "2", *extra, "--out", tmp_path / name).code == 0
    keys = ("optimizer", "rho", "epochs", "lr", "seed", "optimizer_args")
    found = {name: [load_checkpoint(tmp_path / name).recipe[key] for key in keys] for name in "abc"}
    assert found == {
        "a": ["gsam", 0.3, 2, 0.05, 2, {"alpha": 0.7}],
        "b": ["gsam", 0.3, 2, 0.05, 2, {"alpha": 0.1}],
        "c": ["sam", 0.05, 2, 0.05, 2, {}],
    }


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_starts(run, tmp_path, name):
    smaller = [] if name == "digits" else ["--data", "synthetic:n=20,n_classes=2,side=8,channels=3"]
    smaller += ["--model", "resnet18:width=4"] if name == "cifar10-paper" else []
    done = run("train", "--recipe", name, *smaller, "--epochs", "2", "--out", tmp_path / "a.pt")
    assert done.code == 0, done.err
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.model_name == {"digits": "mlp", "cifar10-quick": "resnet", "cifar10-paper": "resnet18"}[name]
    assert len(loaded.metrics["loss_history"]) == 2


def test_noise_and_trajectory_are_said(run, tmp_path):
    path = tmp_path / "a.pt"
    done = run("train", *SMALL, "--label-noise", "0.3", "--epochs", "4", "--save-every", "2", "--out", path)
    metrics = load_checkpoint(path).metrics
    assert (done.code, done.err) == (0, "")
    assert f"train against the right labels {metrics['train_clean_accuracy']:.2%}; wrong labels learnt" in done.out
    assert f"wrote 3 on the way: {tmp_path}/a-epoch-0000.pt to a-epoch-0004.pt" in done.out
    assert len(list(tmp_path.iterdir())) == 4


def test_stopped_run_is_resumed_and_a_finished_one_left_alone(run, tmp_path, monkeypatch):
    whole, path = tmp_path / "w.pt", tmp_path / "a.pt"
    command = ["train", *SMALL, "--optimizer", "vasso", "--epochs", "5"]
    assert run(*command, "--out", whole).code == 0
    step, calls = loop_module._step, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(loop_module, "_step", interrupted)
    done = run(*command, "--out", path)
    assert done.code == 130
    assert done.err == (
        f"hessprobe: interrupted; the same command with --resume continues from {tmp_path}/a-resume.pt\n"
    )
    other = run(*command, "--out", path, "--resume", "--lr", "0.2")
    assert other.code == 2
    assert "--lr must be 0.1, as in the run that" in other.err
    assert run(*command, "--out", path, "--resume").code == 0
    first, second = (load_checkpoint(each) for each in (whole, path))
    states = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert first.metrics["curve"] == second.metrics["curve"]
    assert not (tmp_path / "a-resume.pt").exists()
    steps = len(calls)
    again = run(*command, "--out", path, "--resume")
    assert (again.code, again.err) == (
        0,
        f"hessprobe: {path} is the finished run of this recipe; nothing is left to do\n",
    )
    assert len(calls) == steps
    # What ended between its checkpoint and its record lacks the record alone.
    assert run(*command, "--out", path, "--resume", "--json", tmp_path / "r.json").code == 0
    assert report.read_record(tmp_path / "r.json")["training"]["metrics"] == second.metrics
    assert len(calls) == steps
    changed = run(*command, "--out", path, "--resume", "--seed", "4")
    assert changed.code == 2
    assert "--seed must be 0, as in the run that" in changed.err


def test_resume_without_anything_to_resume_says_that_it_begins(run, tmp_path):
    done = run("train", *SMALL, "--epochs", "1", "--out", tmp_path / "a.pt", "--resume")
    assert done.code == 0
    assert done.err == f"hessprobe: no stopped run at {tmp_path}/a-resume.pt; beginning a new one\n"
    (tmp_path / "b.pt").write_bytes(b"mine")
    assert run("train", *SMALL, "--epochs", "1", "--out", tmp_path / "b.pt", "--resume").code == 2
    assert (tmp_path / "b.pt").read_bytes() == b"mine"


def test_missing_data_are_a_failure_in_one_line(run, tmp_path):
    done = run("train", "--data", "image-folder:no/such", "--out", tmp_path / "a.pt")
    assert done.code == 1
    assert "must name a path that exists; nothing is at no/such." in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("resnet:blocks=1,width=2", "synthetic:n=60,n_classes=3,channels=3"),
        ("resnet18:width=2", "synthetic:n=20,n_classes=2,side=4"),
        ("wide-resnet:depth=10,widen=1", "synthetic:n=20,n_classes=2,side=4"),
        ("vgg:depth=11,width=2", "synthetic:n=60,n_classes=3"),
        ("vit:layers=1,d_model=8,n_heads=2", "synthetic:n=60,n_classes=3"),
        ("gpt:layers=1,d_model=8,n_heads=2,context=8", "text"),
        ("cnn:widths=2", "image-folder"),
    ],
)
def test_every_model_and_kind_of_data_can_be_measured(run, tmp_path, monkeypatch, model, data):
    monkeypatch.setenv("HESSPROBE_CACHE", str(tmp_path / "cache"))
    if data == "text":
        (tmp_path / "t.txt").write_text("to be or not to be, that is " * 10)
        data = f"text:{tmp_path}/t.txt"
    elif data == "image-folder":
        for index in range(20):
            folder = tmp_path / "images" / f"{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 6), (index * 12, 0, 99)).save(folder / f"{index}.png")
        data = f"image-folder:{tmp_path}/images"
    path = tmp_path / "a.pt"
    made = run("train", "--model", model, "--data", data, "--epochs", "1", "--batch-size", "16", "--out", path)
    assert made.code == 0, made.err
    for operator in ("hessian", "ggn"):
        done = run("measure", path, "--measure", "trace", "--operator", operator, "--probes", "2", "--engine",
                   "double-backward", "--trust-data", "--json", "-")  # fmt: skip
        assert done.code == 0, done.err
        record = json.loads(done.out)
        assert record["results"][0]["value"] is not None
        loaded = load_checkpoint(path)
        assert record["checkpoint"]["data"]["name"] == loaded.data.name
        assert float(loaded.risk().loss()) == pytest.approx(loaded.metrics["train_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "mpl"], "gpt; got 'mpl'. Did you mean 'mlp'?"),
        (["--model", "mlp:hiden=3"], "Did you mean 'hidden'?"),
        (["--model", "gpt"], "layout must be one of vector, image for data 'digits'; got 'tokens'."),
        (["--data", "digit"], "text:PATH; got 'digit'. Did you mean 'digits'?"),
        (["--optimizer", "adamww"], "got 'adamww'. Did you mean 'adamw'?"),
        (
            ["--base", "adamw", "--optimizer", "sam", "--momentum", "0.5"],
            "--momentum must be left out for sam with base",
        ),
        (["--optimizer", "sam", "--base-arg", "betas"], "--base-arg must be KEY=VALUE; got 'betas'."),
        (["--optimizer", "adamw", "--base-arg", "beta=1"], "got 'beta'. Did you mean 'betas'?"),
        (["--decay", "matrices"], "--decay must be left out without weight_decay; got 'matrices'."),
        (["--optimizer", "bsam", "--weight-decay", "0.1"], "--weight-decay must be left out for bsam, which has none"),
        (["--lr", "0"], "lr must be a finite number > 0; got 0.0."),
        (["--lr", "nan"], "lr must be a finite number > 0; got nan."),
        (["--epochs", "-1"], "epochs must be an integer >= 0; got -1."),
        (["--optimizer", "fro-sam"], "got 'fro-sam'. Did you mean 'frob-sam'?"),
        (["--optimizer", "sam", "--base", "lbfgs"], "rmsprop, rprop; got 'lbfgs'."),
        (["--optimizer", "ae-sam", "--optimizer-arg", "steps=3"], "steps of ae-sam must be at least 45, the length of"),
        (["--optimizer", "sam", "--rho", "-1"], "--rho must be a finite number >= 0; got -1.0."),
        (["--optimizer", "sam", "--rho", "nan"], "--rho must be a finite number >= 0; got nan."),
        (["--rho", "0.1"], "--rho must be left out for sgd, which has no radius; got 0.1."),
        (["--optimizer", "gsam", "--optimizer-arg", "alpa=1"], "got 'alpa'. Did you mean 'alpha'?"),
        (["--optimizer", "frob-sam", "--optimizer-arg", "antithetic=no"], "must be true or false; got 'no'."),
        (["--optimizer", "gsam", "--optimizer-arg", "alpha"], "--optimizer-arg must be KEY=VALUE; got 'alpha'."),
        (["--label-noise", "1.5"], "--label-noise must be a number in [0, 1]; got 1.5."),
        (["--subset", "0"], "--subset must be a number in (0, 1]; got 0.0."),
        (["--recipe", "digit"], "got 'digit'. Did you mean 'digits'?"),
        (["--recipe", "cifar10-paper"], "data must be given for this recipe; got none."),
        (["--save-every", "0"], "--save-every must be an integer >= 1; got 0."),
        (["--amp", "fp8"], "--amp must be one of off, bf16, fp16; got 'fp8'."),
        (["--optimizer", "esam", "--accumulate", "2"], "--accumulate must be 1 for esam, which needs the whole batch"),
        (["--crop", "2", "--data", "text:cli.py", "--model", "gpt"], "crop and flip must be left out for text"),
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


def test_a_loss_that_is_nan_at_the_displaced_weights_is_said_to_be_there(run, tmp_path):
    done = run("train", *SMALL, "--optimizer", "sam", "--rho", "1e30", "--out", tmp_path / "a.pt")
    assert done.code == 1
    assert "in epoch 1, step 1: The loss at the displaced weights is nan in step 1, with rho 1e+30" in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("train/dog/1.png", "train/dog/1.png cannot be read as an image (not an image)"),
        ("test/frog/1.png", "lacks frog"),
    ],
)
def test_wrong_images_are_named(run, tmp_path, broken, message):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (6, 6)).save(folder / "1.png")
    path = tmp_path / "images" / broken
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((tmp_path / "images/test/cat/1.png").read_bytes() if "frog" in broken else b"no image")
    done = run("train", "--data", f"image-folder:{tmp_path}/images", "--out", tmp_path / "a.pt")
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "a.pt").exists()


def test_a_long_run_without_a_terminal_says_where_it_stands(run, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_MINUTE", -1.0)
    done = run("train", *SMALL, "--epochs", "2", "--out", tmp_path / "a.pt")
    assert done.code == 0
    lines = done.err.splitlines()
    assert any(line.startswith("training: 50%, epoch 1 of 2: loss ") for line in lines)
    assert lines[-1].startswith("training: 100%, epoch 2 of 2: loss ")


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


def test_any_optimizer_of_torch_is_a_base_and_is_recorded(run, tmp_path):
    out = tmp_path / "a.pt"
    done = run("train", "--model", "mlp:hidden=8,norm=layer", "--epochs", "1", "--optimizer", "gsam", "--base", "nadam",
               "--base-arg", "betas=[0.8,0.95]", "--base-arg", "momentum_decay=0.01", "--weight-decay", "0.1",
               "--decay", "matrices", "--lr", "0.01", "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    saved = torch.load(out, weights_only=True)
    recipe = saved["recipe"]
    assert (recipe["base"], recipe["decay"]) == ("nadam", "matrices")
    assert recipe["base_args"] == {"betas": [0.8, 0.95], "momentum_decay": 0.01}
    groups = saved["optimizer"]["state"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {(tuple(group["betas"]), group["momentum_decay"]) for group in groups} == {((0.8, 0.95), 0.01)}
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.95)}


def test_a_recipe_for_another_optimizer_gives_no_weight_decay_to_one_without(run, tmp_path):
    (tmp_path / "r.toml").write_text('weight_decay = 0.1\ndecay = "matrices"\nepochs = 0\nnesterov = true\n')
    done = run("train", "--recipe", tmp_path / "r.toml", "--optimizer", "lightsam", "--out", tmp_path / "a.pt")
    assert done.code == 0, done.err
    recipe = torch.load(tmp_path / "a.pt", weights_only=True)["recipe"]
    assert (recipe["weight_decay"], recipe["decay"], recipe["nesterov"]) == (0.0, "all", False)
