"""Squared gradient norms of single examples against the Jacobian written out, layer kind by layer kind."""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn

from hessprobe.hvp.example_norms import example_squares
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.batches import EmpiricalBatch


class Tied(nn.Module):
    """An embedding tied to the output layer, a layer used twice, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.position = nn.Parameter(torch.randn(5, 4))
        self.norm, self.twice = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens) + self.position
        hidden = hidden + torch.tanh(self.twice(self.norm(hidden)))
        hidden = hidden + torch.tanh(self.twice(hidden))
        return self.head(hidden).transpose(1, 2)


class Flat(nn.Module):
    """All positions of all examples in one row, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.RMSNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.relu_(self.first(x.reshape(-1, 3))))
        return self.last(hidden).view(*x.shape[:2], 2).sum(1)


class Convolutions(nn.Module):
    """Groups, strides, dilation, a layer without a rule, norm layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.group = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, (1, 3), dilation=(1, 2), padding=(0, 2))
        self.third, self.back = nn.Conv1d(4, 3, 2), nn.ConvTranspose1d(3, 3, 2)
        self.norm, self.slope = nn.BatchNorm1d(3), nn.PReLU(3)
        self.norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.third(self.second(torch.relu(self.group(self.first(x)))).flatten(2))
        return self.slope(self.norm(self.back(hidden))).mean(2)


class Sideways(nn.Module):
    """The weight of a layer is used outside of it as well: its calls are not all that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(x @ self.layer.weight))


class Mixed(nn.Module):
    """Examples see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        return hidden - hidden.mean(0)


def batches_of(module: nn.Module, inputs: list[Tensor], targets: list[Tensor]) -> EmpiricalRisk:
    return EmpiricalRisk(module.double(), nn.CrossEntropyLoss(), list(zip(inputs, targets, strict=True)))


def tokens(*sizes: int) -> EmpiricalRisk:
    torch.manual_seed(1)
    draws = [torch.randint(7, (2, n, 5)) for n in sizes]
    return batches_of(Tied(), [x for x, _ in draws], [y for _, y in draws])


def vectors(module: type[nn.Module], shape: tuple[int, ...], classes: int, *sizes: int) -> EmpiricalRisk:
    torch.manual_seed(2)
    inputs = [torch.randn(n, *shape, dtype=torch.float64) for n in sizes]
    return batches_of(module(), inputs, [torch.randint(classes, (n,)) for n in sizes])


RISKS: dict[str, tuple[Callable[[], EmpiricalRisk], set[str], set[str]]] = {
    "linear": (lambda: nets.mlp().risk(), set(), set()),
    "convolution": (lambda: nets.cnn().risk(), set(), set()),
    "unused": (lambda: nets.odd().risk(), set(), {"unused"}),
    "attention": (
        lambda: nets.attention().risk(),
        {"attend.in_proj_weight", "attend.in_proj_bias", "attend.out_proj.weight", "attend.out_proj.bias"},
        set(),
    ),
    "tied": (lambda: tokens(4, 3), set(), {"position"}),
    "flat": (lambda: vectors(Flat, (3, 3), 2, 6, 5), set(), set()),
    "all kinds": (
        lambda: vectors(Convolutions, (2, 6, 6), 3, 5, 2),
        {"back.weight", "back.bias", "slope.weight"},
        set(),
    ),
    "sideways": (lambda: vectors(Sideways, (3,), 3, 4), set(), {"layer.weight"}),
}


def written_out(batch: EmpiricalBatch, theta: Tensor, direction: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(batch.outputs, theta)
    return (jacobian * direction[..., None]).flatten(1, -2).sum(1).square().sum(1)


@pytest.mark.parametrize("name", list(RISKS))
@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_norms_are_those_of_the_jacobian(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("layer_gradients", "example_norms"):
        monkeypatch.setattr(f"hessprobe.hvp.{module}._CHUNK", chunk)
    make, inside, rest = RISKS[name]
    risk = make()
    generator = torch.Generator().manual_seed(0)
    with risk.evaluating():
        for batch in risk.terms():
            outputs = batch.outputs(risk.theta).detach()
            directions = [torch.randn(outputs.shape, dtype=torch.float64, generator=generator) for _ in range(3)]
            first = example_squares(batch, risk.theta, directions[:1])
            assert first is not None
            ways = first[1]
            found = example_squares(batch, risk.theta, directions, ways)
            assert found is not None
            squares = found[0]
            torch.testing.assert_close(first[0], squares[:1])
            expected = torch.stack([written_out(batch, risk.theta, direction) for direction in directions])
            torch.testing.assert_close(squares, expected, rtol=1e-10, atol=1e-14)
            assert (set(ways.modules), set(ways.rest)) == (inside, rest)


@pytest.mark.parametrize("positions", [2, 40])
def test_both_ways_to_the_norm_of_a_sum_of_outer_products(positions: int) -> None:
    class Each(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x)).sum(1)

    risk = vectors(Each, (positions, 5), 6, 4)
    (batch,) = risk.terms()
    direction = torch.randn(4, 6, dtype=torch.float64)
    found = example_squares(batch, risk.theta, [direction])
    assert found is not None
    torch.testing.assert_close(found[0][0], written_out(batch, risk.theta, direction), rtol=1e-10, atol=0)


def test_examples_that_see_each_other_have_none() -> None:
    risk = vectors(Mixed, (3,), 3, 4)
    (batch,) = risk.terms()
    assert example_squares(batch, risk.theta, [torch.randn(4, 3, dtype=torch.float64)]) is None
