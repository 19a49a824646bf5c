"""The logits of a language model a few tokens at a time by themselves: the same numbers, or the plain way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import hessprobe as hp
from hessprobe.objective import vocabulary

F64 = torch.float64
WORDS = 23
SMALL = {"vocab_size": WORDS, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = {**SMALL, "intermediate_size": 12, "num_key_value_heads": 2, "pad_token_id": 0}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": WORDS, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, **ENDS}

# Class, arguments, and the factor of the logits; None where the plain way is taken.
MODELS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "tied": ("GPT2", GPT2, 1.0),
    "untied": ("GPT2", {**GPT2, "tie_word_embeddings": False}, 1.0),
    "llama": ("Llama", {**WIDE, **ENDS}, 1.0),
    "bias": ("Phi", {**WIDE, **ENDS}, 1.0),
    "scaled after": ("Cohere", {**WIDE, **ENDS, "logit_scale": 0.0625}, 0.0625),
    "scaled by division": ("Granite", {**WIDE, **ENDS, "logits_scaling": 8.0, "embedding_multiplier": 3.0}, 0.125),
    "capped": ("Gemma2", {**WIDE, **ENDS, "head_dim": 4, "final_logit_softcapping": 30.0}, None),
}


def language_model(name: str) -> torch.nn.Module:
    kind, arguments, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**arguments)
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    for parameter in model.parameters():
        # Biases that are 0, and logits so small that a cap leaves them alone, would hide mistakes.
        parameter.data += 0.3 * torch.randn(parameter.shape, dtype=F64)
    return model


def batches(*, left: bool = True) -> list[dict[str, Tensor]]:
    tokens = torch.randint(3, WORDS, (6, 8), generator=torch.Generator().manual_seed(2))
    labels, mask = tokens.clone(), torch.ones_like(tokens)
    mask[0, 5:] = 0
    if left:
        mask[4, :3] = 0
    labels[mask == 0] = -100
    labels[1, 2] = -100
    parts = zip(tokens.split(3), labels.split(3), mask.split(3), strict=True)
    return [{"input_ids": t, "labels": y, "attention_mask": m} for t, y, m in parts]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if a chunk held four tokens; counts the calls."""
    calls: list[int] = []
    inner = vocabulary.linear_cross_entropy

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return inner(*args, **kwargs)

    monkeypatch.setattr(vocabulary, "_NUMBERS", 4 * WORDS)
    monkeypatch.setattr(vocabulary, "linear_cross_entropy", counted)
    return calls


def plain(risk: hp.EmpiricalRisk) -> list[Any]:
    return [replace(term, chunked=None) for term in risk.terms()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("params", [None, "head", "body"])
def test_loss_gradient_and_products_are_those_of_all_logits(small_chunks: list[int], name: str, params: str | None):
    model = language_model(name)
    head = model.get_output_embeddings().weight  # type: ignore[operator]  # a module of transformers
    chosen = None if params is None else lambda _, parameter: (parameter is head) == (params == "head")
    # The attention of Gemma 2 gives nan where a token sees none.
    risk = hp.EmpiricalRisk(model, None, batches(left=name != "capped"), chosen)
    scale = MODELS[name][2]
    assert risk._chunked == (None if scale is None else vocabulary.ChunkedLogits(scale))
    small_chunks.clear()
    v = torch.randn(risk.dim, generator=torch.Generator().manual_seed(3), dtype=F64)
    for ours, theirs in zip(risk.terms(), plain(risk), strict=True):
        found = []
        for term in (ours, theirs):
            theta = risk.theta.clone().requires_grad_()
            loss = term(theta)
            (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
            (product,) = torch.autograd.grad(slope, theta, v)
            found.append((loss, slope, product))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert len(small_chunks) == (0 if scale is None else 2)


def test_measures_are_those_of_all_logits(small_chunks: list[int], monkeypatch: pytest.MonkeyPatch):
    risk = hp.EmpiricalRisk(language_model("tied"), None, batches())
    probes = torch.randn(2, risk.dim, generator=torch.Generator().manual_seed(3), dtype=F64)
    small_chunks.clear()
    ours = [hp.Hessian(risk).matvecs(probes), hp.GaussNewton(risk).matvecs(probes)]
    assert small_chunks
    small_chunks.clear()
    monkeypatch.setattr(risk, "_chunked", None)
    theirs = [hp.Hessian(risk).matvecs(probes), hp.GaussNewton(risk).matvecs(probes)]
    assert not small_chunks
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_few_logits_are_written_out(monkeypatch: pytest.MonkeyPatch):
    risk = hp.EmpiricalRisk(language_model("tied"), None, batches())
    monkeypatch.setattr(vocabulary, "linear_cross_entropy", lambda *_: pytest.fail("in chunks"))
    assert risk._chunked is not None
    assert float(risk.loss()) > 0


def test_transforms_get_what_has_rules_for_them(small_chunks: list[int]):
    risk = hp.EmpiricalRisk(language_model("tied"), None, batches())
    small_chunks.clear()
    term, v = next(iter(risk.terms())), torch.ones(risk.dim, dtype=F64)
    _, slope = torch.func.jvp(term, (risk.theta,), (v,))
    assert not small_chunks
    torch.testing.assert_close(slope, torch.autograd.functional.vjp(term, risk.theta)[1] @ v, rtol=1e-10, atol=1e-12)
    assert small_chunks


class Added(transformers.GPT2LMHeadModel):
    def forward(self, **inputs: Any) -> Any:
        found = super().forward(**inputs)
        found.logits = found.logits + 1e-3 * torch.arange(WORDS)
        if "labels" in inputs:
            found.loss = self.loss_function(found.logits, inputs["labels"], WORDS)
        return found


class Pieced(transformers.GPT2LMHeadModel):
    """Scaled by one number up to 1, by another above."""

    def forward(self, **inputs: Any) -> Any:
        found = super().forward(**inputs)
        found.logits = torch.where(found.logits > 1, 1 + 0.5 * (found.logits - 1), found.logits)
        if "labels" in inputs:
            found.loss = self.loss_function(found.logits, inputs["labels"], WORDS)
        return found


@pytest.mark.parametrize("kind", [Added, Pieced])
def test_what_stands_behind_the_head_is_kept(small_chunks: list[int], kind: type[transformers.GPT2LMHeadModel]):
    torch.manual_seed(0)
    risk = hp.EmpiricalRisk(kind(transformers.GPT2Config(**GPT2)).double().eval(), None, batches())
    assert risk._chunked is None


@pytest.mark.parametrize("spoil", ["hook", "forward", "layer", "half"])
def test_a_head_that_is_more_than_linear_is_left_alone(spoil: str):
    model: Any = language_model("untied")
    head = model.lm_head
    if spoil == "hook":
        head.register_forward_hook(lambda *given: 2 * given[2])
    elif spoil == "forward":
        head.forward = lambda hidden: 2 * hidden @ head.weight.T
    elif spoil == "layer":
        model.lm_head = torch.nn.Sequential(head, torch.nn.Tanh())
    else:
        model = model.bfloat16()
    assert hp.EmpiricalRisk(model, None, batches(), check=False)._chunked is None


def test_no_hook_stays_on_the_head(small_chunks: list[int]):
    model: Any = language_model("tied")
    risk = hp.EmpiricalRisk(model, None, batches())
    risk.loss()
    assert small_chunks
    assert not model.lm_head._forward_pre_hooks
    assert not model.lm_head._forward_hooks
