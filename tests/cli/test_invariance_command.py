from __future__ import annotations

import json

import pytest
import torch

from hessprobe.cli.app import app
from hessprobe.training import load_checkpoint

QUICK = ("--examples", "60", "--probes", "8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invariance")

    def train(model):
        path = folder / f"{model.split(':')[0]}.pt"
        arguments = ["train", "--model", model, "--epochs", "1", "--subset", "0.1", "--out", str(path), "--force"]
        with pytest.raises(SystemExit) as left:
            app(arguments, prog_name="hessprobe")
        assert not left.value.code
        return path

    return train


def test_table_and_record_of_a_digits_network(run, digits_checkpoint, tmp_path):
    before = load_checkpoint(digits_checkpoint)
    measures = ("-m", "lambda-max", "-m", "adaptive-lambda-max")
    done = run("invariance", digits_checkpoint, *measures, "--strength", "10", *QUICK, "--json", tmp_path / "r.json")
    assert (done.code, done.err) == (0, "")
    table = [line.split() for line in done.out.splitlines()[1:]]
    verdicts = {(row[0], row[-1]) for row in table if "adaptive-lambda-max" in row[:3] and "±" in row}
    assert verdicts == {(kind, "invariant") for kind in ("unit-rescaling", "layer-rescaling", "permutation")}
    assert "outputs unchanged" in done.out
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["command"] == "invariance"
    assert [(row["transform"], row["strength"], row["measure"], row["verdict"]) for row in record["results"]] == [
        ("unit-rescaling", 10.0, "lambda-max", "changes"),
        ("unit-rescaling", 10.0, "adaptive-lambda-max", "invariant"),
        ("layer-rescaling", 10.0, "lambda-max", "changes"),
        ("layer-rescaling", 10.0, "adaptive-lambda-max", "invariant"),
        ("permutation", None, "lambda-max", "invariant"),
        ("permutation", None, "adaptive-lambda-max", "invariant"),
    ]
    row = record["results"][0]
    assert row["ratio"] == pytest.approx(row["after"]["value"] / row["before"]["value"])
    assert row["outputs_distance"] <= row["outputs_tolerance"] == 1e-5
    assert "eigenvalues move" in row["reason"]
    assert not any(row["contradicts_theory"] for row in record["results"])
    assert record["sites"][0]["where"] == "layers.0 -> layers.2"
    after = load_checkpoint(digits_checkpoint)
    assert before.sha256 == after.sha256


@pytest.mark.parametrize("model", ["cnn:widths=2-3", "resnet:blocks=1,width=2,stages=1"])
def test_networks_with_batchnorm(run, trained, model, capsys):
    path = trained(model)
    capsys.readouterr()
    done = run("invariance", path, "-m", "adaptive-lambda-max", "--strength", "2", *QUICK, "--json", "-")
    assert (done.code, done.err) == (0, "")
    results = json.loads(done.out)["results"]
    kinds = [row["transform"] for row in results]
    assert kinds == ["unit-rescaling", "layer-rescaling", "norm-scale", "permutation"]
    assert {row["verdict"] for row in results} == {"invariant"}
    assert results[2]["outputs_distance_with_old_eps"] > 0


def test_activation_is_named_in_the_output(run, trained):
    path = trained("mlp:hidden=4,activation=gelu")
    done = run("invariance", path, "-m", "trace", *QUICK)
    assert done.code == 0
    assert "skipped at layers.0: GELU layers.1 is not positively homogeneous" in done.out
    refused = run("invariance", path, "-m", "trace", "-t", "unit-rescaling", *QUICK)
    assert refused.code == 1
    assert "GELU layers.1 is not positively homogeneous" in refused.err


def test_large_networks_have_no_pseudo_determinant(run, trained):
    done = run("invariance", trained("mlp:hidden=16"), "-m", "pseudo-logdet", "-t", "permutation", *QUICK)
    assert done.code == 0
    assert "not measured" in done.out
    assert "of at most 1024 parameters; got 1210. Choose fewer with --params." in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "tracee"], "--measure must be one of lambda-max, "),
        (["-t", "permutatoin"], "got 'permutatoin'. Did you mean 'permutation'?"),
        (["--strength", "1"], "--strength must be another number than 1, which changes nothing; got 1."),
        (["--strength", "-2"], "--strength must be a finite number > 0; got -2."),
        (["--strength", "nan"], "--strength must be a finite number > 0; got nan."),
        (["--resolution", "2"], "--resolution must be a number in (0, 1); got 2."),
        (["--operator", "gnn"], "--operator must be one of hessian, ggn, fisher; got 'gnn'. Did you mean 'ggn'?"),
        (["--probes", "1"], "--probes must be an integer >= 2; got 1."),
    ],
)
def test_wrong_usage(run, digits_checkpoint, arguments, message):
    done = run("invariance", digits_checkpoint, *arguments)
    assert done.code == 2
    assert message in done.err


def test_weights_are_untouched(run, digits_checkpoint, monkeypatch):
    from hessprobe.cli import load

    kept = []
    real = load.load_subject

    def spy(*asked):
        kept.append(real(*asked))
        kept.append({k: v.clone() for k, v in kept[0].risk.module.state_dict().items()})
        return kept[0]

    monkeypatch.setattr(load, "load_subject", spy)
    assert run("invariance", digits_checkpoint, "-m", "adaptive-lambda-max", "--strength", "3", *QUICK).code == 0
    state = kept[0].risk.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept[1].items())


def test_defaults_leave_the_pseudo_determinant_of_a_large_network_out(run, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("hessprobe.invariance.names.DEFAULT_MEASURES", ("trace", "pseudo-logdet"))
    monkeypatch.setattr("hessprobe.cli.commands.invariance.DEFAULT_MEASURES", ("trace", "pseudo-logdet"))
    path = trained("mlp:hidden=16")
    done = run("invariance", path, "-t", "permutation", *QUICK, "--json", tmp_path / "r.json")
    assert (done.code, "not measured" in done.out, done.out.count("pseudo-logdet")) == (0, False, 1)
    assert "pseudo-logdet: left out, as it needs the whole matrix, of at most 1,024 parameters" in done.out
    assert json.loads((tmp_path / "r.json").read_text())["arguments"]["measure"] == ["trace"]


def test_a_tolerance_that_is_missed_is_said(run, digits_checkpoint, monkeypatch):
    assert "32 --probes" in " ".join(run("invariance", "--help").out.split())
    monkeypatch.setattr("hessprobe.invariance.paired.MOST", 8)
    asked = ("-m", "trace", "-t", "permutation", "--examples", "60")
    done = run("invariance", digits_checkpoint, *asked, "--rtol", "0.001")
    assert done.code == 0
    assert "trace: the interval is wider than --rtol asks for" in done.out
    assert "wider" not in run("invariance", digits_checkpoint, *asked, "--probes", "8").out
