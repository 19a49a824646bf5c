from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from hessprobe.errors import NonFiniteError
from hessprobe.objective.base import make_loss
from hessprobe.training.datasets import DataSet, load_dataset
from hessprobe.training.datasets.base import mislabel
from hessprobe.training.evaluation import Examples, assess
from hessprobe.training.loop import train
from hessprobe.training.models import build_model
from hessprobe.training.recipe import Recipe


def tiny():
    images = torch.rand(10, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return DataSet("tiny", images, torch.arange(10) % 2, torch.tensor([0, 1]), 2)


def linear(seed=0):
    return build_model("mlp", {"in_features": 4, "hidden": [], "n_classes": 2}, seed)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_digits_mlp_is_right_on_97_percent(optimizer):
    trained = train(build_model("mlp", {}, 0), load_dataset("digits"), Recipe(optimizer=optimizer))
    assert trained.metrics["test_accuracy"] >= 0.97
    assert trained.metrics["train_accuracy"] >= 0.995
    assert not trained.model.training


def test_one_sgd_step_is_the_formula():
    data, recipe = tiny(), Recipe(epochs=1, batch_size=8, lr=0.5, momentum=0.0, weight_decay=0.1, schedule="constant")
    model, reference = linear(), linear()
    trained = train(model, data, recipe)
    inputs, labels = data.split("train")
    loss = make_loss("cross-entropy")(reference(inputs), labels)
    assert trained.metrics["loss_history"] == [pytest.approx(loss.item(), rel=1e-6)]
    for before, slope, after in zip(
        reference.parameters(), torch.autograd.grad(loss, list(reference.parameters())), model.parameters(), strict=True
    ):
        torch.testing.assert_close(after, before - 0.5 * (slope + 0.1 * before))


def test_cosine_schedule_ends_at_zero_and_constant_stays():
    rates = {}
    for schedule in ("cosine", "constant"):
        trained = train(linear(), tiny(), Recipe(epochs=4, batch_size=4, lr=0.5, schedule=schedule))
        rates[schedule] = trained.optimizer.param_groups[0]["lr"]
    assert rates == {"cosine": pytest.approx(0.0, abs=1e-12), "constant": 0.5}


def test_same_seed_same_weights_and_no_global_generator_is_touched():
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    weights = []
    for seed in (1, 1, 2):
        weights.append(train(linear(), tiny(), Recipe(epochs=2, batch_size=3, seed=seed)).model.layers[0].weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_metrics_are_those_of_the_final_weights_over_all_examples():
    data = tiny()
    trained = train(linear(), data, Recipe(epochs=3, batch_size=5))
    for split in ("train", "test"):
        inputs, labels = data.split(split)
        logits = trained.model(inputs)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        assert trained.metrics[f"{split}_loss"] == pytest.approx(loss.item(), rel=1e-6)
        hits = (logits.argmax(1) == labels).float().mean().item()
        assert trained.metrics[f"{split}_accuracy"] == pytest.approx(hits)


def test_assessment_weighs_ragged_batches_by_size_and_leaves_the_mode():
    model = linear().train()
    inputs = torch.rand(1500, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    data = DataSet("x", inputs, (torch.arange(1500) > 1100).long(), torch.arange(0), 2)
    found = assess(model, Examples.of(data, "all", "vector", torch.device("cpu")), make_loss("cross-entropy"), "all")
    logits = model(inputs.flatten(1))
    whole = torch.nn.functional.cross_entropy(logits, data.labels).item()
    assert found["all_loss"] == pytest.approx(whole, rel=1e-5)
    assert found["all_accuracy"] == pytest.approx((logits.argmax(1) == data.labels).float().mean().item())
    assert set(found) == {"all_loss", "all_accuracy"}
    assert model.training


def test_noisy_labels_are_assessed_against_right_and_wrong():
    data = mislabel(load_dataset("digits"), 0.25, 0)
    model = build_model("mlp", {"hidden": [8]}, 0)
    found = assess(
        model, Examples.of(data, "train", "vector", torch.device("cpu")), make_loss("cross-entropy"), "train"
    )
    rows = data.positions("train")
    guess = model(data.split("train")[0]).argmax(1)
    right, given = data.clean_labels[rows], data.labels[rows]
    wrong = right != given
    assert found["train_accuracy"] == pytest.approx(float((guess == given).double().mean()))
    assert found["train_clean_accuracy"] == pytest.approx(float((guess == right).double().mean()))
    assert found["train_noisy_accuracy"] == pytest.approx(float((guess == given)[wrong].double().mean()))


def test_progress_is_reported_after_each_epoch():
    seen = []
    train(linear(), tiny(), Recipe(epochs=3), report=seen.append)
    assert [(each.epoch, each.epochs) for each in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(math.isfinite(each.train_loss) for each in seen)


def test_diverging_run_stops_with_epoch_and_step():
    with pytest.raises(
        NonFiniteError, match=r"training loss became (nan|inf) in epoch \d+, step \d+, with lr 1e\+30\."
    ):
        train(build_model("mlp", {}, 0), load_dataset("digits"), Recipe(epochs=3, lr=1e30))


def test_divergence_in_the_last_step_is_seen():
    data = dataclasses.replace(tiny(), inputs=tiny().inputs * 1e20)
    with pytest.raises(NonFiniteError, match=r"became (nan|inf) on the train split after the last step"):
        train(linear(), data, Recipe(epochs=1, batch_size=8, lr=1e30, schedule="constant"))


def test_no_epochs_keeps_the_initial_weights():
    model = linear()
    before = model.layers[0].weight.clone()
    trained = train(model, tiny(), Recipe(epochs=0))
    assert torch.equal(model.layers[0].weight, before)
    assert trained.metrics["loss_history"] == []
