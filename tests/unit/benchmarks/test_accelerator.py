"""The suite for an accelerator runs to its end on small stand-ins, and its own networks are what it says they are."""

from __future__ import annotations

import pytest
import torch

from hessprobe.benchmarks import accelerator, answers
from hessprobe.training.models import build_model


def test_the_networks_are_as_large_as_their_names_say():
    sizes = {}
    for name, network in accelerator.networks().items():
        with torch.device("meta"):
            module = build_model(network.model[0], dict(network.model[1]))
        sizes[name] = sum(p.numel() for p in module.parameters()) / 1e6
    assert sizes == pytest.approx({"resnet18": 11.17, "gpt-124m": 124.44, "gpt-1b": 1313.6}, rel=1e-3)
    assert set(sizes) == set(accelerator.ASKED) == set(accelerator.networks(tiny=True))
    assert all(set(asked) <= set(answers.QUESTIONS) for asked in accelerator.ASKED.values())


def test_small_stand_ins_are_asked_the_same_questions():
    found: list[answers.Answer] = []
    accelerator.follow(torch.device("cpu"), found.append, cases=["gpt-124m", "gpt-1b"], tiny=True)
    asked = [(name, question) for name in ("gpt-124m", "gpt-1b") for question in accelerator.ASKED[name]]
    assert [(row.case, row.question) for row in found] == asked
    look, bracket = found[0], found[1]
    assert look.value == pytest.approx(bracket.value, rel=0.06)
    assert bracket.low <= bracket.value <= bracket.high


def test_nothing_is_begun_once_it_is_late(monkeypatch):
    monkeypatch.setattr(accelerator, "LIMIT", -1.0)
    found: list[answers.Answer] = []
    accelerator.follow(torch.device("cpu"), found.append, tiny=True, cases=["gpt-1b"])
    assert found == []


def test_single_precision_is_whole_while_it_runs_and_as_it_was_after():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with accelerator._single_precision():
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
