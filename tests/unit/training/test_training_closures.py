from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hessprobe.errors import NonFiniteError
from hessprobe.objective.base import make_loss
from hessprobe.optim import SAM
from hessprobe.training import Recipe, load_dataset, train
from hessprobe.training.building import build_optimizer
from hessprobe.training.closures import StepClosures, Tally
from hessprobe.training.evaluation import losses_by_example
from hessprobe.training.models import build_model

CPU = torch.device("cpu")


def setting(parts=1, seed=0):
    data = load_dataset("digits", part=0.05)
    model = build_model("mlp", {"hidden": [8]}, seed)
    inputs, labels = data.split("train")
    shards = list(zip(inputs.tensor_split(parts), labels.tensor_split(parts), strict=True))
    tally = Tally.on(CPU)
    return model, StepClosures(model, make_loss("cross-entropy"), shards, tally, in_parts=parts > 1), inputs, labels


def clean_loss(model, inputs, labels):
    return functional.cross_entropy(model(inputs), labels)


@pytest.mark.parametrize("parts", [1, 5])
def test_plain_gradient_of_any_number_of_parts_is_that_of_the_whole(parts):
    model, closures, inputs, labels = setting(parts)
    expected = torch.autograd.grad(clean_loss(model, inputs, labels), list(model.parameters()))
    value = closures.backward()
    assert float(value) == pytest.approx(clean_loss(model, inputs, labels).item(), rel=1e-6)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sam", "esam", "functional-sam", "sassha", "m-sam"])
def test_each_kind_of_closure_gives_the_rule_the_clean_loss(name):
    parts = 3 if name == "m-sam" else 1
    model, closures, inputs, labels = setting(parts)
    extra = {"optimizer_args": {"shards": 3}} if name == "m-sam" else {}
    optimizer = build_optimizer(Recipe(optimizer=name, **extra), model, 10, len(labels))
    expected = clean_loss(model, inputs, labels).item()
    assert float(optimizer.step(**closures.for_optimizer(optimizer))) == pytest.approx(expected, rel=1e-6)


def test_hits_are_counted_once_at_the_clean_weights():
    model, closures, inputs, labels = setting(2)
    hits = int((model(inputs).argmax(1) == labels).sum())
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    optimizer.step(**closures.for_optimizer(optimizer))
    assert int(closures.tally.hits) == hits


def test_parts_have_weights_by_size_and_a_short_batch_is_still_a_list():
    model, closures, _, labels = setting(5)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    arguments = closures.for_optimizer(optimizer)
    assert len(arguments["closure"]) == 5
    assert arguments["weights"] == pytest.approx([len(y) / len(labels) for _, y in closures.shards])
    assert "loss" not in arguments
    short = StepClosures(model, closures.loss, closures.shards[:1], closures.tally, in_parts=True)
    assert len(short.for_optimizer(optimizer)["closure"]) == 1


def test_losses_by_example_average_to_the_loss_for_images_and_tokens():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 4, generator=generator), torch.arange(6) % 4
    assert losses_by_example(logits, labels).mean() == pytest.approx(float(functional.cross_entropy(logits, labels)))
    logits, labels = torch.randn(3, 5, 4, generator=generator), torch.arange(15).view(3, 5) % 4
    each = losses_by_example(logits, labels)
    assert each.shape == (3,)
    assert float(each.mean()) == pytest.approx(float(make_loss("cross-entropy", "tokens")(logits, labels)))
    assert float(each[1]) == pytest.approx(float(functional.cross_entropy(logits[1], labels[1])))


def test_tally_forgets_steps_that_overflow():
    tally = Tally.on(CPU)
    for value, count in ((2.0, 3), (float("nan"), 5), (float("inf"), 7)):
        tally.add_loss(torch.tensor(value), count)
    assert (float(tally.loss), int(tally.examples)) == (6.0, 3)


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_accumulation_takes_the_same_steps(optimizer):
    data, curves = load_dataset("digits", part=0.1), []
    for parts in (1, 4):
        recipe = Recipe(optimizer=optimizer, epochs=2, accumulate=parts)
        curves.append(train(build_model("mlp", {"hidden": [8]}), data, recipe).metrics["loss_history"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"optimizer": "esam", "accumulate": 2},
            r"accumulate must be 1 for esam, which needs the whole batch at once; got 2",
        ),
        (
            {"optimizer": "m-sam", "accumulate": 2, "optimizer_args": {"shards": 4}},
            r"accumulate must be 1 or 4, the shards of m-sam; got 2\.",
        ),
    ],
)
def test_parts_that_a_rule_cannot_take_are_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        train(build_model("mlp", {}), load_dataset("digits"), Recipe(**recipe))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_mixed_precision_stays_near_single_precision(amp, optimizer):
    data, losses = load_dataset("digits", part=0.2), {}
    for kind in ("off", amp):
        recipe = Recipe(optimizer=optimizer, epochs=3, lr=0.02, amp=kind)
        losses[kind] = train(build_model("mlp", {"hidden": [16]}), data, recipe).metrics["train_loss"]
    assert losses[amp] != losses["off"]
    # bfloat16 has 8 bits: rounding of 0.4 % an operation.
    assert losses[amp] == pytest.approx(losses["off"], rel=0.02)


@pytest.mark.parametrize("bad", ["at the weights", "at the displaced weights"])
def test_loss_that_is_not_finite_in_either_pass_is_refused_and_the_weights_stay(bad, monkeypatch):
    from hessprobe.training import loop

    calls, model = [], build_model("mlp", {"hidden": [8]})

    def broken(outputs, labels):
        calls.append(1)
        value = functional.cross_entropy(outputs, labels)
        return value * float("nan") if len(calls) == (5 if bad == "at the weights" else 6) else value

    before = {}
    step = loop._step

    def watched(*given):
        before.update({key: value.clone() for key, value in model.state_dict().items()})
        return step(*given)

    monkeypatch.setattr(loop, "make_loss", lambda *_: broken)
    monkeypatch.setattr(loop, "_step", watched)
    with pytest.raises(
        NonFiniteError, match=rf"failed in epoch 1, step 3: The loss {bad} is nan in step 3, with rho 0\.05"
    ):
        train(model, load_dataset("digits"), Recipe(optimizer="sam"))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_batchnorm_statistics_are_updated_once_a_step():
    data = load_dataset("digits", part=0.1)
    counts = []
    for optimizer in ("sgd", "sam", "sassha"):
        trained = train(
            build_model("cnn", {"widths": [2]}), data, Recipe(optimizer=optimizer, epochs=2), layout="image"
        )
        counts.append(int(trained.model.features[1].num_batches_tracked))
    assert len(set(counts)) == 1
    assert counts[0] == trained.metrics["steps"]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "like-lr"])
def test_radius_follows_its_schedule_over_the_whole_run(schedule):
    recipe = Recipe(optimizer="sam", epochs=4, rho=0.2, rho_schedule=schedule, rho_min=0.1)
    trained = train(build_model("mlp", {"hidden": [8]}), load_dataset("digits", part=0.2), recipe)
    radii = [each["rho"] for each in trained.metrics["curve"]]
    assert radii[-1] == pytest.approx(0.2 if schedule == "constant" else 0.1, abs=2e-3)
    assert radii == sorted(radii, reverse=True)
    assert (radii[1] < 0.19) == (schedule != "constant")


def test_crops_are_refused_for_text(tmp_path):
    (tmp_path / "a.txt").write_text("abcdef" * 100)
    data = load_dataset(f"text:{tmp_path}/a.txt", context=8)
    model = build_model("gpt", {"vocab_size": 6, "context": 8, "layers": 1, "d_model": 8, "n_heads": 2})
    with pytest.raises(ValueError, match=r"crop and flip must be left out for text; got crop=2, flip=False"):
        train(model, data, Recipe(crop=2), layout="tokens")
    trained = train(model, data, Recipe(epochs=3, optimizer="adamw", batch_size=4), layout="tokens")
    history = trained.metrics["loss_history"]
    assert history[-1] < history[0]
    assert 0 < trained.metrics["test_accuracy"] <= 1
