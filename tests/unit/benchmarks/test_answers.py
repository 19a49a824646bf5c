"""Answers timed beside a gradient: each contestant's value is checked, and a stranger's is not taken on trust."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessprobe.benchmarks import answers
from hessprobe.benchmarks.answers import NETWORKS, OWN, QUESTIONS, TOGETHER, Answered, Network


def small() -> Network:
    torch.manual_seed(0)
    data = [(torch.randn(40, 64), torch.randint(10, (40,))) for _ in range(2)]
    return Network("d", "small", ("mlp", {"in_features": 64, "hidden": [6]}), lambda _: data, F.cross_entropy, 3, 0.1)


def dense(module: nn.Module, data: list) -> torch.Tensor:
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    shapes = {name: p.shape for name, p in module.named_parameters()}

    def value(theta: torch.Tensor) -> torch.Tensor:
        pieces = theta.split([math.prod(shape) for shape in shapes.values()])
        at = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(module, at, (inputs.double(),)), targets)

    start = torch.cat([p.detach().double().flatten() for p in module.parameters()])
    return torch.autograd.functional.hessian(value, start)


def test_every_question_is_answered_right_and_others_are_held_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: nn.Module, loss: object, data: object) -> Answered:  # as all contestants
        return Answered(1e3, 1e3, 1e3)

    def slow(module: nn.Module, loss: object, data: object) -> Answered:
        return Answered(float(H.trace()), float(H.trace()), float(H.trace()), more=60.0)

    network = small()
    module, data = network.trained()
    H = dense(module, data)

    def broken(module: nn.Module, loss: object, data: object) -> Answered:
        raise NotImplementedError("no such thing\nmore")

    rivals = (("wrong", "math", wrong), ("slow", "math", slow), ("absent", "no_such", slow), ("broken", "math", broken))
    monkeypatch.setattr(answers, "PEERS", {"trace, standard error 1 %": rivals})
    rows = {(row.question, row.contestant): row for row in answers.time_answers(network, peers=True)}
    assert {question for question, _ in rows} == {*QUESTIONS, TOGETHER}
    values = torch.linalg.eigvalsh(H)
    dimension = float((values**2 / (values**2 + 1e-6)).sum())
    for contestant in (OWN, "hessprobe, the dearest alone"):
        row = rows[TOGETHER, contestant]
        assert abs(row.value - dimension) <= 0.05 * dimension
        assert row.low * (1 - 1e-3) <= dimension <= row.high * (1 + 1e-3)
        assert row.agrees
    truths = [float((H @ answers._signs(len(H), 1)[:, 0].double()).norm()), *[float(values[-1])] * 2]
    truths += [float(H.trace()), float(H.norm())]
    near = float((values.abs() <= 1e-3 * values.abs().max()).double().mean())
    truths += [near, float(torch.log(torch.hypot(values, torch.full_like(values, 1e-3))).sum())]
    for question, truth in zip(QUESTIONS, truths, strict=True):
        row = rows[question, OWN]
        width = 0.06 if "look" in question else 0.025
        assert abs(row.value - truth) <= width * abs(truth)
        assert row.low - 1e-4 * abs(truth) <= truth <= row.high + 1e-4 * abs(truth)
        assert row.gradients > 0
        assert row.agrees
    trace = "trace, standard error 1 %"
    assert not rows[trace, "wrong"].agrees
    assert rows[trace, "slow"].agrees
    assert rows[trace, "slow"].seconds > 60
    assert (trace, "absent") not in rows
    assert rows[trace, "broken"].note == "error: NotImplementedError: no such thing"
    assert rows[trace, "broken"].row()["value"] is None
    text = answers.page([row.row() for row in rows.values()], "machine")
    assert "(another value: 1000)" in text
    assert "| error |" in text
    assert "not complete" not in text.lower()
    assert "Not complete" in answers.page([row.row() for row in rows.values()], "machine", incomplete=True)


def test_networks_are_trained_alike_wherever_they_are() -> None:
    first, data = NETWORKS["d"].trained()
    second, _ = NETWORKS["d"].trained()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert sum(len(y) for _, y in data) == 1797
    assert not first.training
    for name, examples, shape in (("a", 2048, (784,)), ("b", 256, (3, 32, 32)), ("c", 128, (64,))):
        batches = NETWORKS[name].data(None)
        assert sum(len(y) for _, y in batches) == examples
        assert batches[0][0].shape[1:] == shape


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hessprobe", "bench", *words], capture_output=True, text=True, check=False
    )


def test_the_command_writes_the_table_and_refuses_what_does_not_go_together(tmp_path) -> None:
    record, table = tmp_path / "a.json", tmp_path / "a.md"
    done = run("--suite", "answers", "--case", "d", "--json", str(record), "--markdown", str(table))
    assert done.returncode == 0, done.stderr
    rows = json.loads(record.read_text())["timings"]
    assert [row["question"] for row in rows] == [*QUESTIONS, TOGETHER, TOGETHER]
    assert [row["contestant"] for row in rows[-2:]] == [OWN, "hessprobe, the dearest alone"]
    assert table.read_text() == done.stdout
    assert "| trace, standard error 1 % | hessprobe |" in done.stdout
    for words, said in (
        (("--suite", "steps", "--peers"), "--peers is for --suite answers"),
        (("--peers", "--data", "nowhere"), "--data must be a folder; got 'nowhere'"),
        (("--peers", "--case", "mlp"), "--case must be one of a, b, c, d"),
    ):
        refused = run(*words)
        assert refused.returncode == 2
        assert said in refused.stderr
