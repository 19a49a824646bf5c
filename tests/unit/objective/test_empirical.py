from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hessprobe.errors import UnsupportedError
from hessprobe.objective import EmpiricalRisk

CE = nn.CrossEntropyLoss()
ATTENTION_NOTE = "attention switched to the math kernel (the fused kernels have no second derivative)"


def data(sizes: tuple[int, ...] = (5, 5, 2)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    return list(zip(x.split(sizes), (torch.arange(sum(sizes)) % 3).split(sizes), strict=True))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def linearize(function: Any, theta: Tensor) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of torch.fx, about constants
        return torch.func.linearize(function, theta)


def independent_hessian(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The Hessian of the mean over all examples by plain double backward through the module itself."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(CE(model(x), y), parameters, create_graph=True)
    flat = torch.cat([s.reshape(-1) for s in slopes])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True) for entry in flat]
    return torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows])


def test_hessian_of_the_weighted_terms_is_that_of_the_module() -> None:
    model = mlp()
    risk = EmpiricalRisk(model, CE, data())
    hessian = sum(term.weight * torch.func.hessian(term)(risk.theta) for term in risk.terms())
    torch.testing.assert_close(hessian, independent_hessian(model, data()), rtol=1e-12, atol=1e-14)


def test_transforms_agree_on_a_product() -> None:
    risk = EmpiricalRisk(mlp(), CE, data())
    (term, *_) = risk.terms()
    V = torch.randn(3, risk.dim, dtype=torch.float64)
    expected = V @ torch.func.hessian(term)(risk.theta)
    gradient = torch.func.grad(term)
    rows = torch.func.vmap(lambda v: torch.func.jvp(gradient, (risk.theta,), (v,))[1])(V)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-14)
    _, push = linearize(gradient, risk.theta)
    torch.testing.assert_close(torch.func.vmap(push)(V), expected, rtol=1e-12, atol=1e-14)
    theta = risk.theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(term(theta), theta, create_graph=True)
    (row,) = torch.autograd.grad(slope @ V[0], theta)
    torch.testing.assert_close(row, expected[0], rtol=1e-12, atol=1e-14)


def test_batch_contract() -> None:
    risk = EmpiricalRisk(mlp(), CE, data())
    terms = list(risk.terms())
    assert [term.size for term in terms] == [5, 5, 2]
    assert [term.weight for term in terms] == [5 / 12, 5 / 12, 2 / 12]
    assert risk.n_terms == 3
    for term in terms:
        outputs = term.outputs(risk.theta)
        assert outputs.shape == (term.examples, 3)
        assert torch.equal(term.loss_of_outputs(outputs), term(risk.theta))
        torch.testing.assert_close(term.outputs_of(risk.theta, term.inputs[1:2])[0], outputs[1], rtol=1e-14, atol=0)
    single = torch.func.vmap(lambda x: terms[0].outputs_of(risk.theta, x[None])[0])(terms[0].inputs)
    torch.testing.assert_close(single, terms[0].outputs(risk.theta), rtol=1e-12, atol=1e-14)
    cut = terms[0].slice(1, 3)
    assert (cut.weight, cut.size, cut.examples) == (pytest.approx(2 / 12), 2.0, 2)
    torch.testing.assert_close(cut(risk.theta), CE(cut.outputs(risk.theta), terms[0].targets[1:3]))
    for start, stop in ((-1, 2), (2, 2), (3, 6)):
        with pytest.raises(ValueError, match="start and stop must satisfy 0 <= start < stop <= 5; got"):
            terms[0].slice(start, stop)


def test_theta_is_a_detached_copy_and_grads_stay() -> None:
    model = mlp()
    risk = EmpiricalRisk(model, CE, data())
    assert not risk.theta.requires_grad
    risk.theta.mul_(2)
    assert not torch.equal(risk.theta[:16], model[0].weight.flatten())
    risk.gradient()
    assert all(p.grad is None for p in model.parameters())


def test_describe_and_fresh_loader() -> None:
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(x, y), batch_size=5, num_workers=0, generator=generator)
    risk = EmpiricalRisk(mlp(), CE, loader)
    assert risk.describe() == {
        "examples": 12,
        "batches": 3,
        "weighting": "tokens",
        "units": 12.0,
        "loss": "CrossEntropyLoss",
        "batchnorm": "eval",
        "parameters": 4,
        "dim": 35,
        "dtype": "float64",
        "device": "cpu",
        "notes": [],
    }
    torch.testing.assert_close(risk.loss(), EmpiricalRisk(mlp(), CE, data()).loss(), rtol=1e-14, atol=0)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return self.inner(left + scale * right)


def test_tuples_are_arguments_and_dicts_are_keywords() -> None:
    batches = data()
    expected = EmpiricalRisk(mlp(), CE, [(3 * x, y) for x, y in batches]).loss()
    forms = {
        "tuple": [((x, 2 * x), y) for x, y in batches],
        "list": [[[x, 2 * x], y] for x, y in batches],
        "dict inputs": [({"left": x, "right": x, "scale": 2.0}, y) for x, y in batches],
        "dict batch": [{"left": x, "right": 2 * x, "labels": y} for x, y in batches],
        "other label key": [{"left": x, "right": 2 * x, "target": y} for x, y in batches],
    }
    for name, form in forms.items():
        risk = EmpiricalRisk(TwoInputs(), CE, form)
        assert float(risk.loss()) == pytest.approx(float(expected), rel=1e-13), name
        assert float(next(risk.terms()).slice(0, 2).size) == 2, name


def test_user_forward() -> None:
    def forward(module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(module(batch["x"]), batch["y"], reduction="none") * batch["w"]
        return losses.sum(), batch["w"].sum()

    model = mlp()
    batches = [{"x": x, "y": y, "w": torch.linspace(0, 1, len(y), dtype=torch.float64)} for x, y in data()]
    batches.append({"x": data()[0][0], "y": data()[0][1], "w": torch.zeros(5, dtype=torch.float64)})
    risk = EmpiricalRisk(model, None, batches, forward=forward)
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in ("x", "y", "w")}
    other = EmpiricalRisk(model, None, [whole], forward=forward)
    torch.testing.assert_close(risk.loss(), other.loss(), rtol=1e-12, atol=0)
    torch.testing.assert_close(risk.gradient(), other.gradient(), rtol=1e-12, atol=1e-15)
    assert risk.n_terms == 3
    assert risk.describe()["weighting"] == "forward"
    hessian = sum(term.weight * torch.func.hessian(term)(risk.theta) for term in risk.terms())
    torch.testing.assert_close(hessian, torch.func.hessian(next(other.terms()))(risk.theta), rtol=1e-11, atol=1e-14)
    (term, *_) = risk.terms()
    with pytest.raises(UnsupportedError, match="this objective computes its loss inside forward"):
        term.outputs(risk.theta)
    with pytest.raises(UnsupportedError, match="This batch cannot be cut into examples"):
        term.slice(0, 1)


def test_arguments_are_checked() -> None:
    model, batches = mlp(), data()
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module; got function"):
        EmpiricalRisk(mlp, CE, batches)
    with pytest.raises(TypeError, match="loss must be callable or None; got str"):
        EmpiricalRisk(model, "ce", batches)
    with pytest.raises(ValueError, match="loss must be None when forward= is given; got both"):
        EmpiricalRisk(model, CE, batches, forward=lambda m, b: (0, 1))
    with pytest.raises(ValueError, match=r"batchnorm must be one of eval, batch, recalibrate; got 'train'"):
        EmpiricalRisk(model, CE, batches, batchnorm="train")
    with pytest.raises(TypeError, match=r"loss must be given for \(inputs, targets\) batches; got None"):
        EmpiricalRisk(model, None, batches)
    with pytest.raises(TypeError, match=r"dict batches must hold labels under one of labels, .*; got the keys x, z"):
        EmpiricalRisk(model, CE, [{"x": batches[0][0], "z": batches[0][1]}])
    with pytest.raises(TypeError, match=r"forward must return \(loss_sum, weight\); got Tensor"):
        EmpiricalRisk(model, None, batches, forward=lambda m, b: m(b[0]).sum())
    with pytest.raises(ValueError, match=r"loss_sum must be a scalar; got shape \(5, 3\) from forward"):
        EmpiricalRisk(model, None, batches, forward=lambda m, b: (m(b[0]), 5))
    with pytest.raises(ValueError, match=r"weight must be a finite number >= 0; got -1.0 for batch 0"):
        EmpiricalRisk(model, None, batches, forward=lambda m, b: (m(b[0]).sum(), -1))


def test_several_outputs_become_one_tensor() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), x

    risk = EmpiricalRisk(Pair(), lambda z, y: CE(z[0], y), data())
    assert float(risk.loss()) == pytest.approx(float(EmpiricalRisk(mlp(), CE, data()).loss()), rel=1e-14)
    term = next(risk.terms())
    outputs = term.outputs(risk.theta)
    torch.testing.assert_close(outputs[:, 3:], term.inputs)
    torch.testing.assert_close(term.loss_of_outputs(outputs), term(risk.theta), rtol=1e-14, atol=0)


class Sdpa(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.proj(x)[:, None].chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]


class Multihead(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


ATTENTION = {
    "sdpa": (Sdpa, True),
    "multihead": (lambda: Multihead(False), True),
    "multihead with weights": (lambda: Multihead(True), False),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), True),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_has_second_derivatives_and_the_record_says_so(name: str) -> None:
    build, fused = ATTENTION[name]
    torch.manual_seed(0)
    model = nn.Sequential(build(), nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    risk = EmpiricalRisk(model, CE, [(x[:4], torch.tensor([0, 1, 2, 0])), (x[4:], torch.tensor([1, 1]))])
    assert (ATTENTION_NOTE in risk.notes) == fused
    v = torch.randn(risk.dim, dtype=torch.float64)
    with risk.evaluating():
        (term, _) = risk.terms()
        gradient = torch.func.grad(term)
        forward = torch.func.jvp(gradient, (risk.theta,), (v,))[1]
        linear = linearize(gradient, risk.theta)[1](v)
        step = 1e-5
        difference = (gradient(risk.theta + step * v) - gradient(risk.theta - step * v)) / (2 * step)
    theta = risk.theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(term(theta), theta, create_graph=True)
    (backward,) = torch.autograd.grad(slope @ v, theta)
    for product in (backward, linear):
        torch.testing.assert_close(product, forward, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(difference, forward, rtol=1e-5, atol=1e-7)
