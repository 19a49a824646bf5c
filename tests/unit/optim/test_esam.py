"""ESAM and K-SAM: which tensors and which examples take part."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from hessprobe.optim import ESAM, KSAM
from hessprobe.optim.rules.examples import most_sensitive, portion

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def make_model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()


class Watched:
    """A closure that notes, for every call, its subset and which parameters wanted a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.subsets: list[Tensor | None] = []
        self.wanted: list[list[bool]] = []

    def __call__(self, subset: Tensor | None = None) -> Tensor:
        self.subsets.append(subset)
        self.wanted.append([p.requires_grad for p in self.model.parameters()])
        rows = slice(None) if subset is None else subset
        return (self.model(X[rows])[:, 0] - Y[rows]) ** 2


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_the_gradient_of_a_dropped_tensor_is_not_computed():
    model = make_model()
    watched, optimizer = Watched(model), ESAM(sgd(model), beta=0.5, gamma=0.5)
    dropped = 0
    for _ in range(6):
        del watched.wanted[:]
        optimizer.step(watched)
        first, *later = watched.wanted
        assert all(all(wanted) for wanted in later)
        dropped += first.count(False)
    assert dropped > 0
    assert all(p.requires_grad for p in model.parameters())


def test_a_tensor_is_dropped_with_probability_one_minus_beta():
    model = make_model()
    watched, optimizer = Watched(model), ESAM(sgd(model), beta=0.7, gamma=1.0)
    kept = total = 0
    for _ in range(150):
        del watched.wanted[:]
        optimizer.step(watched)
        if len(watched.wanted) == 2:
            kept, total = kept + watched.wanted[0].count(True), total + 4
    # Steps that keep nothing are left out: p = 0.7/(1 - 0.3^4) of the others, standard deviation 0.02.
    assert abs(kept / total - 0.7 / (1 - 0.3**4)) < 4 * 0.02


def test_a_step_that_keeps_nothing_is_a_base_step_on_all_examples():
    model, plain = make_model(), make_model()
    watched, optimizer = Watched(model), ESAM(sgd(model), beta=1e-9, gamma=0.5)
    loss = optimizer.step(watched)
    assert optimizer.last.evaluations == 1
    assert watched.subsets == [None]
    reference = sgd(plain)
    expected = Watched(plain)(None).mean()
    expected.backward()
    reference.step()
    assert torch.equal(loss, expected.detach())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(("convention", "count"), [("paper", 5), ("code", 4)])
def test_the_examples_that_rise_most_are_selected(convention: str, count: int):
    model = make_model()
    watched, optimizer = Watched(model), ESAM(sgd(model), rho=0.3, beta=1.0, gamma=0.5, convention=convention)
    with torch.no_grad():
        before = Watched(model)(None)
    gradient = torch.autograd.grad(Watched(model)(None).mean(), list(model.parameters()))
    norm = torch.cat([g.reshape(-1) for g in gradient]).norm()
    optimizer.step(watched)
    moved = make_model()
    with torch.no_grad():
        for p, g in zip(moved.parameters(), gradient, strict=True):
            p.add_(0.3 * g / norm)
        rise = Watched(moved)(None) - before
    assert watched.subsets[:2] == [None, None]
    assert watched.subsets[2].tolist() == sorted(rise.argsort()[-count:].tolist())


def test_the_official_code_takes_all_examples_from_gamma_099_and_all_tensors_at_first():
    model = make_model()
    watched, optimizer = Watched(model), ESAM(sgd(model), beta=1e-9, gamma=0.99, convention="code")
    optimizer.step(watched)
    assert watched.subsets == [None, None]
    assert watched.wanted[0] == [True] * 4


def test_selection():
    rise = torch.tensor([3.0, 1.0, 3.0, 2.0, 0.0])
    assert most_sensitive(rise, 0.6).tolist() == [0, 2, 3]
    assert most_sensitive(rise, 0.6, strictly=True).tolist() == [0, 2]
    # Where all are equal to the smallest selected, one has to remain.
    assert len(most_sensitive(torch.zeros(4), 0.5, strictly=True)) == 1
    assert portion(0.29, 100) == 29
    assert portion(0.01, 10) == 1


def test_k_sam_takes_both_gradients_on_the_largest_losses():
    model = make_model()
    watched, optimizer = Watched(model), KSAM(sgd(model), keep=0.4)
    with torch.no_grad():
        losses = Watched(model)(None)
    loss = optimizer.step(watched)
    largest = sorted(losses.argsort()[-4:].tolist())
    assert watched.subsets[0] is None
    assert [subset.tolist() for subset in watched.subsets[1:]] == [largest, largest]
    assert torch.equal(loss, losses.mean())
    assert (optimizer.last.evaluations, optimizer.last.forwards) == (2, 1)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (ESAM, {"beta": 0.0}, "beta must be a number in (0, 1]; got 0.0"),
        (ESAM, {"gamma": 1.2}, "gamma must be a number in (0, 1]; got 1.2"),
        (ESAM, {"convention": "papr"}, "convention must be one of paper, code; got 'papr'. Did you mean 'paper'?"),
        (KSAM, {"keep": 0.0}, "keep must be a number in (0, 1]; got 0.0"),
    ],
)
def test_arguments_out_of_range(build: type[ESAM], arguments: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(sgd(make_model()), **arguments)


@pytest.mark.parametrize("build", [ESAM, KSAM])
def test_a_closure_that_returns_the_mean_is_refused(build: type[ESAM]):
    model = make_model()
    with pytest.raises(TypeError, match="closure must return one loss an example"):
        build(sgd(model)).step(lambda subset: Watched(model)(subset).mean())
