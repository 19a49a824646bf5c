"""Training by ``transformers`` and ``accelerate``, against loops written by hand in float64."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial

import pytest
import torch

from hessprobe.optim import ESAM, GSAM, SAM, EigenSAM, FunctionalSAM, LookSAM, MicroBatchSAM, SAMPa

RHO = 0.2
# The gradient of a key's bias is zero: with the usual 1e-8 Adam would divide round-off by itself.
ADAM = {"lr": 0.01, "eps": 1e-4}


@pytest.fixture(scope="module")
def hf():
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("transformers")


def model_of(hf):
    hf.set_seed(5)
    config = hf.BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=8, max_position_embeddings=8, num_labels=2, hidden_dropout_prob=0.0,
                           attention_probs_dropout_prob=0.0, attn_implementation="eager")  # fmt: skip
    model = hf.BertForSequenceClassification(config).double()
    # Its forward takes such arguments and ignores them: the Trainer would add the micro-batches' losses undivided.
    model.accepts_loss_kwargs = False
    return model


def rows(count=20):
    tokens = torch.randint(11, (count, 5), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": torch.tensor(int(row[0] > 5))} for row in tokens]


def batches(size=2):
    data = rows()
    return [
        {name: torch.stack([row[name] for row in data[i : i + size]]) for name in data[0]}
        for i in range(0, len(data), size)
    ]


def train(hf, folder, *, resume=None, model=None, brought=None, **options):
    from hessprobe.optim.integrations import SAMTrainer

    class InOrder(SAMTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    rule = options.pop("rule", partial(SAM, rho=RHO))
    given = {"max_steps": 5, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "save_strategy": "no", **options}
    arguments = hf.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, learning_rate=ADAM["lr"], adam_epsilon=ADAM["eps"],
        weight_decay=0.1, report_to=[], disable_tqdm=True, use_cpu=True, lr_scheduler_type="linear",
        logging_strategy="steps", logging_steps=1, **given,
    )  # fmt: skip
    model = model_of(hf) if model is None else model
    extra = {} if brought is None else {"optimizers": (brought(model), None)}
    trainer = InOrder(model=model, args=arguments, train_dataset=rows(), rule=rule, **extra)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def groups(model):
    named = list(model.named_parameters())
    kept = {name for name, _ in named if "bias" in name or "LayerNorm" in name}
    return [
        {"params": [p for name, p in named if name not in kept], "weight_decay": 0.1},
        {"params": [p for name, p in named if name in kept], "weight_decay": 0.0},
    ]


def by_hand(hf, steps=5, count=2, bound=0.5, size=2):
    """Train by SAM in plain torch; return the model and what is logged: (loss, norm before clipping)."""
    model = model_of(hf).train()
    base = torch.optim.AdamW(groups(model), **ADAM)
    data, parameters, logged = batches(size), list(model.parameters()), []
    for step in range(steps):
        for group in base.param_groups:
            group["lr"] = 0.01 * (1 - step / steps)
        start = step * count % len(data)
        own = data[start : start + count]

        def gradients(own=own):
            loss = sum(model(**batch).loss for batch in own) / len(own)
            return loss.item(), torch.autograd.grad(loss, parameters)

        loss, first = gradients()
        norm = math.sqrt(sum(float(g.pow(2).sum()) for g in first))
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p.add_(g, alpha=RHO / (norm + 1e-12))  # eps of the engine
        _, second = gradients()
        with torch.no_grad():
            for p, old, g in zip(parameters, before, second, strict=True):
                p.copy_(old)
                p.grad = g.clone()
        logged.append((loss, float(torch.nn.utils.clip_grad_norm_(parameters, bound if bound else math.inf))))
        base.step()
    return model, logged


def distance(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((p.detach() - q.detach()).abs().max()) for p, q in pairs)


@pytest.mark.parametrize(("count", "bound"), [(1, 0.0), (1, 0.5), (2, 0.5)])
def test_the_trainer_takes_the_steps_of_a_loop_by_hand(hf, tmp_path, count, bound):
    trainer = train(hf, tmp_path, gradient_accumulation_steps=count, max_grad_norm=bound)
    model, logged = by_hand(hf, count=count, bound=bound)
    assert distance(trainer.model, model) < 1e-12
    assert distance(trainer.model, model_of(hf)) > 1e-3
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in entries] == pytest.approx([loss for loss, _ in logged], abs=1e-4)
    assert [entry["grad_norm"] for entry in entries] == pytest.approx([norm for _, norm in logged], rel=1e-9)
    assert max(norm for _, norm in logged) > 0.5
    assert trainer.state.global_step == 5


def test_the_last_step_of_an_epoch_is_of_the_batches_that_are_left(hf, tmp_path):
    # Ten batches by threes: the fourth step has one.
    trainer = train(hf, tmp_path, gradient_accumulation_steps=3, max_steps=-1, num_train_epochs=1, max_grad_norm=0.0)
    model, _ = by_hand(hf, steps=4, count=3, bound=0.0)
    assert distance(trainer.model, model) < 1e-12


@pytest.mark.parametrize("rule", [partial(GSAM, rho=RHO), partial(LookSAM, rho=RHO), partial(SAMPa, rho=RHO)])
def test_a_training_goes_on_from_its_checkpoint(hf, tmp_path, rule):
    whole = train(hf, tmp_path / "whole", rule=rule, save_strategy="steps", save_steps=2)
    folder = tmp_path / "whole" / "checkpoint-2"
    resumed = train(hf, tmp_path / "again", rule=rule, resume=str(folder))
    assert distance(whole.model, resumed.model) < 1e-12
    assert resumed.state.global_step == 5


def test_every_rule_that_looks_at_gradients_equals_its_steps_with_closures(hf, tmp_path):
    for rule in (partial(SAMPa, rho=RHO), partial(EigenSAM, rho=RHO), partial(GSAM, rho=RHO)):
        trainer = train(hf, tmp_path, rule=rule, max_grad_norm=0.0)
        model = model_of(hf).train()
        optimizer = rule(torch.optim.AdamW(groups(model), **ADAM))
        data = batches()
        for step in range(5):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 - step / 5)
            own = data[2 * step : 2 * step + 2]

            def loss(own=own, model=model):
                return sum(model(**batch).loss for batch in own) / 2

            def closure(optimizer=optimizer, loss=loss):
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return value

            optimizer.step(closure, **({"loss": loss} if optimizer.needs_loss else {}))
        assert distance(trainer.model, model) < 1e-12, rule


def test_micro_batch_sam_displaces_every_micro_batch_by_itself(hf, tmp_path):
    trainer = train(hf, tmp_path, rule=partial(MicroBatchSAM, rho=RHO, shards=2), max_steps=1, max_grad_norm=0.0)
    model = model_of(hf).train()
    optimizer = MicroBatchSAM(torch.optim.AdamW(groups(model), **ADAM), rho=RHO, shards=2)

    def closure_of(batch):
        def closure():
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            return loss

        return closure

    optimizer.step([closure_of(batch) for batch in batches()[:2]])
    assert distance(trainer.model, model) < 1e-12


def test_an_optimizer_that_is_brought_is_used_as_it_is(hf, tmp_path):
    trainer = train(
        hf, tmp_path, brought=lambda model: SAM(torch.optim.AdamW(groups(model), **ADAM), rho=RHO), rule=None
    )
    assert distance(trainer.model, by_hand(hf)[0]) < 1e-12


def test_bfloat16_takes_both_passes_at_half_precision(hf, tmp_path):
    model = model_of(hf).float()
    seen = []
    model.classifier.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    trainer = train(hf, tmp_path, model=model, bf16=True)
    assert seen == [torch.bfloat16] * 20
    exact = train(hf, tmp_path, model=model_of(hf).float())
    assert 0 < distance(trainer.model, exact.model) < 0.02


@pytest.fixture
def half_precision(hf, monkeypatch):
    """Give every Trainer that begins a GradScaler as fp16 on a GPU does: its way through accelerate, on a CPU."""
    from hessprobe.optim.integrations import SAMTrainer

    scalers = []
    create = SAMTrainer.create_accelerator_and_postprocess

    def with_scaler(self):
        create(self)
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scalers[0])
        monkeypatch.setattr(type(self.accelerator), "mixed_precision", "fp16")
        scalers.append(self.accelerator.scaler)

    monkeypatch.setattr(SAMTrainer, "create_accelerator_and_postprocess", with_scaler)
    return scalers


def test_a_scaler_changes_no_step(hf, tmp_path, half_precision):
    # In float64 autocast casts nothing, and scaling by a power of two rounds nothing.
    half_precision.append(2.0**12)
    trainer = train(hf, tmp_path)
    assert trainer.optimizer.scaler is half_precision[1]
    assert half_precision[1].get_scale() == 2.0**12
    assert distance(trainer.model, by_hand(hf)[0]) < 1e-12


@pytest.mark.parametrize("passes", [1, 3])
def test_a_step_that_overflows_is_skipped_and_the_scale_is_halved(hf, tmp_path, half_precision, passes):
    # In the first pass already, or only at the point of ascent: two micro-batches a pass.
    half_precision.append(2.0**12)
    model, count = model_of(hf), []
    start = copy.deepcopy(model)

    def overflow(gradient):
        count.append(1)
        return gradient * math.inf if len(count) == passes else gradient

    model.classifier.bias.register_hook(overflow)
    trainer = train(hf, tmp_path, model=model, max_steps=1)
    assert half_precision[1].get_scale() == 2.0**11
    assert distance(trainer.model, start) == 0
    assert len(count) >= passes


def test_rules_that_need_more_than_gradients_say_what(hf, tmp_path):
    for rule, what in ((ESAM, "the loss of every example"), (FunctionalSAM, "the outputs")):
        with pytest.raises(TypeError, match=f"{rule.__name__} must be stepped in a loop of your own, .* needs {what}"):
            train(hf, tmp_path, rule=rule)
    with pytest.raises(TypeError, match="optimizer must be a sharpness-aware one; got AdamW"):
        train(hf, tmp_path, rule=lambda base: base)


def test_low_rank_adapters_are_trained_with_both_passes(hf, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.0, task_type="SEQ_CLS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model_of(hf), config).double()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = copy.deepcopy(model)
    trainer = train(hf, tmp_path, model=model)
    assert trainer.optimizer.optimizer.t == 6
    assert distance(model, start) > 1e-3
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def accelerated(hf, rule, *, count=2, bound=0.5, size=2, steps=5):
    from accelerate import Accelerator

    from hessprobe.optim.integrations import AcceleratedBackward

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=count)
    model = model_of(hf).train()
    optimizer = rule(torch.optim.AdamW(groups(model), **ADAM))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    backward = AcceleratedBackward(accelerator, model, optimizer, clip_grad_norm=bound)
    losses = []
    for batch in batches(size):
        with accelerator.accumulate(model):
            losses.append(backward(lambda batch=batch: model(**batch).loss))
            if accelerator.sync_gradients and bound:
                accelerator.clip_grad_norm_(model.parameters(), bound)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model, losses


def test_accelerate_takes_the_steps_of_a_loop_by_hand(hf):
    model, losses = accelerated(hf, partial(SAM, rho=RHO))
    expected, logged = by_hand(hf)
    assert distance(model, expected) < 1e-12
    assert losses[::2] == [None] * 5
    assert [float(loss) for loss in losses[1::2]] == pytest.approx([loss for loss, _ in logged], rel=1e-12)


def test_accelerate_hands_the_loss_to_rules_that_want_it(hf):
    model, _ = accelerated(hf, partial(EigenSAM, rho=RHO), bound=None)
    whole, _ = accelerated(hf, partial(EigenSAM, rho=RHO), bound=None, count=1, size=4)
    assert distance(model, whole) < 1e-10


def test_accelerate_refuses_what_is_not_sharpness_aware():
    from hessprobe.optim.integrations import AcceleratedBackward

    module = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="optimizer must be a sharpness-aware one; got SGD"):
        AcceleratedBackward(None, module, torch.optim.SGD(module.parameters(), lr=0.1))
