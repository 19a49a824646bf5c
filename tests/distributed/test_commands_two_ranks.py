"""``torchrun -m hessprobe``: the numbers of one process, told and written once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hessprobe.cli.app import app
from hessprobe.cli.outputs import NAMES, SHARED, default_figure
from hessprobe.cli.process import _aside, joined_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

TWO = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
MEASURE = ("measure", "ckpt.pt", "-m", "lambda-max", "-m", "trace", "-m", "frob", "--dtype", "float64", "--examples")


def run(folder: Path, *arguments: str, ranks: bool) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", *(TWO if ranks else ()), "hessprobe", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    train = ("train", "--model", "mlp:hidden=8", "--data", "digits", "--epochs", "1")
    ended = run(made, *train, "--out", "ckpt.pt", ranks=False)
    assert ended.returncode == 0, ended.stderr
    return made


def test_two_ranks_measure_what_one_process_does(folder: Path):
    for name, ranks in (("one", False), ("two", True)):
        ended = run(folder, *MEASURE, "301", "--json", f"{name}.json", "--csv", f"{name}.csv", ranks=ranks)
        assert ended.returncode == 0, ended.stderr
        # One process speaks.
        assert ended.stdout.count("95% interval") == 1
        assert "warning" not in ended.stderr
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert "ranks" not in one
    assert two["ranks"]["count"] == len(two["ranks"]["examples"]) == 2
    assert sum(two["ranks"]["examples"]) == 301
    assert min(two["ranks"]["examples"]) > 120
    assert len(one["results"]) == len(two["results"]) == 3
    for own, shared in zip(one["results"], two["results"], strict=True):
        assert shared["measure"] == own["measure"]
        numbers = [own["value"], *own["interval"], own["errors"]["data"], own["matvecs"]]
        assert [shared["value"], *shared["interval"], shared["errors"]["data"], shared["matvecs"]] == pytest.approx(
            numbers, rel=1e-9
        )
    # Journals and locks of all ranks are gone.
    assert sorted(path.name for path in folder.iterdir()) == ["ckpt.pt", "one.csv", "one.json", "two.csv", "two.json"]


def test_what_a_rank_will_take_is_foreseen_once(folder: Path):
    asked = (
        "measure",
        "ckpt.pt",
        "-m",
        "lambda-max",
        "-m",
        "trace",
        "--probes",
        "4",
        "--examples",
        "1000",
        "--dry-run",
    )
    more = ("--batch-size", "100")
    told = {}
    for name, ranks in (("alone", False), ("shared", True)):
        ended = run(folder, *asked, *more, "--json", f"{name}.json", ranks=ranks)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("not measured: foreseen") == 1
        assert ("of each of 2 ranks" in ended.stdout) == ranks
        told[name] = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").unlink()
    alone, shared = told["alone"], told["shared"]
    assert (alone["ranks"], shared["ranks"]) == (1, 2)
    assert (alone["batches"], shared["batches"]) == (10, 10)
    # Of ten batches each rank has five, beside its part of the first for the trace.
    assert 0.5 * alone["kept"] <= shared["kept"] < 0.8 * alone["kept"]
    assert shared["available"] < 0.7 * alone["available"]
    assert [each["products"] for each in shared["measures"]] == [each["products"] for each in alone["measures"]]
    assert len(list(folder.glob("*.journal"))) == 0


def test_a_silent_rank_reads_what_is_there_and_writes_aside(tmp_path: Path):
    for name in ("net.pt", "net-resume.pt", "net.pt.journal", "other.pt"):
        (tmp_path / name).write_text(name)
    with ExitStack() as stack:
        mine = _aside({"out": str(tmp_path / "net.pt"), "json": "-", "seed": 3}, NAMES, stack)
        place = Path(mine["out"]).parent
        assert mine == {"out": str(place / "net.pt"), "json": "-", "seed": 3}
        assert place != tmp_path
        # The state of a stopped training and a journal are gone on from.
        assert {path.name: path.read_text() for path in place.iterdir()} == {
            name: name for name in ("net.pt", "net-resume.pt", "net.pt.journal")
        }
    assert not place.exists()


def test_figures_without_a_name_have_one(tmp_path: Path):
    (tmp_path / "run.1").mkdir()
    named = {
        ("landscape", "eigen"): default_figure("landscape", {"ckpt": "a/b.pt", "directions": "eigen"}),
        ("landscape", "html"): default_figure("landscape", {"directions": "eigen", "interactive": "x.html"}),
        ("landscape", "code"): default_figure("landscape", {"ckpt": None, "directions": "random"}),
        ("track", "folder"): default_figure("track", {"run_dir": [str(tmp_path / "run.1")]}),
        ("track", "file"): default_figure("track", {"run_dir": ["a/b.pt", "c.pt"]}),
        ("measure", ""): default_figure("measure", {"ckpt": "a.pt"}),
    }
    assert list(named.values()) == [
        "b-eigen.png",
        None,
        "objective-random.png",
        "run.1-track.png",
        "b-track.png",
        None,
    ]


def test_a_wrong_argument_is_said_once(folder: Path):
    ended = run(folder, "measure", "ckpt.pt", "-m", "trase", ranks=True)
    assert ended.returncode != 0
    assert ended.stderr.count("--measure must be one of") == 1
    assert "Traceback" not in ended.stderr.split("hessprobe: error")[0]


def test_what_shares_nothing_out_is_refused(folder: Path):
    ended = run(folder, "validate", ranks=True)
    assert ended.returncode != 0
    assert "validate must be run by one process; got 2 of torchrun" in ended.stderr
    assert "compare, invariance, landscape, measure, sharpness, track, train share their work" in ended.stderr


def test_every_command_shares_its_work_or_says_that_it_does_not(monkeypatch: pytest.MonkeyPatch):
    names = {command.name or command.callback.__name__.rstrip("_") for command in app.registered_commands}
    # What a launch below compares with one process.
    shared = {words[0] for words in COMMANDS.values()}
    assert shared == SHARED
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in sorted(names - shared):
        with pytest.raises(ValueError, match=f"^{name} must be run by one process; got 2 of torchrun"):
            joined_ranks(name, {}, NAMES).__enter__()
    assert {"validate", "bench", "repeat", "demo"} <= names - shared


# Several commands of one launch, as starting the ranks takes longer than any of them.
DRIVER = """
import os, sys
from hessprobe.cli.app import app

words, commands = [], []
for word in sys.argv[1:]:
    if word == "then":
        commands.append(words)
        words = []
    else:
        words.append(word)
for words in [*commands, words]:
    code = app(words, standalone_mode=False)
    if code:
        sys.exit(code)
"""

NET = ("ckpt.pt", "--dtype", "float64", "--examples", "157", "--batch-size", "40")
FIRST = "run/ckpt-epoch-0000.pt"
TRAIN = ("train", "--model", "cnn:widths=4", "--optimizer", "sam", "--epochs", "1", "--subset", "0.1")
COMMANDS = {
    "measure": ("measure", *NET, "-m", "lambda-max", "-m", "trace", "-m", "frob", "--probes", "16"),
    "sharpness": ("sharpness", *NET, "--rho", "0.05"),
    "line": ("landscape", *NET, "--line", "--size", "5", "--map", "error", "--out", "line.svg"),
    "eigenvalues": ("landscape", *NET, "--line", "--size", "3", "--map", "lambda-max", "--out", "eigenvalues.svg"),
    "invariance": ("invariance", *NET, "-m", "trace", "-m", "lambda-max", "--strength", "10", "--probes", "4"),
    "compare": ("compare", "ckpt.pt", FIRST, *NET[1:], "-m", "lambda-max", "-m", "trace", "--probes", "8"),
    "track": ("track", "run", *NET[1:], "-m", "lambda-max", "-m", "trace"),
    "train": (*TRAIN, "--out", "cnn.pt"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trained")
    words = ("train", "--model", "mlp:hidden=8", "--epochs", "1", "--save-every", "1", "--out", "ckpt.pt")
    ended = run(made, *words, ranks=False)
    assert ended.returncode == 0, ended.stderr
    return made


def launch(folder: Path, count: int) -> subprocess.CompletedProcess[str]:
    place = folder / f"ranks{count}"
    (place / "run").mkdir(parents=True)
    shutil.copy(folder / "ckpt.pt", place)
    for path in folder.glob("ckpt-epoch-*.pt"):
        shutil.copy(path, place / "run")
    (place / "driver.py").write_text(DRIVER)
    words = [word for name, each in COMMANDS.items() for word in (*each, "--json", f"{name}.json", "then")][:-1]
    ranks = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
    program = (
        [sys.executable, "-m", *ranks, "driver.py", *words] if count > 1 else [sys.executable, "driver.py", *words]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    return subprocess.run(program, cwd=place, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def alone(trained: Path) -> dict[str, dict[str, Any]]:
    ended = launch(trained, 1)
    assert ended.returncode == 0, ended.stderr
    return records(trained / "ranks1")


def records(place: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads((place / f"{name}.json").read_text()) for name in COMMANDS}


def test_weights_spread_over_ranks_are_measured_from_the_command_line(folder: Path):
    given = ("measure", "ckpt.pt", "-m", "lambda-max", "-m", "trace", "--dtype", "float64", "--examples", "157",
             "--probes", "60")  # fmt: skip
    whole, spread, wrong = (run(folder, *given, *more, ranks=ranks) for more, ranks in (
        (("--json", "whole.json"), False),
        (("--shard", "fsdp", "--json", "spread.json"), True),
        (("--shard", "fsdp"), False),
    ))  # fmt: skip
    assert spread.returncode == whole.returncode == 0, spread.stderr
    assert spread.stdout.count("lambda-max: parameters spread over 2 ranks: products by differences of gradients") == 1
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("whole", "spread"))
    assert two["ranks"] == {"count": 2, "examples": [78, 79]}
    (own, trace), (largest, sampled) = one["results"], two["results"]
    assert largest["value"] == pytest.approx(own["value"], rel=1e-7)
    assert largest["interval"] == pytest.approx(own["interval"], rel=1e-7)
    low, high = sampled["interval"]
    assert low <= trace["value"] <= high
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--shard needs several processes to spread the weights over; got one." in wrong.stderr


# What differs from run to run whatever the ranks, and choices by time that change no number beyond rounding.
CLOCK = {"seconds", "cost", "engine", "points_per_pass", "notes", "gradients", "method"}


def same(found: Any, expected: Any, rel: float, where: str = "") -> None:
    if isinstance(expected, dict):
        assert set(found) - CLOCK == set(expected) - CLOCK, where
        for key in set(expected) - CLOCK:
            same(found[key], expected[key], rel, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, rel, f"{where}[{index}]")
    elif isinstance(expected, float):
        # How many of its errors a difference between equal values is away from zero: rounding over rounding.
        assert found == pytest.approx(expected, rel=rel, abs=1e-6 if where.endswith(".z") else 1e-12), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_find_what_one_process_does(trained: Path, alone: dict[str, dict[str, Any]], count: int):
    ended = launch(trained, count)
    assert ended.returncode == 0, ended.stderr
    # One of them speaks.
    assert ended.stdout.count("cnn.pt:") == 1
    place = trained / f"ranks{count}"
    for name, record in records(place).items():
        assert "ranks" not in alone[name]
        assert record["ranks"]["count"] == len(record["ranks"]["examples"]) == count
        assert sum(record["ranks"]["examples"]) == (141 if name == "train" else 157), name
        if name != "train":
            same(record["results"], alone[name]["results"], 1e-9, name)
        if name == "compare":
            same(record["differences"], alone[name]["differences"], 1e-9, name)
            assert {each["verdict"] for each in record["differences"]} == {"flatter"}
    # The same files, and nothing of the silent ranks.
    ours, theirs = ({path.name for path in each.iterdir()} for each in (place, trained / "ranks1"))
    assert ours == theirs
    # Weights are float32.
    own, other = (torch.load(each / "cnn.pt", weights_only=True) for each in (place, trained / "ranks1"))
    for key, tensor in other["state_dict"].items():
        torch.testing.assert_close(own["state_dict"][key], tensor, rtol=1e-4, atol=2e-6)
