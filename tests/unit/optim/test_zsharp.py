"""ZSharp: the filter, and the length of what it leaves."""

from __future__ import annotations

import math

import pytest
import torch

from hessprobe.optim import ZSharp
from hessprobe.optim.rules.masked import _outstanding, _quantile


def moved(gradients: list[torch.Tensor], **arguments) -> list[torch.Tensor]:
    """Return the displacement for a linear loss with these gradients."""
    weights = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    optimizer = ZSharp(torch.optim.SGD(weights, lr=0.0), rho=0.5, **arguments)
    seen: list[list[torch.Tensor]] = []

    def loss() -> torch.Tensor:
        seen.append([w.detach().clone() for w in weights])
        return sum((w * g).sum() for w, g in zip(weights, gradients, strict=True))

    optimizer.step(loss=loss)
    return seen[1]


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((30, 20), (20,), (7, 30))]


def test_the_code_gives_every_filtered_tensor_the_length_rho():
    g = gradients()
    whole = math.sqrt(sum(float(x.norm()) ** 2 for x in g))
    e = moved(g)
    lengths = [float(x.norm()) for x in e]
    assert lengths == pytest.approx([0.5, 0.5 * float(g[1].norm()) / whole, 0.5], rel=1e-9)
    assert int((e[0] != 0).sum()) == 30  # 5 % of 600


def test_the_paper_gives_all_of_them_together_the_length_rho():
    e = moved(gradients(), convention="paper")
    assert math.sqrt(sum(float(x.norm()) ** 2 for x in e)) == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("convention", ["code", "paper"])
def test_a_tensor_where_nothing_stands_out_is_kept_whole(convention: str):
    flat = torch.ones(4, 3, dtype=torch.float64)  # no spread: no score above the quantile
    single = torch.full((1, 1), 2.0, dtype=torch.float64)
    whole = math.sqrt(12 + 4)
    e = moved([flat, single], convention=convention)
    torch.testing.assert_close(e[0], 0.5 * flat / whole, rtol=1e-10, atol=0)
    torch.testing.assert_close(e[1], 0.5 * single / whole, rtol=1e-10, atol=0)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("count", [2, 5, 101])
def test_quantiles_are_those_of_torch(count: int, q: float):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    torch.testing.assert_close(_quantile(values, q), torch.quantile(values, q), rtol=1e-14, atol=1e-15)


def test_half_precision_is_filtered_in_single():
    g = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(_outstanding(g, 0.9), _outstanding(g.float(), 0.9))
