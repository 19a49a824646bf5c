"""Traces of piecewise linear networks, exact from the Gauss-Newton matrix; of all others, never taken for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprobe as hp
from hessprobe.hvp import output_space, piecewise
from hessprobe.vectors import vectors_within

F64 = torch.float64


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


class Tied(nn.Module):
    """One matrix used twice: outputs are quadratic in it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.one(torch.relu(self.one(x)))))


class Scaled(nn.Module):
    """Two parameters of one module multiply each other: linear in each, not in both."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.scale * (x @ self.weight)))


class Doubled(nn.Module):
    """A parameter that enters squared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gain, self.last = nn.Linear(4, 5), nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) * self.gain.square())


class Gated(nn.Module):
    """Products of two layers: linear in each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.one(x)) * self.other(x))


class Adapted(nn.Module):
    """A low-rank update of a layer, its factors modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(4, 5), nn.Linear(4, 2, bias=False), nn.Linear(2, 5, bias=False)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.base(x) + self.up(self.down(x))))


def images(channels: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 4, 3, stride=2, groups=2 if channels % 2 == 0 else 1),
            nn.LeakyReLU(0.1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
        return net

    return make


def plain(*middle: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 5), *middle, nn.Linear(5, 3))


Loss = Callable[[Tensor, Tensor], Tensor]
LINEAR: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "ReLU, cross-entropy": (plain(nn.ReLU()), F.cross_entropy),
    "ReLU, class weights": (plain(nn.ReLU()), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.2, 3.0], dtype=F64))),
    "ReLU, label smoothing": (plain(nn.ReLU()), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "ReLU, squared error": (plain(nn.ReLU()), lambda f, y: F.mse_loss(f, F.one_hot(y, 3).to(f))),
    "ReLU, Huber": (plain(nn.ReLU()), lambda f, y: F.smooth_l1_loss(f, F.one_hot(y, 3).to(f), beta=2.0)),
    "ReLU, binary": (plain(nn.ReLU()), lambda f, y: F.binary_cross_entropy_with_logits(f, F.one_hot(y, 3).to(f))),
    "leaky, three layers": (plain(nn.LeakyReLU(0.2), nn.Linear(5, 5), nn.ReLU6()), F.cross_entropy),
    "hard tanh": (plain(nn.Hardtanh()), F.cross_entropy),
    "residual": (plain(Residual(5)), F.cross_entropy),
    "linear": (plain(), F.cross_entropy),
    "gated": (Gated, F.cross_entropy),
    "low-rank update": (Adapted, F.cross_entropy),
    "learned slope": (plain(nn.PReLU(5)), F.cross_entropy),
    "Poisson": (plain(nn.ReLU()), lambda f, y: F.poisson_nll_loss(f, F.one_hot(y, 3).to(f))),
    "focal": (
        plain(nn.ReLU()),
        lambda f, y: (
            (1 - f.softmax(1).gather(1, y[:, None]).squeeze(1)) ** 2 * F.cross_entropy(f, y, reduction="none")
        ).mean(),
    ),
    "dropout, evaluated": (plain(nn.ReLU(), nn.Dropout(0.5)), F.cross_entropy),
    "images": (images(2), F.cross_entropy),
    "images, odd": (images(3), F.cross_entropy),
}
CURVED: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "tanh": (plain(nn.Tanh()), F.cross_entropy),
    "GELU": (plain(nn.GELU()), F.cross_entropy),
    "hard swish": (plain(nn.Hardswish()), F.cross_entropy),
    "hard sigmoid, its quadratic parts": (plain(nn.Hardswish(), nn.Hardsigmoid()), F.cross_entropy),
    "ELU": (plain(nn.ELU()), F.cross_entropy),
    "layer norm": (plain(nn.ReLU(), nn.LayerNorm(5)), F.cross_entropy),
    "tied": (Tied, F.cross_entropy),
    "two parameters of a module": (Scaled, F.cross_entropy),
    "squared gain": (Doubled, F.cross_entropy),
    "log-softmax within": (lambda: nn.Sequential(*plain(nn.ReLU())(), nn.Tanh()), F.cross_entropy),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)),
        F.cross_entropy,
    ),
}


def problem(make: Callable[[], nn.Module], seed: int, sizes: tuple[int, ...] = (7, 5)) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(seed)
    module = make().double().eval()
    shape = (1, 7, 7) if any(isinstance(each, nn.Conv2d) for each in module.modules()) else (4,)
    return module, [(torch.randn(n, *shape, dtype=F64), torch.randint(3, (n,))) for n in sizes]


def dense(module: nn.Module, loss: Loss, data: list[Any]) -> Tensor:
    """The Hessian of the mean loss, written with torch alone."""
    names = [name for name, _ in module.named_parameters()]
    start = torch.cat([p.detach().flatten() for p in module.parameters()])
    shapes = [p.shape for p in module.parameters()]

    def value(theta: Tensor) -> Tensor:
        pieces = [
            piece.view(shape) for piece, shape in zip(theta.split([math.prod(s) for s in shapes]), shapes, strict=True)
        ]
        at = dict(zip(names, pieces, strict=True))
        inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
        return loss(torch.func.functional_call(module, at, (inputs,)), targets)

    return torch.autograd.functional.hessian(value, start)


def differences(module: nn.Module, loss: Loss, data: list[Any], step: float = 1e-5) -> float:
    """The trace by central differences of gradients: torch's second derivative of weight norm is wrong."""
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    total = 0.0
    for parameter in module.parameters():
        entries = parameter.data.view(-1)
        for i, start in enumerate(entries.tolist()):
            slopes = []
            for sign in (1, -1):
                entries[i] = start + sign * step
                (slope,) = torch.autograd.grad(loss(module(inputs), targets), parameter)
                slopes.append(float(slope.view(-1)[i]))
            entries[i] = start
            total += (slopes[0] - slopes[1]) / (2 * step)
    return total


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", LINEAR)
def test_the_trace_of_a_piecewise_linear_network_is_exact(name: str, seed: int) -> None:
    make, loss = LINEAR[name]
    module, data = problem(make, seed)
    H = dense(module, loss, data)
    operator = hp.Hessian(hp.EmpiricalRisk(module, loss, data))
    known = operator.exact_trace()
    assert known is not None
    assert math.isclose(known.value, float(H.trace()), rel_tol=1e-10, abs_tol=1e-12)
    diagonal, start = H.diagonal(), 0
    for key, parameter in module.named_parameters():
        own = float(diagonal[start : start + parameter.numel()].sum())
        assert math.isclose(known.blocks[key], own, rel_tol=1e-9, abs_tol=1e-12)
        start += parameter.numel()
    found = hp.trace(operator, rtol=0.02)
    assert found.kind == "exact"
    assert found.value == known.value
    assert math.isclose(float(known.weights @ known.traces), known.value, rel_tol=1e-12)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CURVED)
def test_no_other_network_is_taken_for_one(name: str, seed: int) -> None:
    make, loss = CURVED[name]
    module, data = problem(make, seed)
    operator = hp.Hessian(hp.EmpiricalRisk(module, loss, data))
    assert operator.exact_trace() is None
    low, high = hp.trace(operator, rtol=0.02).interval(0.9999)
    truth = differences(module, loss, data)
    slack = 1e-6 * (1 + abs(truth))
    assert low - slack <= truth <= high + slack


def test_the_groups_of_examples_are_those_of_the_data_error() -> None:
    module, data = problem(*LINEAR["ReLU, cross-entropy"][:1], 3, (40, 24))
    risk = hp.EmpiricalRisk(module, F.cross_entropy, data)
    known = hp.Hessian(risk).exact_trace()
    assert known is not None
    groups = list(hp.GaussNewton(risk).grouped(16).terms())
    assert len(groups) == len(known.weights) >= 16
    for (weight, G), own, trace in zip(groups, known.weights, known.traces, strict=True):
        assert math.isclose(weight, float(own), rel_tol=1e-12)
        assert math.isclose(float(G.to_dense().trace()), float(trace), rel_tol=1e-9)
    # A group's Hessian has the same trace, and the jackknife over groups is the error that is told.
    found = hp.trace(hp.Hessian(risk))
    traces = known.traces
    spread = (known.weights * (traces - float(known.weights @ traces))).square().sum()
    factor = 1 / (1 - float(known.weights.square().sum()))
    assert found.errors.data == pytest.approx(math.sqrt(factor * float(spread)), rel=1e-9)


def test_a_branch_that_other_examples_take_is_seen_on_all_data() -> None:
    """Piecewise linear on the examples that are looked at closely, and curved on one in the middle."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            bent = torch.where(x[:, :1] > 4.5, hidden.square(), torch.relu(hidden))
            return self.last(bent)

    torch.manual_seed(0)
    module = Branch().double()
    data = [(torch.randn(30, 4, dtype=F64), torch.randint(3, (30,))) for _ in range(3)]
    data[1][0][20, 0] = 5.0
    operator = hp.Hessian(hp.EmpiricalRisk(module, F.cross_entropy, data))
    assert operator.exact_trace() is None


def test_float32_and_finite_differences() -> None:
    module, data = problem(plain(nn.ReLU()), 1)
    truth = float(dense(module, F.cross_entropy, data).trace())
    single = [(x.float(), y) for x, y in data]
    found = hp.Hessian(hp.EmpiricalRisk(module.float(), F.cross_entropy, single)).exact_trace()
    assert found is not None
    assert found.value == pytest.approx(truth, rel=1e-5)
    risk = hp.EmpiricalRisk(module, F.cross_entropy, single)
    assert hp.Hessian(risk, engine="finite_difference").exact_trace() is None


@pytest.mark.parametrize("name", ["ReLU, cross-entropy", "ReLU, class weights", "images"])
def test_within_a_limit_the_trace_is_made_in_pieces_and_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, loss = LINEAR[name]
    module, data = problem(make, 2, (23, 18))
    free = hp.Hessian(hp.EmpiricalRisk(module, loss, data)).exact_trace()
    sizes = []
    real = output_space._together
    monkeypatch.setattr(
        output_space, "_together", lambda batch, theta: sizes.append(batch.examples) or real(batch, theta)
    )
    with vectors_within(40_000):
        kept = hp.Hessian(hp.EmpiricalRisk(module, loss, data)).exact_trace()
    assert free is not None
    assert kept is not None
    assert max(sizes) < 18
    assert sum(sizes) == 41
    assert math.isclose(kept.value, free.value, rel_tol=1e-12)
    torch.testing.assert_close(kept.traces, free.traces, rtol=1e-10, atol=1e-13)
    for key, value in free.blocks.items():
        assert math.isclose(kept.blocks[key], value, rel_tol=1e-10)


@pytest.mark.parametrize("name", ["ReLU, cross-entropy", "images"])
def test_within_a_limit_two_examples_at_a_time_are_looked_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, loss = LINEAR[name]
    module, data = problem(make, 2, (9, 7))
    risk, seen = hp.EmpiricalRisk(module, loss, data), []
    real = piecewise._piece_is_linear

    def looked(batch: Any, where: tuple[int, int], *rest: Any) -> bool:
        seen.append(where)
        return real(batch, where, *rest)

    monkeypatch.setattr(piecewise, "_piece_is_linear", looked)
    assert piecewise.linear_in_layers(risk)
    assert seen == [(0, 9), (0, 7)]
    seen.clear()
    with vectors_within(40_000):
        assert piecewise.linear_in_layers(risk)
        assert seen == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9), (0, 2), (2, 4), (4, 6), (6, 7)]
        # One that bends is enough, wherever it is.
        monkeypatch.setattr(piecewise, "_piece_is_linear", lambda batch, where, *rest: where != (6, 8))
        assert not piecewise.linear_in_layers(risk)


@pytest.mark.parametrize("name", ["tanh", "layer norm", "tied"])
def test_another_network_pays_for_no_pass_over_its_outputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(output_space, "summed_squares", lambda *_: asked.append(1))
    make, loss = CURVED[name]
    module, data = problem(make, 1)
    assert hp.Hessian(hp.EmpiricalRisk(module, loss, data)).exact_trace() is None
    assert not asked


def test_the_cost_is_told_once_and_products_are_counted() -> None:
    module, data = problem(LINEAR["residual"][0], 1)
    operator = hp.Hessian(hp.EmpiricalRisk(module, F.cross_entropy, data))
    first, again = operator.exact_trace(), operator.exact_trace()
    assert first is not None
    assert again is not None
    # Of three outputs (2 C + 8) / 6, forms of both matrices for two probes, and the closer look.
    assert first.cost >= (2 * 3 + 8) / 6 + 1.5 * 2 + 0.5
    assert again.cost == 0.0
    assert hp.trace(hp.Hessian(operator.risk)).matvecs == pytest.approx(first.cost)
