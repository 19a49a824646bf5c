from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.errors import DataError, UnsupportedError
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import recognise


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config).double()


def bert(kind: str = "ForMaskedLM", **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=8, **sizes, **options)
    return getattr(transformers, f"Bert{kind}")(config).double()


def tokens(sizes: tuple[int, ...] = (7,)) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 11, (7, 6), generator=generator)
    lengths = torch.tensor([6, 2, 3, 6, 1, 1, 4])
    mask = (torch.arange(6) < lengths[:, None]).long()
    labels = torch.randint(0, 11, (7, 6), generator=generator).masked_fill(mask == 0, -100)
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return [
        dict(zip(columns, parts, strict=True))
        for parts in zip(*(c.split(sizes) for c in columns.values()), strict=True)
    ]


def assert_same_risk(one: EmpiricalRisk, other: EmpiricalRisk) -> None:
    torch.testing.assert_close(one.loss(), other.loss(), rtol=1e-12, atol=0)
    torch.testing.assert_close(one.gradient(), other.gradient(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("build", "name"), [(gpt2, "shifted token cross-entropy"), (bert, "token cross-entropy")])
def test_own_loss_is_recognised_and_does_not_depend_on_batching(build: Any, name: str) -> None:
    model = build().train()
    whole = EmpiricalRisk(model, None, tokens())
    assert whole.describe()["loss"] == name
    assert whole.describe()["weighting"] == "tokens"
    own = model.eval()(**tokens()[0]).loss.detach().double()
    torch.testing.assert_close(whole.loss(), own, rtol=1e-5, atol=0)
    for sizes in ((3, 4), (4, 2, 1), (1,) * 7):
        assert_same_risk(EmpiricalRisk(model, None, tokens(sizes)), whole)
    labels = tokens()[0]["labels"]
    assert whole.n_units == int(((labels[:, 1:] if build is gpt2 else labels) != -100).sum())


@pytest.mark.parametrize("build", [gpt2, bert])
def test_own_loss_has_outputs_products_and_slices(build: Any) -> None:
    risk = EmpiricalRisk(build(), None, tokens((3, 4)))
    (term, _) = risk.terms()
    outputs = term.outputs(risk.theta)
    assert outputs.shape == (3, 6, 11)
    assert torch.equal(term.loss_of_outputs(outputs), term(risk.theta))
    parts = [term.slice(0, 1), term.slice(1, 3)]
    torch.testing.assert_close(
        sum(part.weight * part(risk.theta) for part in parts), term.weight * term(risk.theta), rtol=1e-12, atol=0
    )
    assert "attention switched to the math kernel (the fused kernels have no second derivative)" in risk.notes
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    with risk.evaluating():
        gradient = torch.func.grad(term)
        rows = torch.func.vmap(lambda v: torch.func.jvp(gradient, (risk.theta,), (v,))[1])(V)
        theta = risk.theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(term(theta), theta, create_graph=True)
        (backward,) = torch.autograd.grad(slope @ V[1], theta)
    torch.testing.assert_close(backward, rows[1], rtol=1e-9, atol=1e-11)


def test_given_loss_takes_the_logits_and_labels() -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].mT, labels[:, 1:])

    model = gpt2()
    batches = [{**batch, "labels": batch["labels"].masked_fill(batch["labels"] < 0, 3)} for batch in tokens((3, 4))]
    torch.testing.assert_close(
        EmpiricalRisk(model, loss, batches).loss(), EmpiricalRisk(model, None, batches).loss(), rtol=1e-12, atol=0
    )


def test_batch_encodings_and_sequence_classification() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = bert("ForSequenceClassification", num_labels=3)
    encodings = [transformers.BatchEncoding({**b, "labels": b["labels"][:, 0] % 3}) for b in tokens((4, 3))]
    risk = EmpiricalRisk(model, None, encodings)
    assert risk.n_units == 7
    whole = {key: torch.cat([e[key] for e in encodings]) for key in encodings[0]}
    assert_same_risk(risk, EmpiricalRisk(model, None, [whole]))


def test_regression_head_is_recognised() -> None:
    model = bert("ForSequenceClassification", num_labels=1)
    batches = [{**b, "labels": b["labels"][:, 0].double()} for b in tokens((4, 3))]
    risk = EmpiricalRisk(model, None, batches)
    assert risk.describe()["loss"] == "mean squared error"
    assert risk.describe()["weighting"] == "examples"


def test_leading_batches_without_labels_are_skipped() -> None:
    batches = tokens((3, 4))
    empty = {**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}
    assert_same_risk(EmpiricalRisk(gpt2(), None, [empty, *batches]), EmpiricalRisk(gpt2(), None, batches))
    with pytest.raises(DataError, match=r"got only ignored ones \(-100\)"):
        EmpiricalRisk(gpt2(), None, [empty])


class OwnLoss(nn.Module):
    """A stand-in for a transformers model: logits, a loss, and labels that may shape the logits."""

    def __init__(self, extra: float = 0.0, teacher: bool = False, strict: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 11).double()
        self.extra, self.teacher, self.strict = extra, teacher, strict

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.embed(input_ids)
        if self.teacher:
            before = input_ids if labels is None and not self.strict else labels
            logits = logits + 0.1 * self.embed(before.clamp(min=0).roll(1, 1))
        if labels is None:
            return SimpleNamespace(logits=logits, loss=None)
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits.mT, labels) + self.extra)


@pytest.mark.parametrize("strict", [False, True])
def test_models_that_need_labels_get_them_and_others_do_not(strict: bool) -> None:
    batches = [{key: b[key] for key in ("input_ids", "labels")} for b in tokens((3, 4))]
    taught = EmpiricalRisk(OwnLoss(teacher=True, strict=strict), None, batches)
    assert "labels" in next(taught.terms()).inputs
    expected = OwnLoss(teacher=True, strict=strict)(
        **{k: torch.cat([b[k] for b in batches]) for k in batches[0]}
    ).loss.detach()
    torch.testing.assert_close(taught.loss(), expected, rtol=1e-12, atol=0)
    assert "labels" not in next(EmpiricalRisk(OwnLoss(), None, batches).terms()).inputs


def test_unrecognised_losses_ask_for_forward() -> None:
    batches = [{key: b[key] for key in ("input_ids", "labels")} for b in tokens((3, 4))]
    with pytest.raises(
        UnsupportedError, match=r"equals none of: shifted token cross-entropy, token .* Pass loss= on the"
    ):
        EmpiricalRisk(OwnLoss(extra=0.1), None, batches)
    with pytest.raises(UnsupportedError, match=r"loss=None needs a model that takes 'labels'; got: .* Pass loss= on"):
        EmpiricalRisk(nn.Embedding(11, 3), None, [{"input": b["input_ids"], "labels": b["labels"]} for b in batches])
    flat = torch.zeros(3, 6, 11, dtype=torch.float64)
    own = SimpleNamespace(logits=flat, loss=torch.tensor(11.0, dtype=torch.float64).log())
    with pytest.raises(UnsupportedError, match="equals several of: shifted"):
        recognise(lambda kwargs: own, {}, "labels", torch.zeros(3, 6, dtype=torch.long))
    with pytest.raises(UnsupportedError, match=r"loss=None needs a model that returns \.loss and \.logits"):
        recognise(lambda kwargs: flat, {}, "labels", torch.zeros(3, 6, dtype=torch.long))


def test_first_order_attention_kernels_are_refused() -> None:
    model = OwnLoss()
    model.config = SimpleNamespace(_attn_implementation="flash_attention_2")
    with pytest.raises(UnsupportedError, match="attention kernel 'flash_attention_2' has no second derivative"):
        EmpiricalRisk(model, None, tokens())
