"""The benchmark times the same work for all, and says what it timed. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from hessprobe.benchmarks import CASES, Case, time_products
from hessprobe.benchmarks.cases import BATCHES
from hessprobe.benchmarks.products import gradient_pass
from hessprobe.cli.app import app
from hessprobe.cli.commands import bench
from hessprobe.hvp import ENGINES

TINY = Case(
    "mlp",
    "tiny",
    lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
    lambda generator: (torch.randn(5, 3, generator=generator), torch.randint(2, (5,), generator=generator)),
    F.cross_entropy,
)


def test_every_engine_is_timed_and_agrees() -> None:
    timings = time_products(TINY, vectors=(1, 2), rounds=2)
    names = {timing.contestant for timing in timings}
    assert names == {"auto", *ENGINES, "torch.func.linearize", "new graph each product"}
    assert len(timings) == 2 * len(names)
    for timing in timings:
        assert timing.ratio > 0
        assert timing.low <= timing.ratio <= timing.high
        assert timing.rounds == 2
        assert timing.relative_error < (5e-2 if timing.contestant == "finite_difference" else 1e-4)


def test_the_gradient_is_that_of_a_training_step() -> None:
    risk = TINY.risk(torch.device("cpu"))
    assert risk.n_terms == BATCHES
    calls = []
    handle = risk.module.register_forward_hook(lambda *_: calls.append(1))
    gradient_pass(TINY, risk)()
    handle.remove()
    assert len(calls) == BATCHES


@pytest.mark.parametrize("name", list(CASES))
def test_the_cases_are_what_their_titles_say(name: str) -> None:
    module = CASES[name].build()
    inputs, _ = CASES[name].batch(torch.Generator().manual_seed(0))
    sizes = {"mlp": (669706, (256, 784)), "resnet20": (272474, (32, 3, 32, 32)), "gpt": (809856, (16, 64))}
    assert (sum(p.numel() for p in module.parameters()), tuple(inputs.shape)) == sizes[name]


def test_command_writes_record_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "mlp", TINY)
    record, table = tmp_path / "bench.json", tmp_path / "bench.md"
    arguments = ["bench", "--case", "mlp", "--rounds", "1", "--json", str(record), "--markdown", str(table)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(record.read_text())["timings"]
    assert {row["vectors"] for row in rows} == {1, 8}
    assert {(row["low"], row["high"]) for row in rows} == {(None, None)}, "one round has no quartiles"
    assert table.read_text() == result.output
    auto = next(row for row in rows if row["contestant"] == "auto" and row["vectors"] == 1)
    assert f"| auto | {auto['ratio']:.2f} |" in table.read_text()


def test_wrong_usage() -> None:
    result = CliRunner().invoke(app, ["bench", "--case", "mpl"])
    assert result.exit_code == 2
    assert "Did you mean 'mlp'?" in result.output
    assert CliRunner().invoke(app, ["bench", "--rounds", "0"]).exit_code == 2
    assert bench._words(8) == "8 vectors"
