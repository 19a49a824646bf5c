"""``torchrun -m hessprobe``: the numbers of one process, told and written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

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


def test_a_wrong_argument_is_said_once(folder: Path):
    ended = run(folder, "measure", "ckpt.pt", "-m", "trase", ranks=True)
    assert ended.returncode != 0
    assert ended.stderr.count("--measure must be one of") == 1
    assert "Traceback" not in ended.stderr.split("hessprobe: error")[0]


def test_what_shares_nothing_out_is_refused(folder: Path):
    ended = run(folder, "train", "--data", "digits", "--out", "other.pt", ranks=True)
    assert ended.returncode != 0
    assert "train must be run by one process; got 2 of torchrun" in ended.stderr
    assert not (folder / "other.pt").exists()
