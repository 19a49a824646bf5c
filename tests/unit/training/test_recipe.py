from __future__ import annotations

import json

import pytest
import torch

from hessprobe.training.building import build_optimizer
from hessprobe.training.optimizers import BASES
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
        (
            {"optimizer": "sam", "base": "adamww"},
            r"base must be one of sgd, adamw, .*; got 'adamww'\. Did you mean 'adamw'",
        ),
        ({"optimizer": "sam", "base": "adadelta"}, r"base must be one of sgd, adamw, adafactor, adagrad, adam, "),
        ({"optimizer": "adamw", "nesterov": True}, r"nesterov must be left out without the momentum of sgd; got true"),
        ({"momentum": 0.0, "nesterov": True}, r"nesterov must be left out without the momentum of sgd; got true"),
        ({"optimizer": "adasam", "nesterov": True}, r"nesterov must be left out without the momentum of sgd; got true"),
        ({"decay": "matrix", "weight_decay": 0.1}, r"decay must be one of all, matrices; got 'matrix'"),
        ({"decay": "matrices"}, r"decay must be left out without weight_decay; got 'matrices'"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, r"weight_decay must be left out for rprop, which has none"),
        ({"optimizer": "lightsam", "weight_decay": 0.1}, r"weight_decay must be left out for lightsam, which has none"),
        ({"base_args": {"momentum": 1}}, r"base_args must not hold momentum, which the recipe itself sets"),
        ({"optimizer": "adamw", "base_args": {"lr": 1}}, r"base_args must not hold lr, which the recipe itself sets"),
        ({"optimizer": "adam", "base_args": {"beta": 1}}, r"must be one of .*; got 'beta'\. Did you mean 'betas'"),
        ({"optimizer": "adasam", "base_args": {"eps": 1}}, r"base_args must be left out for adasam, which owns its"),
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
        ({"nesterov": 1}, r"nesterov must be true or false; got 1\."),
        ({"base_args": 3}, r"base_args must be a table of names and values; got 3"),
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


@pytest.mark.parametrize("base", sorted(BASES))
def test_every_optimizer_of_torch_trains_alone_and_inside(base):
    assert {"sgd", "adamw", "adam", "nadam", "radam", "rmsprop", "adagrad", "adamax", "adafactor", "asgd", "rprop"} <= {
        *BASES
    }
    for optimizer in (base, "sam"):
        model = torch.nn.Linear(3, 2).double()
        recipe = Recipe(optimizer=optimizer, base=base)
        built = build_optimizer(recipe, model, 10, 10)
        inner = built if optimizer == base else built.base_optimizer
        assert type(inner) is BASES[base]
        before = model.weight.detach().clone()

        def closure(model=model, built=built):
            built.zero_grad()
            loss = model(torch.ones(1, 3, dtype=torch.float64)).square().sum()
            loss.backward()
            return loss

        for _ in range(2):
            loss = built.step(closure)
        assert not torch.equal(model.weight, before)
        assert torch.isfinite(loss)


def test_momentum_looks_ahead_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    recipe = Recipe(optimizer="sam", nesterov=True, weight_decay=0.1, decay="matrices")
    groups = build_optimizer(recipe, model, 10, 10).param_groups
    assert [[p.ndim for p in group["params"]] for group in groups] == [[2], [1, 1, 1]]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(group["nesterov"] for group in groups)
    assert build_optimizer(Recipe(base_args={"dampening": 0.5}), model, 1, 1).defaults["dampening"] == 0.5
    adam = Recipe(optimizer="sam", base="adam", base_args={"betas": [0.8, 0.9]})
    assert build_optimizer(adam, model, 1, 1).param_groups[0]["betas"] == (0.8, 0.9)
    assert adam.lr == 2e-3
    assert Recipe(optimizer="sam", base="rmsprop").lr == 0.01
    # Its own momentum is another, and that of the recipe is not for it.
    assert build_optimizer(Recipe(optimizer="rmsprop"), model, 1, 1).defaults["momentum"] == 0
    standalone = Recipe(optimizer="adasam", weight_decay=0.1, decay="matrices")
    assert [group["weight_decay"] for group in build_optimizer(standalone, model, 1, 1).param_groups] == [0.1, 0.0]
