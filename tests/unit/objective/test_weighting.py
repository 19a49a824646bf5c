from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.errors import DataError
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import loss_rule

SIZES = (32, 32, 32, 4)


def cut(x: Tensor, y: Tensor, sizes: tuple[int, ...] = SIZES) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def net(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


class Tokens(nn.Module):
    """Logits (B, C, T) of tokens (B, T)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(7, 4).double()
        self.head = nn.Linear(4, 7).double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).cumsum(1)).mT


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def assert_same_risk(one: EmpiricalRisk, other: EmpiricalRisk) -> None:
    torch.testing.assert_close(one.loss(), other.loss(), rtol=1e-12, atol=0)
    torch.testing.assert_close(one.gradient(), other.gradient(), rtol=1e-12, atol=1e-14)


CLASS_WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
CLASSIFICATION = {
    "module": nn.CrossEntropyLoss(),
    "function": F.cross_entropy,
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "none": nn.CrossEntropyLoss(reduction="none"),
    "class weights": nn.CrossEntropyLoss(weight=CLASS_WEIGHT),
    "class weights, sum": functools.partial(F.cross_entropy, weight=CLASS_WEIGHT, reduction="sum"),
    "smoothed class weights": nn.CrossEntropyLoss(weight=CLASS_WEIGHT, label_smoothing=0.2),
    "ignored": functools.partial(F.cross_entropy, ignore_index=2),
    "partial of partial": functools.partial(functools.partial(F.cross_entropy, ignore_index=1), ignore_index=0),
    "user's own": lambda z, y: F.cross_entropy(z, y),
}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_ragged_batches_give_the_loss_of_one_batch(name: str, generator: torch.Generator) -> None:
    loss, model = CLASSIFICATION[name], net()
    x, y = (
        torch.randn(100, 5, generator=generator, dtype=torch.float64),
        torch.randint(0, 3, (100,), generator=generator),
    )
    risk = EmpiricalRisk(model, loss, cut(x, y))
    assert_same_risk(risk, EmpiricalRisk(model, loss, [(x, y)]))
    mean = functools.partial(loss, reduction="mean") if isinstance(loss, functools.partial) else loss
    if isinstance(loss, nn.Module):
        mean = nn.CrossEntropyLoss(weight=loss.weight, label_smoothing=loss.label_smoothing)
    torch.testing.assert_close(risk.loss(), mean(model(x), y).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none", "sum"])
def test_elementwise_losses(reduction: str, generator: torch.Generator) -> None:
    x = torch.randn(100, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    model, loss = net(), nn.MSELoss(reduction=reduction)
    risk = EmpiricalRisk(model, loss, cut(x, y))
    assert_same_risk(risk, EmpiricalRisk(model, loss, [(x, y)]))
    scale = 3 if reduction == "sum" else 1
    torch.testing.assert_close(risk.loss(), scale * F.mse_loss(model(x), y).detach(), rtol=1e-12, atol=0)


def test_probability_targets(generator: torch.Generator) -> None:
    x = torch.randn(100, 5, generator=generator, dtype=torch.float64)
    y = torch.rand(100, 3, generator=generator, dtype=torch.float64).softmax(1)
    model = net()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), cut(x, y))
    assert risk.n_units == 100
    torch.testing.assert_close(risk.loss(), F.cross_entropy(model(x), y).detach(), rtol=1e-12, atol=0)


def padded(generator: torch.Generator, ignored: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 7, (10, 6), generator=generator)
    lengths = torch.tensor([6, 1, 2, 6, 3, 1, 1, 5, 0, 0])
    y = torch.randint(0, 7, (10, 6), generator=generator).masked_fill(torch.arange(6) >= lengths[:, None], ignored)
    return x, y


@pytest.mark.parametrize("ignored", [-100, 0])
def test_padded_tokens_do_not_depend_on_batching(ignored: int, generator: torch.Generator) -> None:
    x, y = padded(generator, ignored)
    model, loss = Tokens(), nn.CrossEntropyLoss(ignore_index=ignored)
    whole = EmpiricalRisk(model, loss, [(x, y)])
    torch.testing.assert_close(whole.loss(), loss(model(x), y).detach(), rtol=1e-12, atol=0)
    for sizes in ((4, 4, 2), (1,) * 10, (3, 7)):
        risk = EmpiricalRisk(model, loss, cut(x, y, sizes))
        assert_same_risk(risk, whole)
        assert risk.n_units == whole.n_units == int((y != ignored).sum())
        assert sum(term.weight for term in risk.terms()) == pytest.approx(1, abs=1e-15)


def test_batches_without_counted_targets_are_left_out(generator: torch.Generator) -> None:
    x, y = padded(generator, -100)
    risk = EmpiricalRisk(Tokens(), nn.CrossEntropyLoss(), cut(x, y, (4, 4, 2)))
    assert risk.n_terms == 2 == len(list(risk.terms()))
    assert risk.notes == ("1 batches without counted targets left out",)
    assert bool(torch.isfinite(risk.gradient()).all())
    with pytest.raises(DataError, match="data must hold targets that are counted; got only ignored or empty ones"):
        EmpiricalRisk(Tokens(), nn.CrossEntropyLoss(), [(x[8:], y[8:])])


def test_slices_add_up_and_an_ignored_slice_is_zero(generator: torch.Generator) -> None:
    x, y = padded(generator, -100)
    risk = EmpiricalRisk(Tokens(), nn.CrossEntropyLoss(), [(x, y)])
    (term,) = risk.terms()
    parts = [term.slice(0, 3), term.slice(3, 8), term.slice(8, 10)]
    assert [part.size for part in parts] == [9.0, 16.0, 0.0]
    theta = risk.theta.clone().requires_grad_()
    total = sum(part.weight * part(theta) for part in parts)
    torch.testing.assert_close(total, term(theta), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(parts[2](theta), theta)
    assert not slope.any()
    assert float(parts[2].loss_of_outputs(parts[2].outputs(risk.theta))) == 0.0


def test_examples_and_tokens_weighting_differ_where_asked(generator: torch.Generator) -> None:
    x, y = padded(generator, -100)
    data, loss = cut(x, y, (4, 4, 2))[:2], nn.CrossEntropyLoss()
    means = [loss(Tokens()(a), b).detach() for a, b in data]
    by_examples = EmpiricalRisk(Tokens(), loss, data, weighting="examples")
    torch.testing.assert_close(by_examples.loss(), (means[0] + means[1]) / 2, rtol=1e-12, atol=0)
    by_tokens = EmpiricalRisk(Tokens(), lambda z, t: loss(z, t), data, weighting="tokens")
    torch.testing.assert_close(by_tokens.loss(), (15 * means[0] + 10 * means[1]) / 25, rtol=1e-12, atol=0)


def test_unknown_loss_on_ignored_targets_asks(generator: torch.Generator) -> None:
    x, y = padded(generator, -100)
    with pytest.raises(
        ValueError, match="weighting must be 'tokens' or 'examples' for targets that hold -100; got 'auto'"
    ):
        EmpiricalRisk(Tokens(), lambda z, t: F.cross_entropy(z, t), [(x, y)])


def test_messages() -> None:
    x, y = torch.randn(4, 5).double(), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"weighting must be one of auto, examples, tokens; got 'token'.*'tokens'"):
        loss_rule(F.cross_entropy, "token")
    with pytest.raises(ValueError, match=r"loss must be a scalar; got shape \(4,\) from per_example"):
        EmpiricalRisk(net(), per_example, [(x, y)])
    with pytest.raises(TypeError, match="loss must return a tensor; got float"):
        EmpiricalRisk(net(), lambda z, t: 1.0, [(x, y)])
    with pytest.raises(
        ValueError, match=r"targets must have the shape of the outputs for MSELoss; got \(4,\) and \(4, 1\)"
    ):
        EmpiricalRisk(net(1), nn.MSELoss(), [(x, x[:, 0])])
    with pytest.raises(
        ValueError, match=r"outputs and targets must fit CrossEntropyLoss; got outputs \(4, 3\) torch.float64"
    ):
        EmpiricalRisk(net(), nn.CrossEntropyLoss(), [(x, y[:3])])
    with pytest.raises(ValueError, match=r"outputs and targets must fit cross_entropy.*Target 3 is out of bounds"):
        EmpiricalRisk(net(), F.cross_entropy, [(x, y + 3)])
    with pytest.raises(TypeError, match="targets must be a tensor to be counted as tokens; got dict"):
        EmpiricalRisk(net(), lambda z, t: z.sum(), [(x, {"a": y})], weighting="tokens")


def per_example(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")
