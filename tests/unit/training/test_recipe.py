from __future__ import annotations

import json

import pytest
import torch

from hessprobe.training.recipe import Recipe


def test_missing_learning_rate_becomes_the_optimizers_usual_one_and_is_recorded():
    assert Recipe().as_dict()["lr"] == 0.1
    assert Recipe(optimizer="adamw").as_dict()["lr"] == 2e-3
    assert Recipe(lr=0.3).lr == 0.3
    assert json.loads(json.dumps(Recipe().as_dict())) == Recipe().as_dict()


def test_optimizer_gets_its_arguments():
    weights = [torch.zeros(2, requires_grad=True)]
    sgd = Recipe(lr=0.2, momentum=0.5, weight_decay=0.01).make_optimizer(weights)
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.2,
        "momentum": 0.5,
        "weight_decay": 0.01,
    }
    adamw = Recipe(optimizer="adamw", weight_decay=0.02).make_optimizer(weights)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["weight_decay"] == 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sdg"}, r"optimizer must be one of sgd, adamw; got 'sdg'\. Did you mean 'sgd'\?"),
        ({"epochs": -1}, r"epochs must be an integer >= 0; got -1"),
        ({"lr": 0.0}, r"lr must be a finite number > 0; got 0\.0"),
        ({"lr": float("nan")}, r"lr must be a finite number > 0; got nan"),
        ({"batch_size": 0}, r"batch_size must be an integer >= 1; got 0"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\); got 1\.0"),
        ({"weight_decay": -0.1}, r"weight_decay must be a finite number >= 0; got -0\.1"),
        ({"schedule": "cos"}, r"schedule must be one of cosine, constant|schedule must be one of constant, cosine"),
        ({"loss": "crossentropy"}, r"loss must be one of cross-entropy; got 'crossentropy'\. Did you mean"),
        ({"seed": -1}, r"seed must be an integer >= 0; got -1"),
    ],
)
def test_values_outside_their_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)
