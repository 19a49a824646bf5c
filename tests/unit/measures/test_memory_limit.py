"""One limit of memory for all of a measurement: what it is shared out to, what is refused, and that it holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nets
import pytest
import torch

import hessprobe as hp
from hessprobe.errors import MemoryBudgetError
from hessprobe.estimators.frobenius import group_rows, sample_squares
from hessprobe.estimators.xtrace import block_rows
from hessprobe.hvp.pool import shares
from hessprobe.krylov.restart import ThickRestart
from hessprobe.operators import DenseOperator
from hessprobe.vectors import ProbeStream, room_for_vectors, rows_within, vectors_within

ROOT = Path(__file__).parents[3]
MB = 1 << 20


def test_half_is_for_vectors_and_a_product_may_take_as_much_again_as_it_keeps() -> None:
    found = shares(524 * MB, 1000 * 1000, 4)
    assert found.vectors == 250 * MB
    assert found.products == (250 * MB - 16_000_000) // 2
    assert shares(None, 10, 4) == type(found)(None, None)


def test_a_limit_below_a_few_vectors_is_refused_with_what_is_needed() -> None:
    with pytest.raises(
        MemoryBudgetError, match=r"^memory must be at least 70.5 MB for 1000000 parameters; got 50 MB\. "
    ):
        shares(50 * MB, 1000 * 1000, 4)
    assert shares(71 * MB, 1000 * 1000, 4).products is not None
    with pytest.raises(ValueError, match="memory"):
        shares(0, 10, 4)


def test_rows_are_those_that_fit() -> None:
    assert rows_within(100, 8, 50) == 50
    with vectors_within(8000):
        assert room_for_vectors() == 8000
        assert rows_within(100, 8, 50) == 10
        assert rows_within(100, 8, 7) == 7
        assert rows_within(100, 8, 50, copies=2.5) == 4
        with pytest.raises(MemoryBudgetError, match="11 vectors of 100 entries"):
            rows_within(100, 8, 50, least=11)
    assert room_for_vectors() is None


def test_blocks_and_groups_of_probes_fit_the_limit() -> None:
    with vectors_within(64 * 4 * 1000):
        assert (block_rows(1000), group_rows(1000)) == (4, 11)
        assert group_rows(1000, held=20) == 7
        assert group_rows(1000, itemsize=8) == 5
    assert (block_rows(1000), group_rows(1 << 20)) == (64, 64)
    with vectors_within(1000):
        assert block_rows(1000) == 1
        with pytest.raises(MemoryBudgetError):
            group_rows(1000)


@pytest.mark.parametrize(("dim", "held"), [(669_706, 0), (1_000_000, 6)])
def test_what_a_norm_asks_for_where_it_has_too_little_is_enough(dim: int, held: int) -> None:
    room = 25_000_000
    with vectors_within(room), pytest.raises(MemoryBudgetError, match="MB more") as refused:
        group_rows(dim, held=held)
    more = int(re.findall(r"Give (\d+) MB more", str(refused.value))[0])
    # Half of a limit is for vectors.
    with vectors_within(room + more * 500_000):
        assert group_rows(dim, held=held) == 2
    with vectors_within(room + (more - 4) * 500_000), pytest.raises(MemoryBudgetError):
        group_rows(dim, held=held)


def test_a_basis_fits_the_limit_and_the_answer_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.linspace(-1, 3, 400, dtype=torch.float64)
    values[-1] = 3.5
    A, held = DenseOperator(torch.diag(values)), []
    begin = ThickRestart.begin
    monkeypatch.setattr(
        ThickRestart, "begin", lambda self, row=None: (held.append(self.basis.nbytes), begin(self, row))[1]
    )
    free = hp.eigsh(A, 1, "largest")
    with vectors_within(10 * 400 * 8):
        tight = hp.eigsh(A, 1, "largest")
    assert (free.method, tight.method) == ("lanczos", "thick-restart-lanczos")
    assert held[0] > 10 * 400 * 8 >= held[1]
    for found in (free, tight):
        assert found.intervals.low[0] <= 3.5 <= found.intervals.high[0] <= 3.54
    with vectors_within(5 * 400 * 8), pytest.raises(MemoryBudgetError, match="6 vectors of 400 entries"):
        hp.eigsh(A, 1, "largest")


def test_single_precision_is_not_widened_beyond_the_limit() -> None:
    A = DenseOperator(torch.eye(100))

    def made() -> torch.dtype:
        return ThickRestart(A, 9, ProbeStream(100, 0, "gaussian", torch.float32), 0, torch.empty(0, 100)).basis.dtype

    assert made() == torch.float64
    with vectors_within(10 * 100 * 8):
        assert made() == torch.float64
    with vectors_within(10 * 100 * 8 - 1):
        assert made() == torch.float32


def test_products_of_earlier_groups_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    A = DenseOperator(torch.diag(torch.arange(1.0, 51.0, dtype=torch.float64)))
    stream = ProbeStream(50, 0, "rademacher", torch.float64, stream="frobenius")
    alive: list[int] = []
    with vectors_within(2 * 5 * 8 * 50 * 8 // 7 + 1):
        found = sample_squares(A, stream, 0, 7, None, callback=lambda state: alive.append(int(state.done)))
    assert [pairs.size for pairs in found.pairs] == [2, 2, 2, 1]
    assert len(found.products) == 1
    torch.testing.assert_close(found.products, stream.block(6, 7) * torch.arange(1.0, 51.0, dtype=torch.float64))


def test_a_measurement_within_a_limit_gives_the_same_numbers() -> None:
    risk = nets.mlp((40, 40)).risk()
    for name in ("lambda-max", "trace", "frob"):
        free = hp.measure(name, risk, rtol=0.2)
        tight = hp.measure(name, risk, rtol=0.2, memory=25 * MB)
        low, high = tight.interval()
        assert low <= free.value + free.half_width(0.999)
        assert free.value - free.half_width(0.999) <= high
    with pytest.raises(MemoryBudgetError, match="at least"):
        hp.measure("frob", risk, memory=10 * MB)


_PROGRAM = """
import json, sys, torch, torch._dynamo, hessprobe as hp
from hessprobe.benchmarks.memory import held_memory
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(256, 800), torch.nn.Tanh(), torch.nn.Linear(800, 800), torch.nn.Tanh(),
                          torch.nn.Linear(800, 10))
data = [(torch.randn(512, 256), torch.randint(10, (512,))) for _ in range(2)]
risk = hp.EmpiricalRisk(net, torch.nn.CrossEntropyLoss(), data)
limit = int(sys.argv[2]) or None
with held_memory() as held:
    found = hp.measure(sys.argv[1], risk, rtol=0.3, memory=limit)
print(json.dumps([held.peak, found.value]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_the_peak_of_the_process_stays_within_the_limit() -> None:
    def used(limit: int) -> tuple[int, float]:
        told = subprocess.run(
            [sys.executable, "-c", _PROGRAM, "frob", str(limit)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        ).stdout
        peak, value = json.loads(told)
        return peak, value

    free, one = used(0)
    tight, other = used(160 * MB)
    assert tight <= 1.1 * 160 * MB < free
    assert other == pytest.approx(one, rel=0.5)


_GAPS = """
import sys
import torch
from hessprobe.hvp.pool import shares, status_bytes, within

MB = 1 << 20
limit = None if sys.argv[1] == "none" else 64 * MB
# As large a block as the library goes on to keep has been freed.
torch.zeros(4 * MB)[:1].clone()
del sys
before = status_bytes("VmRSS")
with within(limit, shares(limit, 1000, 4)):
    held = [torch.ones(MB // 4) for _ in range(128)]
    held = held[::2]
    print((status_bytes("VmRSS") - before) // MB)
after = [torch.ones(MB // 4) for _ in range(128)][::2]
print((status_bytes("VmRSS") - before) // MB)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the resident set is read from /proc")
def test_what_is_freed_between_vectors_goes_back_under_a_limit_and_only_there() -> None:
    def held(limit: str) -> list[int]:
        made = subprocess.run(
            [sys.executable, "-c", _GAPS, limit], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
        )
        return [int(line) for line in made.stdout.split()]

    within_limit, beyond = held("64")
    assert 56 <= within_limit <= 80
    assert held("none")[0] >= 120
    # The library keeps what it is used to again.
    assert beyond - within_limit >= 120
