from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import torch

from hessprobe.cli.app import app
from hessprobe.cli.commands.compare import labels
from hessprobe.comparison import kendall
from hessprobe.measures import MeasureSettings
from hessprobe.measures.registry import measure_all
from hessprobe.training import load_checkpoint

QUICK = ("--examples", "60", "--probes", "8")


def train(path, *arguments):
    with pytest.raises(SystemExit) as left:
        app(["train", "--epochs", "1", "--subset", "0.2", "--out", str(path), *arguments], prog_name="hessprobe")
    assert not left.value.code
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five networks of one architecture; the second is the first after two epochs."""
    place = tmp_path_factory.mktemp("compared")
    for name, epochs, seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 1), ("d", 1, 2), ("e", 3, 3)):
        train(place / f"{name}.pt", "--model", "mlp:hidden=8", "--epochs", str(epochs), "--seed", str(seed))
    return place


def differences(record):
    return {(row["checkpoint"], row["measure"]): row for row in record["differences"]}


def test_table_record_and_csv(run, folder, tmp_path):
    a, b, c = (folder / f"{name}.pt" for name in "abc")
    outputs = ("--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv")
    measures = ("-m", "trace", "-m", "lambda-max", "-m", "adaptive-trace")
    done = run("compare", a, b, c, *measures, *QUICK, *outputs)
    assert (done.code, done.err) == (0, "")
    assert "60 examples (train), hessian, seed 0, 8 probes, the same for all" in done.out.splitlines()[0]
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["command"], record["baseline"], record["flags"]) == ("compare", "a", [])
    assert [(row["measure"], row["checkpoint"]) for row in record["differences"]] == [
        (name, label) for name in ("lambda-max", "trace", "adaptive-trace") for label in "bc"
    ]
    values = {(row["checkpoint"], row["measure"]): row for row in record["results"]}
    for (label, name), row in differences(record).items():
        assert row["value"] == pytest.approx(values[label, name]["value"] - values["a", name]["value"])
        assert row["errors"]["data"] is None or row["errors"]["data"] > 0
    eigenvalue = differences(record)["b", "lambda-max"]
    solver = [values[label, "lambda-max"]["errors"]["solver"] for label in "ab"]
    assert eigenvalue["errors"]["solver"] == pytest.approx(sum(solver))
    # One run goes on where the other stopped: their probes are worth pairing.
    paired = differences(record)["b", "adaptive-trace"]
    assert paired["gain"] == pytest.approx(paired["independent_std_error"] / paired["std_error"])
    assert paired["gain"] > 1.05
    trace = differences(record)["b", "trace"]
    # That of a piecewise linear network is exact.
    assert trace["std_error"] == 0
    # The values are those of a measurement by itself with the same probes.
    risk = load_checkpoint(a).risk(examples=60)
    (alone,) = measure_all(["trace"], risk, MeasureSettings(n_probes=8))
    assert values["a", "trace"]["value"] == pytest.approx(alone.estimate.value, rel=1e-5)
    assert "trace, lambda-max change when a network is rescaled" in done.out
    assert "6 differences are judged at 95% each" in done.out
    assert record["rescaling"]["invariant"] == ["adaptive-trace"]
    assert {"layer-rescaling", "unit-rescaling"} == set(record["rescaling"]["kinds"])
    table = pd.read_csv(tmp_path / "r.csv")
    assert len(table) == 9
    row = table[(table.checkpoint == "b") & (table.measure == "trace")].iloc[0]
    assert row.difference == pytest.approx(trace["value"])
    assert row.verdict == trace["verdict"]
    assert table[table.checkpoint == "a"].difference.isna().all()


def test_without_data_errors_there_is_no_such_column_and_the_record_says_so(run, folder, tmp_path):
    record_path = tmp_path / "r.json"
    how = ("--batch-size", "20", "--engine", "double-backward")
    asked = ("-m", "trace", "-m", "lambda-max", "-m", "adaptive-trace", *QUICK, *how)

    def compared(*more):
        files = [folder / f"{name}.pt" for name in "ab"]
        shown = run("compare", *files, *asked, *more, "--json", record_path).out
        return shown, json.loads(record_path.read_text())

    both, one = compared(), compared("--no-data-error")
    assert ("± data" in both[0], "± data" in one[0], "other data" in one[0]) == (True, False, False)
    assert (both[1]["arguments"]["data_error"], one[1]["arguments"]["data_error"]) == (True, False)
    for entry in ("results", "differences"):
        assert any(row["errors"]["data"] for row in both[1][entry])
        assert all(row["errors"]["data"] is None for row in one[1][entry])
        for bare, told in zip(one[1][entry], both[1][entry], strict=True):
            # Products by groups of examples are added up in another order.
            assert bare["value"] == pytest.approx(told["value"], rel=1e-4)
            assert bare["interval"] == pytest.approx(told["interval"], rel=1e-4)
    assert all(row["beyond_data"] is None for row in one[1]["differences"])


def test_another_baseline_turns_the_signs(run, folder):
    a, b = folder / "a.pt", folder / "b.pt"
    one = json.loads(run("compare", a, b, "-m", "trace", *QUICK, "--json", "-").out)
    two = json.loads(run("compare", a, b, "-m", "trace", "--baseline", b, *QUICK, "--json", "-").out)
    first, second = differences(one)["b", "trace"], differences(two)["a", "trace"]
    assert second["value"] == -first["value"]
    assert second["std_error"] == pytest.approx(first["std_error"])
    assert two["baseline"] == "b"


def test_a_damaged_checkpoint_is_named_and_the_others_are_kept(run, folder, tmp_path):
    bad = tmp_path / "bad.pt"
    bad.write_bytes((folder / "a.pt").read_bytes()[:2000])
    done = run("compare", bad, folder / "b.pt", folder / "c.pt", "-m", "trace", *QUICK, "--json", tmp_path / "r.json")
    assert done.code == 1
    assert str(bad) in done.err
    assert done.err.count("\n") == 1
    record = json.loads((tmp_path / "r.json").read_text())
    # The next takes the place of the baseline that could not be read.
    assert (record["baseline"], record["flags"]) == ("b", ["failed"])
    assert list(differences(record)) == [("c", "trace")]
    assert str(bad) in record["errors"][0]


def test_other_data_are_refused_and_named(run, folder, tmp_path):
    other = train(tmp_path / "other.pt", "--model", "mlp:hidden=8", "--label-noise", "0.3")
    done = run("compare", folder / "a.pt", other, folder / "b.pt", "-m", "trace", *QUICK, "--json", tmp_path / "r.json")
    assert done.code == 1
    assert f"{other}: measures on other data (digits" in done.err
    record = json.loads((tmp_path / "r.json").read_text())
    assert list(differences(record)) == [("b", "trace")]


def test_a_copy_is_named_and_left_out(run, fake, folder, tmp_path):
    fake()
    copy = shutil.copy(folder / "a.pt", tmp_path / "copy.pt")
    done = run("compare", folder / "a.pt", copy, folder / "b.pt", "-m", "trace", *QUICK)
    assert done.code == 1
    assert done.err == (
        f"hessprobe: error: {copy}: holds the same bytes as {folder / 'a.pt'}, from which it cannot differ. "
        "Leave it out.\n"
    )
    assert done.out.count("within error") == 1


def test_layouts_of_one_data_set_are_the_same_data(run, fake, folder, tmp_path):
    fake()
    other = train(tmp_path / "cnn.pt", "--model", "cnn:widths=2-3")
    done = run("compare", folder / "a.pt", other, "-m", "trace", *QUICK)
    assert (done.code, done.err) == (0, "")


def test_other_sizes_are_compared_with_a_word_of_caution(run, folder, tmp_path):
    wide = train(tmp_path / "wide.pt", "--model", "mlp:hidden=9")
    done = run("compare", folder / "a.pt", wide, "-m", "trace", "-m", "lambda-max", *QUICK)
    assert done.code == 0
    assert "parameters differ (a 610, wide 685): probes cannot be paired; trace add up over them" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt"], "CKPT must be at least 2 checkpoints, or a folder of them; got 1."),
        (["a.pt", "./a.pt"], "CKPT must be different files; got './a.pt' twice."),
        (["a.pt", "b.pt", "-m", "adaptive-frop"], "Did you mean 'adaptive-frob'?"),
        (["a.pt", "b.pt", "--baseline", "c.pt"], "--baseline must be one of the checkpoints compared; got 'c.pt'"),
        (["a.pt", "b.pt", "--correlate"], "CKPT must be at least 5 checkpoints, or a folder of them; got 2."),
        (["a.pt", "b.pt", "--probes", "1"], "--probes must be an integer >= 2; got 1."),
        (["a.pt", "b.pt", "--confidence", "95"], "Write 0.95 for 95 %."),
        (["empty"], "CKPT must be a checkpoint or a folder of them; got 'empty' without any."),
        (["a.pt", "b.pt", "--csv", "x/y.csv"], "--csv must"),
        ([], "CKPT must be given; got none."),
        (["a.pt", "b.pt", "--out", "x.gif"], "--out must end in .png, .svg, .pdf; got 'x.gif'."),
    ],
)
def test_usage_is_checked_before_anything_is_loaded(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    done = run("compare", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_folders_leave_the_state_of_stopped_runs_out(run, fake, folder, tmp_path):
    fake()
    for name in ("a.pt", "b.pt"):
        shutil.copy(folder / name, tmp_path / name)
    shutil.copy(folder / "c.pt", tmp_path / "c-resume.pt")
    record = json.loads(run("compare", tmp_path, "-m", "trace", *QUICK, "--json", "-").out)
    assert [member["label"] for member in record["checkpoints"]] == ["a", "b"]
    # These numbers come without their samples.
    assert record["differences"][0]["flags"] == ["not-paired"]
    assert record["differences"][0]["std_error"] == pytest.approx(2 * 0.0123)


def test_ctrl_c_keeps_what_is_done(run, fake, folder, tmp_path):
    fake(FAKE_INTERRUPT="frob")
    files = (folder / "a.pt", folder / "b.pt", "-m", "trace", "-m", "frob", *QUICK)
    done = run("compare", *files, "--json", tmp_path / "r.json")
    assert done.code == 130
    assert "trace" in done.out
    assert done.out.splitlines()[-1] == "interrupted"
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["flags"] == ["interrupted"]
    assert [(row["checkpoint"], row["measure"]) for row in record["results"]] == [("a", "trace")]


def test_a_failure_in_one_checkpoint_leaves_the_others(run, fake, folder):
    fake(FAKE_FAIL="frob")
    done = run("compare", folder / "a.pt", folder / "b.pt", "-m", "trace", "-m", "frob", *QUICK)
    assert done.code == 1
    assert done.err.count("the operator must be finite") == 2
    assert "within error" in done.out


def test_correlation_over_a_folder(run, folder, tmp_path):
    arguments = ("-m", "trace", "--correlate", *QUICK, "--json", tmp_path / "r.json", "--out", tmp_path / "f.svg")
    done = run("compare", folder, *arguments)
    assert (done.code, done.err) == (0, "")
    record = json.loads((tmp_path / "r.json").read_text())
    found = {row["gap"]: row for row in record["correlations"]}
    assert set(found) == {"loss", "accuracy"}
    losses = [load_checkpoint(folder / f"{name}.pt").metrics for name in "abcde"]
    gaps = [member["gaps"]["loss"] for member in record["checkpoints"]]
    assert gaps == [metrics["test_loss"] - metrics["train_loss"] for metrics in losses]
    traces = [row["value"] for row in record["results"]]
    assert found["loss"]["tau"] == pytest.approx(kendall(traces, gaps).tau)
    assert found["loss"]["interval"] == pytest.approx(kendall(traces, gaps).interval)
    assert found["loss"]["pairs"] == 10
    assert "trace    test - training loss" in done.out
    assert "2 correlations are judged" in done.out
    names = ["f.svg", "f-gap-loss.svg", "f-gap-accuracy.svg", "f-tau.svg"]
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == sorted(names)
    assert done.out.splitlines()[-4:] == [f"wrote {tmp_path / name}" for name in names]


def test_a_checkpoint_without_losses_is_measured_and_named(run, fake, folder, tmp_path):
    fake()
    (tmp_path / "risks.py").write_text(
        "from hessprobe.training import load_checkpoint\n\n\n"
        "def make(path):\n    return load_checkpoint(path).risk(examples=60)\n"
    )
    spec = f"{tmp_path / 'risks.py'}:make"
    done = run("compare", folder, "-m", "trace", "--correlate", "--probes", "8", "--objective", spec)
    assert done.code == 1
    assert done.err.count("holds no training and test loss") == 5
    assert "no correlation: fewer than 5 checkpoints" in done.out
    assert done.out.count("within error") == 4


def test_labels_are_the_shortest_tails_that_differ(tmp_path):
    paths = [str(tmp_path / each) for each in ("x/run.pt", "y/run.pt")]
    assert labels(paths) == ["x/run", "y/run"]
    assert labels([str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]) == ["a", "b"]


def test_probes_do_not_touch_the_global_generator(run, fake, folder):
    fake()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    run("compare", folder / "a.pt", folder / "b.pt", "-m", "trace", *QUICK)
    assert torch.equal(before, torch.random.get_rng_state())
