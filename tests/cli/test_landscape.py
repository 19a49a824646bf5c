from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hessprobe import report
from hessprobe.cli.app import app
from hessprobe.report.figures import figures_of
from hessprobe.report.figures.fields import short
from hessprobe.training import load_checkpoint


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Two further networks of the same kind, and one of another."""
    folder = tmp_path_factory.mktemp("landscape")
    paths = [folder / name for name in ("b.pt", "c.pt", "wide.pt")]
    for seed, path in enumerate(paths, 1):
        hidden = 16 if path.stem == "wide" else 8
        arguments = ["train", "--model", f"mlp:hidden={hidden}", "--epochs", "1", "--seed", str(seed)]
        with pytest.raises(SystemExit) as left:
            app([*arguments, "--out", str(path)], prog_name="hessprobe")
        assert not left.value.code
    return paths


def test_a_plane_with_its_record(run, digits_checkpoint, tmp_path):
    before = digits_checkpoint.read_bytes()
    figure, target = tmp_path / "f.png", tmp_path / "r.json"
    done = run("landscape", digits_checkpoint, "--size", "7", "--examples", "60", "--map", "error", "--out", figure,
               "--json", target)  # fmt: skip
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert "610 parameters, 60 examples (train), random, seed 0" in lines[0]
    assert lines[1] == "7 x 7 points"
    assert lines[-1] == f"wrote {figure}"
    assert figure.read_bytes().startswith(b"\x89PNG")
    record = report.read_record(target)
    row = record["results"][0]
    risk = load_checkpoint(digits_checkpoint).risk(examples=60)
    assert row["center"] == [3, 3]
    assert row["values"]["loss"][3][3] == float(risk.loss())
    assert row["holes"] == {"loss": 0, "error": 0}
    assert np.shape(row["quadratic"]["bend"]) == (2, 2)
    assert row["axes"][0] == pytest.approx(np.linspace(-1, 1, 7))
    assert record["files"]["points"] == f"{figure}.npz"
    assert digits_checkpoint.read_bytes() == before


def test_the_same_command_again_computes_nothing(run, digits_checkpoint, tmp_path):
    arguments = ["landscape", digits_checkpoint, "--size", "5", "--examples", "40", "--out", tmp_path / "f.svg",
                 "--directions", "eigen", "--which", "both", "--json", "-"]  # fmt: skip
    first = json.loads(run(*arguments).out)["results"][0]
    again = json.loads(run(*arguments).out)["results"][0]
    assert (first["points_computed"], again["points_computed"]) == (25, 0)
    assert again["values"] == first["values"]
    assert again["labels"] == first["labels"]


def test_an_interruption_says_how_to_go_on(run, digits_checkpoint, tmp_path, monkeypatch):
    from hessprobe.landscape import points

    original, calls = points.Points.at, []

    def at(self, thetas):
        calls.append(len(thetas))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, thetas)

    monkeypatch.setattr(points.Points, "at", at)
    figure = tmp_path / "f.png"
    arguments = ("landscape", digits_checkpoint, "--size", "9", "--examples", "40", "--out", figure)
    done = run(*arguments)
    assert done.code == 130
    assert 1 < 1 + calls[0] < 81
    assert (
        f"interrupted; {1 + calls[0]} of 81 points are kept in {figure}.npz; the same command goes on from there"
        in done.out
    )
    assert not figure.exists()
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", [])
    done = run(*arguments)
    assert (done.code, done.err) == (0, "")
    assert f"9 x 9 points, {1 + calls[0]} of them found in {figure}.npz" in done.out


def test_gradient_line_and_pca(run, digits_checkpoint, others, tmp_path):
    quick = ("--size", "5", "--examples", "60")
    done = run("landscape", digits_checkpoint, *quick, "--directions", "gradient", "--out", tmp_path / "g.svg")
    assert (done.code, done.err) == (0, "")
    assert "XSAM point" in (tmp_path / "g.svg").read_text()
    out = tmp_path / "l.png"
    done = run("landscape", digits_checkpoint, *quick, "--directions", "line", "--with", others[0], "--match", "--out",
               out, "--json", tmp_path / "l.json")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "neurons reordered; distance" in done.out
    row = report.read_record(tmp_path / "l.json")["results"][0]
    one = row["axes"][0].index(1.0)
    # The permuted network computes the same, so its loss on the grid is that of the checkpoint.
    assert row["values"]["loss"][one] == pytest.approx(row["marks"][1]["loss"], rel=1e-5)
    done = run("landscape", digits_checkpoint, *quick, "--directions", "pca", "--with", others[0], "--with", others[1],
               "--out", tmp_path / "p.svg")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "the plane explains 100 % of the variance of the trajectory" in done.out
    assert "b: true loss " in done.out


@pytest.mark.parametrize("directions", ["random", "eigen", "gradient", "line", "line of three", "pca", "pca reversed"])
def test_the_center_is_the_checkpoint_that_is_named(run, digits_checkpoint, others, tmp_path, directions):
    """Whatever spans the grid: its center, what is printed and what the record holds are of CKPT."""
    kind, *more = directions.split()
    further = {"line": others[:1], "pca": others[:2]}.get(kind, [])
    further = others[:2][::-1] if more else further
    arguments = [part for path in further for part in ("--with", path)]
    out = tmp_path / "f.svg"
    done = run("landscape", digits_checkpoint, "--size", "3", "--examples", "40", "--no-overlays", "--directions", kind,
               *arguments, "--out", out, "--json", tmp_path / "r.json")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    truth = {Path(path).stem: float(load_checkpoint(path).risk(examples=40).loss())
             for path in (digits_checkpoint, *further)}  # fmt: skip
    own = truth[digits_checkpoint.stem]
    assert f"loss at the checkpoint {own:.6g}" in done.out
    record = report.read_record(tmp_path / "r.json")
    row = record["results"][0]
    i, *j = row["center"]
    assert (row["values"]["loss"][i][j[0]] if j else row["values"]["loss"][i]) == own
    if kind in ("line", "pca"):
        assert {mark["name"]: mark["loss"] for mark in row["marks"]} == truth
        assert [mark["name"] for mark in row["marks"]] == list(truth)
        assert row["marks"][0]["coordinates"] == [0.0] * len(row["axes"])
    # What is drawn of the record later says the same.
    assert f"{short(own)} at the checkpoint" in figures_of(record)[0].alt


def test_one_page(run, digits_checkpoint, tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "f.html"
    done = run("landscape", digits_checkpoint, "--size", "3", "--examples", "40", "--interactive", page)
    assert (done.code, done.err) == (0, "")
    assert "<script src=" not in page.read_text()
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".png"] == []


def test_another_architecture_names_the_tensor(run, digits_checkpoint, others, tmp_path):
    done = run("landscape", digits_checkpoint, "--directions", "line", "--with", others[2], "--out", tmp_path / "f.png")
    assert done.code == 1
    assert ("checkpoints must have the same architecture; got tensor 'layers.0.weight' of shape (8, 64) in digits and "
            "of shape (16, 64) in wide.") in done.err  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--directions", "randon"], "--directions must be one of random, eigen, gradient, pca, line; got 'randon'."),
        (["--directions", "pca"], "--with must name at least 2 further checkpoints for pca, which needs 3 points; got"),
        (["--directions", "line"], "--with must name 1 further checkpoint for a line, or 2 for the plane"),
        (["--size", "2"], "--size must be an integer >= 3; got 2."),
        (["--span", "nan"], "--span must be a finite number > 0; got nan."),
        (["--map", "eror"], "--map must be one of loss, error, "),
        (["--out", "f.jpg"], "--out must end in .png, .svg, .pdf; got 'f.jpg'."),
        (["--out", "/nowhere/f.png"], "--out must lie in an existing folder; got '/nowhere/f.png'."),
        (["--line", "--surface"], "--interactive and --surface are for planes; got a line."),
        (["--directions", "eigen", "--line", "--which", "both"], "--which both gives two directions, but --line asks"),
    ],
)
def test_wrong_usage(run, digits_checkpoint, arguments, message):
    done = run("landscape", digits_checkpoint, *arguments)
    assert done.code == 2
    assert f"hessprobe: error: {message}" in done.err


def test_options_without_effect_are_named(run, digits_checkpoint, tmp_path):
    done = run("landscape", digits_checkpoint, "--directions", "gradient", "--biases", "zero", "--line", "--size", "3",
               "--examples", "40", "--out", tmp_path / "f.png")  # fmt: skip
    assert done.code == 0
    assert "note: --biases has no effect here; it is for --directions random" in done.err
    assert "note: --line has no effect here; it is for --directions random, eigen" in done.err


def test_a_trajectory_out_of_order_is_said_and_a_camera_must_be_two_angles(run, tmp_path):
    done = run("train", "--model", "mlp:hidden=8", "--epochs", "3", "--save-every", "1", "--out", tmp_path / "n.pt")
    assert done.code == 0
    epochs = [tmp_path / f"n-epoch-000{index}.pt" for index in range(4)]
    common = ["--directions", "pca", "--size", "4", "--examples", "20", "--out", tmp_path / "f.png"]

    def through(order):
        return run(
            "landscape", tmp_path / "n.pt", *common, *(part for index in order for part in ("--with", epochs[index]))
        )

    assert "goes from" not in through([0, 1, 2]).out
    assert (
        "the trajectory goes from n-epoch-0001.pt (step 45) back to n-epoch-0000.pt (step 0)" in through([1, 0, 2]).out
    )
    # From the end to the start is an order, too.
    assert "goes from" not in through([2, 1, 0]).out
    wrong = run("landscape", tmp_path / "n.pt", "--surface", "--camera", "35")
    assert (wrong.code, "--camera must be elevation and turn in degrees, e.g. 35,-60; got '35'." in wrong.err) == (
        2,
        True,
    )
