from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch

from hessprobe import report
from hessprobe.cli.app import app
from hessprobe.measures import measure
from hessprobe.report.figures import figures_of
from hessprobe.training import load_checkpoint

QUICK = ("--examples", "60", "--engine", "double-backward")


def train(path, *arguments):
    with pytest.raises(SystemExit) as left:
        app(["train", "--model", "mlp:hidden=8", "--save-every", "1", *arguments, "--out", str(path)],
            prog_name="hessprobe")  # fmt: skip
    assert not left.value.code


@pytest.fixture(scope="module")
def sgd(tmp_path_factory):
    path = tmp_path_factory.mktemp("sgd") / "run.pt"
    train(path, "--epochs", "2", "--batch-size", "256")
    return path


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "run.pt"
    train(path, "--epochs", "1", "--batch-size", "256", "--optimizer", "sam", "--rho", "0.1", "--schedule", "constant")
    return path


def test_a_run_with_figure_record_and_table(run, sgd, tmp_path):
    figure, record_path, table = tmp_path / "f.svg", tmp_path / "r.json", tmp_path / "t.csv"
    outputs = ("--out", figure, "--json", record_path, "--csv", table)
    done = run("track", sgd, *QUICK, "--batch-size", "20", *outputs, "--k", "2")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert "610 parameters, 60 examples (train), hessian, seed 0" in lines[0]
    assert lines[1].split()[:4] == ["step", "epoch", "lr", "loss"]
    assert [line.split()[0] for line in lines[2:5]] == ["0", "6", "12"]
    assert "3 of 3 checkpoints, " in done.out
    beside = [tmp_path / f"f-{name}.svg" for name in ("training", "overlap")]
    assert lines[-3:] == [f"wrote {each}" for each in (figure, *beside)]
    record = report.read_record(record_path)
    rows = record["results"]
    assert [row["step"] for row in rows] == [0, 6, 12]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row in rows:
        checkpoint = load_checkpoint(row["checkpoint"])
        risk = checkpoint.risk(examples=60, batch_size=20)
        assert row["sha256"] == checkpoint.sha256
        assert row["loss"] == float(risk.loss())
        alone = measure("lambda-max", risk, engine="double_backward", k=2)
        assert row["measures"]["lambda-max"]["value"] == pytest.approx(alone.value, rel=1e-5)
        assert row["edge"]["plain"] == pytest.approx(3.8 / row["lr"])
        assert row["scores"]["test_accuracy"] == checkpoint.metrics["test_accuracy"]
    # The rate of the first step, then that of the last one; the schedule is a cosine over 12 steps.
    assert rows[0]["lr"] == pytest.approx(0.1)
    assert rows[2]["lr"] == load_checkpoint(rows[2]["checkpoint"]).metrics["curve"][-1]["lr"]
    with table.open() as file:
        flat = list(csv.DictReader(file))
    assert float(flat[2]["frob"]) == rows[2]["measures"]["frob"]["value"]
    assert float(flat[2]["frob_data_error"]) == rows[2]["measures"]["frob"]["errors"]["data"] > 0
    assert "lambda-max ± meas. ± data" in lines[1]
    assert "± data: standard error from the data being a sample" in done.out
    assert float(flat[1]["eigenvalue_2"]) == rows[1]["measures"]["lambda-max"]["arrays"]["eigenvalues"]["values"][1]
    text = figure.read_text()
    assert all(words in text for words in ("2(1+β)/lr", "trace", "Frobenius", "accuracy (%)", "with the 2 leading"))


def test_the_same_command_again_computes_nothing_and_a_longer_run_only_what_is_new(run, sgd, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch in (0, 1):
        shutil.copy(sgd.with_name(f"run-epoch-000{epoch}.pt"), folder)
    arguments = ("track", folder, *QUICK, "-m", "trace", "--out", tmp_path / "f.png", "--json", "-")
    first = json.loads(run(*arguments).out)
    shutil.copy(sgd.with_name("run-epoch-0002.pt"), folder)
    from hessprobe.tracking import point

    calls, original = [], point.Context

    def counted(*given):
        calls.append(given)
        return original(*given)

    monkeypatch.setattr(point, "Context", counted)
    longer = json.loads(run(*arguments).out)
    assert len(calls) == 1
    assert longer["results"][:2] == first["results"]
    # The third point began where the second had ended, although another process had measured that.
    assert "warm-start" in longer["results"][2]["measures"]["lambda-max"]["flags"]
    done = run(*arguments[:-2])
    assert len(calls) == 1
    assert "3 of them found in " in done.out
    run(*arguments, "--seed", "1")
    assert len(calls) == 4


def test_an_interruption_keeps_what_is_done(run, sgd, tmp_path, monkeypatch):
    from hessprobe.tracking import point

    original, calls = point.Context, []

    def context(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(point, "Context", context)
    figure, target = tmp_path / "f.png", tmp_path / "r.json"
    # One engine: a choice by timing may fall on another in the second run, whose last digits differ.
    engine = ("--engine", "double-backward")
    arguments = ("track", sgd, *QUICK, *engine, "-m", "trace", "--out", figure, "--json", target)
    done = run(*arguments)
    assert done.code == 130
    assert f"interrupted; what is finished is kept in {figure}.npz; the same command goes on from there" in done.out
    record = report.read_record(target)
    assert record["flags"] == ["interrupted"]
    assert [row["step"] for row in record["results"]] == [0, 6]
    assert figure.read_bytes().startswith(b"\x89PNG")
    done = run(*arguments)
    assert (done.code, len(calls)) == (0, 4)
    whole = run(*arguments[:-3], tmp_path / "g.png", "--json", "-")
    resumed, whole = report.read_record(target)["results"], json.loads(whole.out)["results"]
    for row in (*resumed, *whole):
        del row["seconds"]
        for each in row["measures"].values():
            del each["seconds"]
            each.pop("cost", None)
    # An interrupted track ends in the same numbers, to the last bit.
    assert resumed == whole


def test_sam_has_a_threshold_of_its_own(run, sam, tmp_path):
    done = run("track", sam, *QUICK, "-m", "lambda-max", "--out", tmp_path / "f.svg", "--json", tmp_path / "r.json")
    assert (done.code, done.err) == (0, "")
    assert "SAM edge: the same with SAM's ascent step" in done.out
    for row in report.read_record(tmp_path / "r.json")["results"]:
        top, edge = row["edge"]["plain"], row["edge"]["sharpness_aware"]
        assert edge * (1 + 0.1 * edge / row["gradient_norm"]) == pytest.approx(top)
    assert "SAM's threshold" in (tmp_path / "f.svg").read_text()


def test_plain_weights_need_a_rate(run, sgd, tmp_path):
    for epoch in (0, 1, 2):
        weights = load_checkpoint(sgd.with_name(f"run-epoch-000{epoch}.pt")).model.state_dict()
        torch.save(weights, tmp_path / f"w_{10 * epoch}.pt")
    arguments = ("track", tmp_path, "--model", "mlp:hidden=8", "--data", "digits", *QUICK, "-m", "lambda-max")
    done = run(*arguments, "--out", tmp_path / "f.png", "--json", tmp_path / "r.json")
    assert (done.code, done.err) == (0, "")
    assert "no 2/lr line at 3 checkpoints: the learning rate is not known; pass --lr" in done.out
    assert [row["step"] for row in report.read_record(tmp_path / "r.json")["results"]] == [0, 10, 20]
    done = run(*arguments, "--lr", "0.5", "--out", tmp_path / "f.png", "--json", tmp_path / "r.json")
    assert {row["edge"]["plain"] for row in report.read_record(tmp_path / "r.json")["results"]} == {4.0}


def test_a_folder_of_one_run_in_the_order_of_steps(run, sgd, tmp_path):
    # Names in another order than steps, the end of the run beside its last epoch, and what is no checkpoint at all.
    shutil.copy(sgd.with_name("run-epoch-0000.pt"), tmp_path / "z.pt")
    shutil.copy(sgd.with_name("run-epoch-0002.pt"), tmp_path / "a.pt")
    shutil.copy(sgd, tmp_path / "run.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "other.pt")
    done = run(
        "track", tmp_path, *QUICK, "-m", "lambda-max", "--out", tmp_path / "f.png", "--json", tmp_path / "r.json"
    )
    assert done.code == 0
    assert "other.pt is left out: it is no checkpoint of hessprobe train" in done.out
    rows = report.read_record(tmp_path / "r.json")["results"]
    assert [(row["step"], row["checkpoint"].rpartition("/")[2]) for row in rows] == [(0, "z.pt"), (12, "a.pt")]


def test_runs_that_do_not_belong_together(run, sgd, sam, tmp_path):
    shutil.copy(sgd.with_name("run-epoch-0000.pt"), tmp_path / "a.pt")
    done = run("track", tmp_path)
    assert done.code == 2
    assert "checkpoints must be at least two of one run; got one, " in done.err
    shutil.copy(sam.with_name("run-epoch-0001.pt"), tmp_path / "b.pt")
    done = run("track", tmp_path)
    assert done.code == 1
    assert "b.pt is of another run than " in done.err
    assert (
        "its optimizer is 'sam', not 'sgd'. Name the last checkpoint of one run, or the files themselves." in done.err
    )
    wide = tmp_path / "wide.pt"
    train(wide, "--epochs", "0", "--model", "mlp:hidden=16")
    done = run("track", tmp_path / "a.pt", wide)
    assert done.code == 2
    assert "must have the same architecture; got tensor 'layers.0.weight' of shape (8, 64) in " in done.err
    train(tmp_path / "noisy.pt", "--epochs", "0", "--label-noise", "0.2")
    done = run("track", tmp_path / "a.pt", tmp_path / "noisy.pt")
    assert done.code == 1
    assert "noisy.pt was trained on other data than " in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{}", "--measure", "density"],
            "--measure must be one of lambda-max, lambda-min, spectral-norm, trace, frob,",
        ),
        (["{}", "--lr", "0"], "--lr must be a finite number > 0; got 0."),
        (["{}", "--rtol", "5"], "--rtol must be a number in (0, 1); got 5. Write 0.05 for 5 %."),
        (["{}", "--out", "f.jpg"], "--out must end in .png, .svg, .pdf; got 'f.jpg'."),
        (["{}", "--k", "0"], "--k must be an integer >= 1; got 0."),
        (["{}", "missing.pt"], "RUN_DIR must exist; got 'missing.pt'."),
        (
            ["empty", "empty"],
            "RUN_DIR must be one folder, or the files of one run; got the folder 'empty' among others.",
        ),
        (["empty"], "checkpoints must be at least two of one run; got none in "),
    ],
)
def test_wrong_usage(run, sgd, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    done = run("track", *(str(sgd) if each == "{}" else each for each in arguments))
    assert done.code == 2
    assert f"hessprobe: error: {message}" in done.err


def test_a_run_of_adam_has_its_own_edge(run, tmp_path):
    path, record = tmp_path / "run.pt", tmp_path / "r.json"
    train(
        path, "--epochs", "1", "--batch-size", "256", "--optimizer", "adamw", "--lr", "0.002", "--schedule", "constant"
    )
    name = "preconditioned-lambda-max"
    outputs = ("--out", tmp_path / "f.svg", "--json", record, "--csv", tmp_path / "t.csv")
    done = run("track", path, *QUICK, "-m", name, *outputs)
    assert done.code == 0, done.err
    assert "Adam edge: the largest stable preconditioned-lambda-max" in done.out
    first, last = report.read_record(record)["results"]
    # Before its first step Adam has no state.
    assert list(first["measures"]) == ["lambda-max"]
    assert first["edge"]["preconditioned"] is None
    decay = load_checkpoint(last["checkpoint"]).recipe["weight_decay"]
    assert last["edge"]["preconditioned"] == pytest.approx(3.8 / (0.1 * 0.002) * (1 - 0.002 * decay / 2))
    alone = measure(name, load_checkpoint(last["checkpoint"]).risk(examples=60), engine="double_backward")
    assert last["measures"][name]["value"] == pytest.approx(alone.value, rel=0.02)
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["threshold_preconditioned"] == ""
    assert float(rows[1]["threshold_preconditioned"]) == last["edge"]["preconditioned"]
    figure, *_ = figures_of(report.read_record(record))
    assert [line.get("Adam's threshold") for line in figure.data] == [None, last["edge"]["preconditioned"]]
    told = run("measure", path, *QUICK, "-m", name)
    assert told.code == 0, told.err
    assert "Adam's step is stable up to" in told.out
