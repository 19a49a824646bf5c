"""Cross-entropy over a vocabulary in chunks: value, gradient, second and third derivative; and what is never alive."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel

import hessprobe as hp
from hessprobe.errors import UnsupportedError
from hessprobe.objective import causal_lm_forward, linear_cross_entropy

F64 = torch.float64
T, D, V = 7, 4, 11


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*shape, generator=source, dtype=F64) for shape in ((T, D), (V, D), (V,)))
    targets = torch.randint(V, (T,), generator=source)
    targets[2] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


def written_out(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignored: int = -100) -> Tensor:
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    return F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")


def derivatives(loss: Tensor, tensors: tuple[Tensor, ...], order: int) -> list[Tensor]:
    """The loss, its gradient, and directional derivatives of it up to an order."""
    source = torch.Generator().manual_seed(5)
    found, scalar = [loss], 1.7 * loss
    for n in range(order):
        slopes = torch.autograd.grad(scalar, tensors, create_graph=n + 1 < order)
        found += slopes
        if n + 1 < order:
            scalar = sum((s * torch.randn(s.shape, generator=source, dtype=F64)).sum() for s in slopes)
    return found


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_are_those_of_the_loss_written_out(chunk: int | None, with_bias: bool, order: int):
    hidden, weight, bias, targets = drawn()
    tensors = (hidden, weight, bias) if with_bias else (hidden, weight)
    given = bias if with_bias else None
    ours = derivatives(linear_cross_entropy(hidden, weight, targets, given, chunk=chunk), tensors, order)
    theirs = derivatives(written_out(hidden, weight, given, targets), tensors, order)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_frozen_head_or_frozen_states():
    hidden, weight, _, targets = drawn()
    for tensors in ((hidden, weight.detach()), (hidden.detach(), weight)):
        moving = tuple(t for t in tensors if t.requires_grad)
        ours = derivatives(linear_cross_entropy(*tensors, targets, chunk=2), moving, 3)
        theirs = derivatives(written_out(*tensors, None, targets), moving, 3)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_derivative_by_the_slope_of_what_comes_after():
    hidden, weight, _, targets = drawn()

    def curved(loss: Tensor) -> list[Tensor]:
        return derivatives((0.1 * loss) ** 2, (hidden, weight), 2)

    ours = curved(linear_cross_entropy(hidden, weight, targets, chunk=2))
    for a, b in zip(ours, curved(written_out(hidden, weight, None, targets)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ignored", [-100, 3])
def test_tokens_that_do_not_count(ignored: int):
    hidden, weight, _, targets = drawn()
    targets[[0, 5]] = ignored
    targets[2] = ignored
    ours = derivatives(
        linear_cross_entropy(hidden, weight, targets, ignore_index=ignored, chunk=2), (hidden, weight), 2
    )
    theirs = derivatives(written_out(hidden, weight, None, targets, ignored), (hidden, weight), 2)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    nothing = linear_cross_entropy(hidden, weight, torch.full((T,), ignored), ignore_index=ignored)
    assert nothing.item() == 0
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(nothing, (hidden, weight)))
    assert linear_cross_entropy(hidden[:0], weight, targets[:0]).item() == 0


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@pytest.mark.parametrize("chunked", [True, False])
def test_no_buffer_of_tokens_times_vocabulary(chunked: bool):
    source = torch.Generator().manual_seed(1)
    tokens, width, size = 40, 2, 500
    hidden = torch.randn(tokens, width, generator=source).requires_grad_()
    weight = torch.randn(size, width, generator=source).requires_grad_()
    targets = torch.randint(size, (tokens,), generator=source)
    with Largest() as largest:
        loss = (
            linear_cross_entropy(hidden, weight, targets, chunk=4)
            if chunked
            else written_out(hidden, weight, None, targets)
        )
        slopes = torch.autograd.grad(loss, (hidden, weight), create_graph=True)
        torch.autograd.grad(slopes, (hidden, weight), [torch.ones_like(s) for s in slopes])
    assert largest.numel == (4 * size if chunked else tokens * size)


def test_as_many_tokens_at_a_time_as_four_million_logits_hold():
    hidden, targets = torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64)
    with Largest() as largest:
        linear_cross_entropy(hidden, torch.zeros(1 << 21, 1), targets)
    assert largest.numel == 1 << 22


def test_half_precision_is_summed_in_single():
    hidden, weight, _, targets = drawn()
    low = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight)]
    loss = linear_cross_entropy(*low, targets, chunk=2)
    assert loss.dtype == torch.float32
    exact = written_out(*(t.float() for t in low), None, targets)
    torch.testing.assert_close(loss, exact)
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(loss, low))


def test_what_does_not_go_together():
    hidden, weight, _, targets = drawn()
    with pytest.raises(ValueError, match=r"shapes \(\.\.\., D\), \(V, D\) and \(\.\.\.\); got \(7, 4\), \(11, 3\)"):
        linear_cross_entropy(hidden, weight[:, :3], targets)
    with pytest.raises(ValueError, match=r"\(6,\)"):
        linear_cross_entropy(hidden, weight, targets[:6])
    with pytest.raises(ValueError, match="chunk must be"):
        linear_cross_entropy(hidden, weight, targets, chunk=0)


def language_model(kind: type[GPT2LMHeadModel] = GPT2LMHeadModel, **more: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 23, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, **more)
    return kind(config).double().eval()


def token_batches() -> list[dict[str, Tensor]]:
    tokens = torch.randint(23, (6, 8), generator=torch.Generator().manual_seed(2))
    labels = tokens.clone()
    labels[0, 3:] = -100
    labels[4, 6:] = -100
    mask = (labels != -100).long()
    parts = zip(tokens.split(2), labels.split(2), mask.split(2), strict=True)
    return [{"input_ids": t, "labels": y, "attention_mask": m} for t, y, m in parts]


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_in_chunks_is_the_language_model(tied: bool):
    model = language_model(tie_word_embeddings=tied)
    plain = hp.EmpiricalRisk(model, None, token_batches())
    ours = hp.EmpiricalRisk(model, None, token_batches(), forward=causal_lm_forward(chunk=3))
    assert (ours.n_units, ours.dim) == (plain.n_units, plain.dim)
    torch.testing.assert_close(ours.loss(), plain.loss(), rtol=1e-12, atol=0)
    probes = torch.randn(2, plain.dim, generator=torch.Generator().manual_seed(3), dtype=F64)
    products = [hp.Hessian(risk).matvecs(probes) for risk in (ours, plain)]
    torch.testing.assert_close(*products, rtol=1e-9, atol=1e-12)


def test_logits_are_compared_once():
    model, forward, seen = language_model(), causal_lm_forward(), []
    model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    for batch in token_batches():
        forward(model, batch)
    assert len(seen) == 2  # the head on our hidden states, and the model's own


class Scaled(GPT2LMHeadModel):
    """Logits that are not the outputs of the head."""

    def forward(self, **inputs: Any) -> Any:
        found = super().forward(**inputs)
        found.logits = 0.5 * found.logits
        return found


def test_a_model_with_other_logits_is_refused():
    with pytest.raises(UnsupportedError, match="logits of Scaled are not the outputs of its head"):
        hp.EmpiricalRisk(language_model(Scaled), None, token_batches(), forward=causal_lm_forward())
    with pytest.raises(UnsupportedError, match="linear head; got Linear"):
        causal_lm_forward()(nn.Linear(2, 2), {"labels": torch.zeros(1, 2)})


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_gauss_newton_part_is_that_of_the_logits(with_bias: bool, frozen: bool):
    hidden, weight, bias, targets = drawn()
    weight = weight.detach() if frozen else weight
    given = bias if with_bias else None
    tensors = tuple(t for t in (hidden, weight, given) if t is not None and t.requires_grad)

    def logits(*at: Tensor) -> Tensor:
        places = iter(at)
        h, w, c = (next(places) if t is not None and t.requires_grad else t for t in (hidden, weight, given))
        return h @ w.T if c is None else h @ w.T + c

    directions = tuple(torch.randn(t.shape, dtype=F64, generator=torch.Generator().manual_seed(7)) for t in tensors)
    z, pull = torch.func.vjp(logits, *tensors)
    u = torch.func.jvp(logits, tensors, directions)[1]
    p = torch.softmax(z, 1)
    bent = p * (u - (p * u).sum(1, keepdim=True)) * (targets != -100)[:, None]
    loss = linear_cross_entropy(hidden, weight, targets, given, chunk=3, gauss_newton=True)
    torch.testing.assert_close(loss, written_out(hidden, weight, given, targets))
    slopes = torch.autograd.grad(loss, tensors, create_graph=True)
    plain = torch.autograd.grad(written_out(hidden, weight, given, targets), tensors)
    for a, b in zip(slopes, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(slopes, tensors, directions, retain_graph=True)
    for a, b in zip(found, pull(bent), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with pytest.raises(UnsupportedError, match="has no derivative"):
        torch.autograd.grad(slopes, tensors, directions, create_graph=True)


@pytest.mark.parametrize("tied", [True, False])
def test_the_gauss_newton_matrix_of_a_language_model_in_chunks_is_that_of_the_logits(tied: bool):
    model = language_model(tie_word_embeddings=tied)
    plain = hp.GaussNewton(hp.EmpiricalRisk(model, None, token_batches()))
    ours = hp.GaussNewton(hp.EmpiricalRisk(model, None, token_batches(), forward=causal_lm_forward(chunk=3)))
    probes = torch.randn(3, plain.dim, generator=torch.Generator().manual_seed(3), dtype=F64)
    torch.testing.assert_close(ours.matvecs(probes), plain.matvecs(probes), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.quadratic_forms(probes), plain.quadratic_forms(probes), rtol=1e-9, atol=1e-12)
    assert ours.exact_trace() is None
    assert ours.exact_diagonal() is None
    assert ours.sampled_trace(range(2)) is None


@pytest.mark.parametrize(("name", "operator"), [("frob", "hessian"), ("trace", "ggn")])
def test_measures_of_a_language_model_in_chunks(name: str, operator: str):
    model, forward = language_model(), causal_lm_forward(chunk=3)
    risks = [hp.EmpiricalRisk(model, None, token_batches(), forward=each) for each in (None, forward)]
    plain, ours = (hp.measure(name, risk, operator=operator, n_probes=200, seed=0) for risk in risks)
    assert abs(plain.value - ours.value) <= 4 * (plain.std_error**2 + ours.std_error**2) ** 0.5
    assert ours.std_error < 0.1 * ours.value


def test_a_frozen_head_in_chunks():
    model = language_model(tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(False)
    plain = hp.EmpiricalRisk(model, None, token_batches())
    ours = hp.EmpiricalRisk(model, None, token_batches(), forward=causal_lm_forward(chunk=3))
    probes = torch.randn(2, plain.dim, generator=torch.Generator().manual_seed(3), dtype=F64)
    for make in (hp.Hessian, hp.GaussNewton):
        products = [make(risk).matvecs(probes) for risk in (ours, plain)]
        torch.testing.assert_close(*products, rtol=1e-9, atol=1e-12)


def test_under_autocast_the_loss_keeps_its_precision():
    hidden, weight, _, targets = (t.float() if t.is_floating_point() else t for t in drawn())
    hidden, weight = (t.detach().requires_grad_() for t in (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours = derivatives(linear_cross_entropy(hidden, weight, targets, chunk=2), (hidden, weight), 2)
    theirs = derivatives(written_out(hidden, weight, None, targets), (hidden, weight), 2)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_that_is_nearly_zero_keeps_its_digits():
    hidden, weight = torch.tensor([[10.0]]).requires_grad_(), torch.tensor([[0.0], [1.0]])
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    exact = math.log1p(math.exp(-10))
    assert loss.item() == pytest.approx(exact, rel=1e-2)
