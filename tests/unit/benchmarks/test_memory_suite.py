"""The table of memory: what is measured, and that a limit that is too small is a row and not an end."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from hessprobe.benchmarks import memory
from hessprobe.cli.commands import bench

SMALL = replace(memory.SETTINGS["digits"], batches=1, measures=("frob",), limits=(None, 60 * memory.MB, 10 * memory.MB))


def test_every_network_is_measured_without_a_limit_and_with_some() -> None:
    todo = list(memory.tasks(memory.USUAL))
    for name in memory.USUAL:
        limits = {limit for case, what, limit in todo if case == name and what == "frob"}
        assert None in limits
        assert len(limits) > 2
    assert {case for case, *_ in todo} == set(memory.USUAL)


@pytest.mark.parametrize(("name", "least", "most"), [("gpt-50m", 45e6, 55e6), ("gpt-200m", 190e6, 210e6)])
def test_the_large_networks_have_the_size_of_their_names(name: str, least: float, most: float) -> None:
    import torch

    # Nothing is drawn, nor held.
    with torch.device("meta"):
        assert least < sum(p.numel() for p in memory.SETTINGS[name].case.build().parameters()) < most


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_each_measurement_is_a_row_with_its_peak_or_with_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory.SETTINGS, "digits", SMALL)
    found = [used for task in memory.tasks(["digits"]) for used in memory.follow(task, lambda line: None)]
    free, tight, refused = found
    assert free.peak is not None
    assert tight.peak is not None
    assert 1 * memory.MB < tight.peak <= 1.1 * 60 * memory.MB
    assert tight.value == pytest.approx(free.value, rel=0.5)
    assert refused.peak is None
    assert refused.refused.startswith("memory must be at least ")
    title, table = bench._memory_table([used.row() for used in found])
    assert title == "Memory of a measurement"
    lines = table.splitlines()
    assert len(lines) == 2 + 3 + 2
    assert f"| 60 | {tight.peak / memory.MB:.0f} | {tight.peak / tight.limit:.0%} |" in lines[3]
    assert refused.refused in lines[4]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_a_large_network_is_asked_for_less_and_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(SMALL, tol=0.05)
    monkeypatch.setitem(memory.SETTINGS, "digits", setting)
    used = memory.use("digits", "lambda-max", 60 * memory.MB)
    monkeypatch.setitem(memory.SETTINGS, "digits", replace(setting, tol=None))
    closer = memory.use("digits", "lambda-max", None)
    assert used.value is not None
    assert used.interval is not None
    assert closer.value is not None
    assert used.interval[0] <= closer.value <= used.interval[1] <= 1.31 * used.value
    assert used.products is not None
    assert used.products < (closer.products or 0)
