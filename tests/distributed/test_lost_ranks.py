"""A rank that dies or hangs: every other one says which, keeps what is known, and ends in time with its own code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch.distributed as dist

from hessprobe.cli.process import FAILED, RANK_LOST

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

TIMEOUT = 8
# Far more than are made before the end.
MEASURE = ("measure", "ckpt.pt", "-m", "trace", "--probes", "9999", "--examples", "800", "--batch-size", "16")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lost") / "ckpt.pt"
    words = ("train", "--model", "mlp:hidden=8", "--data", "digits", "--epochs", "1", "--out", str(made))
    subprocess.run([sys.executable, "-m", "hessprobe", *words], check=True, capture_output=True)
    return made


def start(folder: Path, count: int, last: str = "ckpt.pt") -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    measure = [MEASURE] * (count - 1) + [("measure", last, *MEASURE[2:])]
    program = [sys.executable, "-m", "hessprobe"]
    further = ["--timeout", str(TIMEOUT), "--json", "out.json"]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [*program, *measure[rank], *further],
            cwd=folder,
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def under_way(journal: Path, ranks: list[subprocess.Popen[str]]) -> None:
    end = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 6):
        assert time.monotonic() < end
        assert all(each.poll() is None for each in ranks), [each.communicate() for each in ranks if each.poll()]
        time.sleep(0.05)


@pytest.mark.parametrize(("count", "number"), [(2, signal.SIGKILL), (3, signal.SIGSTOP)])
def test_the_others_say_who_is_lost_and_keep_what_is_known(tmp_path, checkpoint, count, number):
    (tmp_path / "ckpt.pt").write_bytes(checkpoint.read_bytes())
    ranks = start(tmp_path, count)
    try:
        under_way(tmp_path / "out.json.journal", ranks)
        ranks[1].send_signal(number)
        began = time.monotonic()
        for rank, each in enumerate(ranks):
            if rank == 1:
                continue
            _, told = each.communicate(timeout=60)
            assert each.returncode == RANK_LOST, told
            sentences = re.findall(r"error: (rank 1 of \d has ended or hung, .*)", told)
            assert len(sentences) == 1, told
            assert f"waited {TIMEOUT} s at most" in sentences[0]
            assert "Traceback" not in told
        # Leaving takes a while on a busy machine.
        assert time.monotonic() - began < TIMEOUT + 12
    finally:
        for each in ranks:
            each.kill()
            each.communicate()
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["flags"] == ["failed"]
    assert "rank 1 of" in record["errors"][0]
    crc = 0
    for line in (tmp_path / "out.json.journal").read_bytes().splitlines(keepends=True):
        digits, _, text = line.rstrip(b"\n").partition(b" ")
        crc = zlib.crc32(text, crc)
        assert digits == b"%08x" % crc


@pytest.mark.parametrize(("count", "number"), [(3, signal.SIGKILL), (2, signal.SIGSTOP)])
def test_the_rank_that_has_the_store_is_named_too(tmp_path, checkpoint, count, number):
    """Without a launcher rank 0 has what the ranks know of each other, and takes it along."""
    (tmp_path / "ckpt.pt").write_bytes(checkpoint.read_bytes())
    ranks = start(tmp_path, count)
    try:
        under_way(tmp_path / "out.json.journal", ranks)
        ranks[0].send_signal(number)
        began = time.monotonic()
        for each in ranks[1:]:
            _, told = each.communicate(timeout=60)
            assert each.returncode == RANK_LOST, told
            assert len(re.findall(r"error: (rank 0 of \d has ended or hung, .*)", told)) == 1, told
            assert "Traceback" not in told
        assert time.monotonic() - began < TIMEOUT + 12
    finally:
        for each in ranks:
            each.kill()
            each.communicate()


def test_a_rank_that_fails_alone_says_why(tmp_path, checkpoint):
    (tmp_path / "ckpt.pt").write_bytes(checkpoint.read_bytes())
    (tmp_path / "torn.pt").write_bytes(checkpoint.read_bytes()[:500])
    first, second = start(tmp_path, 2, "torn.pt")
    _, why = second.communicate(timeout=90)
    _, told = first.communicate(timeout=90)
    assert (first.returncode, second.returncode) == (RANK_LOST, FAILED), (told, why)
    assert why.count("hessprobe: rank 1: error: torn.pt") == 1
    assert told.count("error: rank 1 of 2 has ended or hung") == 1


def test_a_rank_that_never_comes_is_not_waited_for(tmp_path, checkpoint):
    (tmp_path / "ckpt.pt").write_bytes(checkpoint.read_bytes())
    first, second = start(tmp_path, 2)
    second.kill()
    second.communicate()
    _, told = first.communicate(timeout=90)
    assert first.returncode == RANK_LOST, told
    assert "must meet within 8 s; they have not" in told


@pytest.mark.parametrize("seconds", ["0.5", "nan", "-1", "inf"])
def test_what_is_no_timeout_is_refused(seconds, tmp_path):
    program = [sys.executable, "-m", "hessprobe", "measure", "none.pt", "--timeout", seconds]
    ended = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 2
    assert "--timeout must be a number of seconds, 1 or more" in ended.stderr
