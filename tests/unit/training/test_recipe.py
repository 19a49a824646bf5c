from __future__ import annotations

import json

import pytest
import torch

from hessprobe.training.optimizers import build_optimizer
from hessprobe.training.recipe import Recipe


def test_missing_learning_rate_becomes_the_optimizers_usual_one_and_is_recorded():
    assert Recipe().as_dict()["lr"] == 0.1
    assert Recipe(optimizer="adamw").as_dict()["lr"] == 2e-3
    assert Recipe(lr=0.3).lr == 0.3
    assert json.loads(json.dumps(Recipe().as_dict())) == Recipe().as_dict()


def test_optimizer_gets_its_arguments():
    model = torch.nn.Linear(2, 1)
    sgd = build_optimizer(Recipe(lr=0.2, momentum=0.5, weight_decay=0.01), model, 1, 1)
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.2,
        "momentum": 0.5,
        "weight_decay": 0.01,
    }
    adamw = build_optimizer(Recipe(optimizer="adamw", weight_decay=0.02), model, 1, 1)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["weight_decay"] == 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sdg"}, r"optimizer must be one of sgd, adamw, .*; got 'sdg'\. Did you mean 'sgd'\?"),
        ({"epochs": -1}, r"epochs must be an integer >= 0; got -1"),
        ({"lr": 0.0}, r"lr must be a finite number > 0; got 0\.0"),
        ({"lr": float("nan")}, r"lr must be a finite number > 0; got nan"),
        ({"batch_size": 0}, r"batch_size must be an integer >= 1; got 0"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\); got 1\.0"),
        ({"weight_decay": -0.1}, r"weight_decay must be a finite number >= 0; got -0\.1"),
        ({"schedule": "cos"}, r"schedule must be one of constant, cosine, multistep; got 'cos'"),
        ({"optimizer": "fro-sam"}, r"optimizer must be one of .*; got 'fro-sam'\. Did you mean 'frob-sam'\?"),
        ({"optimizer": "sam", "base": "adam"}, r"base must be one of sgd, adamw; got 'adam'\. Did you mean 'adamw'"),
        ({"optimizer": "sgd", "base": "adamw"}, r"base must be left out for the plain optimizer sgd; got 'adamw'"),
        ({"rho": 0.1}, r"rho must be left out for sgd, which has no radius; got 0\.1\. Choose a sharpness-aware"),
        ({"rho_schedule": "linear"}, r"rho_schedule must be left out for sgd, which has no radius"),
        ({"optimizer": "sam", "rho": -0.1}, r"rho must be a finite number >= 0; got -0\.1"),
        ({"optimizer": "sam", "rho": float("nan")}, r"rho must be a finite number >= 0; got nan"),
        ({"optimizer": "gsam", "optimizer_args": {"alpa": 1}}, r"must be one of .*; got 'alpa'\. Did you mean 'alpha'"),
        ({"optimizer": "gsam", "optimizer_args": {"rho": 1}}, r"optimizer_args must not hold rho, which the recipe"),
        ({"optimizer_args": {"alpha": 1}}, r"optimizer_args must be left out for sgd, which takes none; got alpha"),
        ({"label_noise": 1.5}, r"label_noise must be a number in \[0, 1\]; got 1\.5\. 0\.2 makes a fifth"),
        ({"label_noise": float("nan")}, r"label_noise must be a number in \[0, 1\]; got nan"),
        ({"subset": 0.0}, r"subset must be a number in \(0, 1\]; got 0\.0"),
        ({"crop": -1}, r"crop must be an integer >= 0; got -1"),
        ({"accumulate": 64}, r"accumulate must be at most batch_size = 32; got 64"),
        ({"warmup": 30.0}, r"warmup must be below epochs = 30; got 30"),
        ({"milestones": [1.0]}, r"milestones must be a number in \(0, 1\); got 1\.0\. 0\.5 is halfway"),
        ({"gamma": 0.0}, r"gamma must be a number in \(0, 1\]; got 0\.0"),
        ({"amp": "half"}, r"amp must be one of off, bf16, fp16; got 'half'"),
        ({"clip_grad_norm": 0.0}, r"clip_grad_norm must be a finite number > 0; got 0\.0"),
        ({"loss": "crossentropy"}, r"loss must be one of cross-entropy; got 'crossentropy'\. Did you mean"),
        ({"seed": -1}, r"seed must be an integer >= 0; got -1"),
    ],
)
def test_values_outside_their_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1}, r"flip must be true or false; got 1\."),
        ({"milestones": "0.5"}, r"milestones must be a list of numbers in \(0, 1\); got '0\.5'"),
        ({"optimizer": 3}, r"optimizer must be text; got 3\."),
        ({"optimizer": "sam", "optimizer_args": 3}, r"optimizer_args must be a table of names and values; got 3"),
    ],
)
def test_values_of_the_wrong_type_are_refused(changes, message):
    with pytest.raises(TypeError, match=message):
        Recipe(**changes)


def test_defaults_of_the_optimizer_are_recorded():
    recorded = Recipe(optimizer="asam").as_dict()
    assert (recorded["rho"], recorded["base"], recorded["lr"]) == (0.5, "sgd", 0.1)
    assert Recipe(optimizer="sam", base="adamw").lr == 2e-3
    assert Recipe(optimizer="adasam").lr == 3e-3
    assert Recipe(optimizer="sgd").rho is None


def test_the_length_of_the_run_goes_only_where_steps_means_that():
    model = torch.nn.Linear(2, 2)
    for name, steps in (("xsam", 1), ("sparse-sam", 70)):
        optimizer = build_optimizer(Recipe(optimizer=name), model, 70, 10)
        assert optimizer.steps == steps
