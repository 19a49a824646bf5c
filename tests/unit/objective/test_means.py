"""Which batches are cut and compared with their parts, and where."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprobe as hp
from hessprobe.objective.empirical import MOST, label_range, to_compare


def test_few_batches_are_all_compared() -> None:
    assert to_compare([(0.0, 2.0)] * MOST) == list(range(MOST))


@pytest.mark.parametrize("at", [1, 17, 501, 998])
@pytest.mark.parametrize("odd", [(-1.0, 2.0), (0.0, 255.0)])
def test_of_many_the_first_the_last_the_strange_and_an_even_spread(at: int, odd: tuple[float, float]) -> None:
    ranges = [(0.0, 2.0)] * 1000
    ranges[at] = odd
    chosen = to_compare(ranges)
    assert len(chosen) == MOST
    assert len(set(chosen)) == MOST
    assert {0, at, 999} <= set(chosen)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert max(gaps) <= 100


def test_label_range() -> None:
    assert label_range(torch.tensor([3, 255, -1])) == (-1.0, 255.0)
    assert label_range(torch.tensor([True, False])) == (0.0, 1.0)
    assert label_range(torch.tensor([[1.0, torch.nan], [torch.nan, 7.0]])) == (0.0, 2.0)
    for nothing in (torch.tensor([]), None, {"a": 1}, torch.tensor([1j])):
        assert label_range(nothing) == (0.0, 0.0)


def test_the_cost_is_two_passes_of_at_most_32_batches() -> None:
    seen = []

    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return super().forward(x)

    batches = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)) for _ in range(100)]

    def rows(loss: object, n: int) -> int:
        seen.clear()
        hp.EmpiricalRisk(Counting(3, 2), loss, batches[:n])
        return sum(seen)

    def unknown(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets)

    once = rows(unknown, 1)
    assert rows(unknown, 10) == once + 9 * 8
    assert rows(unknown, 100) == once + 31 * 8
    assert rows(F.cross_entropy, 100) == rows(F.cross_entropy, 1)
