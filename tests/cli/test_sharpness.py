from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hessprobe import report, sharpness
from hessprobe.errors import NonFiniteError
from hessprobe.sharpness import survey
from hessprobe.sharpness.names import KINDS
from hessprobe.training import load_checkpoint

QUICK = ("--examples", "100", "--steps", "3", "--restarts", "1", "--probes", "8", "--engine", "double-backward")


def test_table_and_record_of_the_default(run, digits_checkpoint, tmp_path):
    before = digits_checkpoint.read_bytes()
    target = tmp_path / "r.json"
    done = run("sharpness", digits_checkpoint, *QUICK, "--rho", "0.1", "--rho", "0.5", "--json", target)
    assert (done.code, done.err) == (0, "")
    assert "610 parameters, 100 examples (train), l2, seed 0" in done.out
    lines = [re.split(r"  +", line) for line in done.out.splitlines()]
    assert lines[1] == ["sharpness", "rho", "value ± error", "second order", "ratio", "losses", "gradients",
                        "products", "seconds"]  # fmt: skip
    assert [line[:2] for line in lines[2:8]] == [[k, r] for k in ("worst", "ascent", "average") for r in ("0.1", "0.5")]
    assert lines[2][2].startswith(">= ")
    record = report.read_record(target)
    assert record["command"] == "sharpness"
    worst, _, ascent, *_ = record["results"]
    assert (worst["kind"], worst["rho"], worst["norm"], worst["adaptive"]) == ("lower bound", 0.1, "l2", "none")
    assert worst["value"] >= ascent["value"] > 0
    assert worst["predicted"]["value"] == pytest.approx(worst["value"], rel=0.2)
    assert worst["ratio"] == pytest.approx(worst["value"] / worst["predicted"]["value"])
    assert worst["cost"]["gradients"] > 5
    assert set(worst["starts"]) == {"gradient", "eigenvector", "-eigenvector", "model", "random 1"}
    assert record["checkpoint"]["sha256"] == load_checkpoint(digits_checkpoint).sha256
    assert record["arguments"]["rho"] == [0.1, 0.5]
    assert (record["flags"], record["seed"]) == ([], 0)
    assert digits_checkpoint.read_bytes() == before


def test_values_are_those_of_the_library(run, digits_checkpoint):
    done = run("sharpness", digits_checkpoint, *QUICK, "--kind", "ascent", "--rho", "0.2", "--adaptive", "filter",
               "--norm", "linf", "--dtype", "float64", "--m", "30", "--json", "-")  # fmt: skip
    row = json.loads(done.out)["results"][0]
    risk = load_checkpoint(digits_checkpoint).risk(examples=100, dtype=torch.float64)
    one = sharpness.m_sharpness(risk, 0.2, 30, adaptive="filter", norm="linf")[0]
    assert row["value"] == pytest.approx(one.value, rel=1e-9)
    assert row["predicted"]["value"] == pytest.approx(one.predicted.value, rel=1e-9)
    assert (row["m"], row["adaptive"], row["norm"]) == (30, "filter", "linf")


def test_every_kind_at_once_and_layers(run, digits_checkpoint):
    kinds = [part for kind in KINDS for part in ("--kind", kind)]
    done = run("sharpness", digits_checkpoint, *QUICK, *kinds, "--adaptive", "elementwise", "--rho", "0.1")
    assert (done.code, done.err) == (0, "")
    assert "adaptive elementwise" in done.out
    shown = [line.split()[0] for line in done.out.splitlines()[2 : 2 + len(KINDS)]]
    assert shown == list(KINDS)
    assert "  layers.0.weight: " in done.out


def test_diagnostics_are_shown_and_recorded(run, digits_checkpoint, tmp_path):
    target = tmp_path / "r.json"
    done = run("sharpness", digits_checkpoint, "--examples", "100", "--kind", "ascent", "--diagnostics", "--k", "2",
               "--rtol", "0.3", "--rho-max", "0.2", "--json", target)  # fmt: skip
    assert done.code == 0, done.err
    assert "SAM at rho 0.05: its gradient and the plain one against the top eigenvectors" in done.out
    assert "loss along the arc at radius 0.2: alpha* = " in done.out
    for name in ("trace", "frob", "along the gradient"):
        assert re.search(rf"^{name} ", done.out, re.MULTILINE)
    entry = report.read_record(target)["diagnostics"]
    assert len(entry["alignment"]["eigenvalues"]) == 2
    assert len(entry["arc"]["rises"]) == 21
    parts = entry["splits"][2]
    assert parts["whole"]["value"] == pytest.approx(parts["gauss_newton"]["value"] + parts["functional"]["value"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "wrost"], "--kind must be one of worst, ascent, "),
        (["--kind", "wrost"], "got 'wrost'. Did you mean 'worst'?"),
        (["--norm", "l3"], "--norm must be one of l2, linf; got 'l3'."),
        (["--adaptive", "filtre"], "got 'filtre'. Did you mean 'filter'?"),
        (["--rho", "0"], "--rho must be a finite number > 0; got 0."),
        (["--rho", "nan"], "--rho must be a finite number > 0; got nan."),
        (["--rho-max", "-1"], "--rho-max must be a finite number > 0; got -1."),
        (["--eta", "-1"], "--eta must be a finite number >= 0; got -1."),
        (["--m", "0"], "--m must be an integer >= 1; got 0."),
        (["--steps", "-1"], "--steps must be an integer >= 0; got -1."),
        (["--restarts", "-1"], "--restarts must be an integer >= 0; got -1."),
        (["--probes", "1"], "--probes must be an integer >= 2; got 1."),
        (["--probes", "9", "--rtol", "0.1"], "--probes cannot go with --rtol. Fix the size or the tolerance."),
        (["--diagnostics", "--norm", "linf"], "--diagnostics cannot go with --norm linf or --adaptive"),
        (["--engine", "lineraized"], "Did you mean 'linearized'?"),
        (["--json", "no/such/r.json"], "--json must lie in an existing folder"),
        (["--examples", "5000"], "examples must be at most 1433"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run, digits_checkpoint, arguments, message):
    done = run("sharpness", digits_checkpoint, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_options_without_effect_are_named(run, digits_checkpoint):
    done = run("sharpness", digits_checkpoint, "--examples", "50", "--kind", "fisher-rao", "--rho", "0.1", "--m", "4",
               "--probes", "9", "--k", "3", "--rho-max", "1", "--eta", "0.1")  # fmt: skip
    assert done.code == 0
    for option in ("--rho", "--m", "--probes", "--k", "--rho-max", "--eta"):
        assert f"note: {option} has no effect here; it is for " in done.err


def test_a_radius_that_drowns_keeps_what_came_before(run, digits_checkpoint, tmp_path):
    target = tmp_path / "r.json"
    done = run("sharpness", digits_checkpoint, *QUICK, "--kind", "fisher-rao", "--kind", "ascent", "--rho", "1e-12",
               "--json", target)  # fmt: skip
    assert done.code == 1
    assert re.search(r"error: --rho must be at least about \S+ in float32; got 1e-12, where the rise of a", done.err)
    assert "fisher-rao" in done.out
    record = report.read_record(target)
    assert [row["measure"] for row in record["results"]] == ["fisher-rao"]
    assert record["flags"] == ["failed"]
    assert record["errors"][0].startswith("--rho must be at least")


def test_a_radius_that_drowns_does_not_cost_the_others(run, digits_checkpoint, tmp_path):
    target = tmp_path / "r.json"
    done = run("sharpness", digits_checkpoint, *QUICK, "--rho", "0.1", "--rho", "1e-12", "--diagnostics",
               "--json", target)  # fmt: skip
    assert done.code == 1
    assert re.search(r"error: --rho must be at least about \S+ in float32; got 1e-12", done.err)
    record = report.read_record(target)
    assert [(row["measure"], row["rho"]) for row in record["results"]] == [
        ("worst", 0.1),
        ("ascent", 0.1),
        ("average", 0.1),
    ]
    assert record["diagnostics"]["alignment"]["rho"] == 0.1
    assert record["flags"] == ["failed"]


def test_interruption_keeps_and_writes_what_is_known(run, digits_checkpoint, tmp_path, monkeypatch):
    def interrupted(near, radii, **_):
        near.report("average", sharpness.average.Progress(3, 8, 0.5, 0.1))
        raise KeyboardInterrupt

    monkeypatch.setattr(survey, "average_direction", interrupted)
    target = tmp_path / "r.json"
    done = run("sharpness", digits_checkpoint, *QUICK, "--kind", "ascent", "--kind", "average", "--json", target)
    assert done.code == 130
    assert "interrupted; what was under way:\n  average: 0.50 ± 0.10 (after 3 of 8)" in done.out
    record = report.read_record(target)
    assert [row["measure"] for row in record["results"]] == ["ascent"]
    assert record["flags"] == ["interrupted"]
    assert record["partial"][-1] == {"stage": "average", "done": 3, "total": 8, "value": 0.5, "std_error": 0.1}


# The program with an average that takes long.
SLOW = """
import sys, time
from hessprobe.cli.app import main
from hessprobe.estimators.budget import Progress
from hessprobe.sharpness import survey

def slow(near, radii, **_):
    near.report("average", Progress(3, 8, 0.5, 0.1))
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)

survey.average_direction = slow
main()
"""


def test_ctrl_c_in_a_real_process(digits_checkpoint, tmp_path):
    target = tmp_path / "r.json"
    arguments = ("sharpness", digits_checkpoint, "--kind", "fisher-rao", "--kind", "average", "--json", target)
    command = [sys.executable, "-c", SLOW, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "interrupted; what was under way:\n  average: 0.50 ± 0.10 (after 3 of 8)" in out
    assert [row["measure"] for row in report.read_record(target)["results"]] == ["fisher-rao"]
    assert sorted(tmp_path.iterdir()) == [target, tmp_path / "r.json.journal"]


def test_failure_of_a_loss_is_one_line(run, digits_checkpoint, monkeypatch):
    def broken(near, radii):
        raise NonFiniteError("the loss must be finite within rho; got nan.\nLower rho.")

    monkeypatch.setattr(survey, "ascent_direction", broken)
    done = run("sharpness", digits_checkpoint, "--kind", "ascent")
    assert done.code == 1
    assert done.err == "hessprobe: error: the loss must be finite within rho; got nan. Lower rho.\n"
