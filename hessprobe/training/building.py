"""The optimizer of a recipe, around the parameters of a model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hessprobe.optim import registry
from hessprobe.optim.schedules import Cosine, LikeLr, Linear, Schedule
from hessprobe.training.optimizers import BASES, parameters_of, takes
from hessprobe.training.recipe import Recipe

# Their ``steps`` is the length of the run although it has a default.
_LENGTH_OF_RUN = frozenset({"sparse-sam"})


def build_optimizer(recipe: Recipe, model: nn.Module, steps: int, examples: int) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the trainable parameters of ``model``.

    Args:
        recipe: names it and its numbers.
        model: also told to a sharpness-aware optimizer, so that BatchNorm statistics are updated once a step.
        steps: length of the whole run, for the radius' schedule and for optimizers that must know it.
        examples: size of the training data, for optimizers that must know it.

    Raises:
        TypeError, ValueError: the optimizer refuses an argument.
    """
    parameters = _groups(recipe, model)
    if recipe.optimizer in BASES:
        return _base(recipe, parameters)
    entry = registry.get(recipe.optimizer)
    options: dict[str, Any] = {**dict(entry.arguments), **recipe.optimizer_args}
    known, build = parameters_of(recipe.optimizer), entry.load()
    if recipe.rho is not None:
        options["rho"] = _radius(recipe, steps)
    if "model" in known:
        options["model"] = model
    if "seed" in known:
        options.setdefault("seed", recipe.seed)
    if "steps_per_epoch" in known:
        options.setdefault("steps_per_epoch", max(1, math.ceil(examples / recipe.batch_size)))
    facts = {"steps": max(1, steps), "examples": examples}
    # ``steps`` means something else in some rules (XSAM's ascent steps), so it is filled in where it is required only.
    wanted = [key for key in facts if key in known and known[key].default is inspect.Parameter.empty]
    wanted += ["steps"] if recipe.optimizer in _LENGTH_OF_RUN else []
    given = options.get("steps")
    if "steps" in wanted and isinstance(given, int) and given < facts["steps"]:
        raise ValueError(
            f"steps of {recipe.optimizer} must be at least {facts['steps']}, the length of the run; got {given}. "
            "Leave it out."
        )
    options = {**{key: facts[key] for key in wanted}, **options}
    if not entry.standalone:
        return build(_base(recipe, parameters), **options)  # type: ignore[no-any-return]  # a class found by name
    own = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "momentum": recipe.momentum}
    return build(parameters, **{key: value for key, value in own.items() if key in known}, **options)  # type: ignore[no-any-return]  # a class found by name


def parameter_names(decay: str, model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters in the order of the groups of ``build_optimizer``.

    Args:
        decay: ``Recipe.decay``.
        model: as it was given to the optimizer.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if decay == "all":
        return list(named)
    return sorted(named, key=lambda name: named[name].ndim <= 1)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _groups(recipe: Recipe, model: nn.Module) -> list[Any]:
    """Return the trainable parameters, those that are not to decay in a group of their own."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.decay == "all":
        return parameters
    groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
    decays = (recipe.weight_decay, 0.0)
    return [{"params": own, "weight_decay": decay} for own, decay in zip(groups, decays, strict=True) if own]


def _base(recipe: Recipe, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    base = recipe.base or "sgd"
    build: Any = BASES[base]
    own = {name: getattr(recipe, name) for name in ("weight_decay", "momentum") if takes(base, base, name)}
    if recipe.nesterov:
        own["nesterov"] = True
    # Lists are what JSON and TOML have for pairs.
    extra = {key: tuple(value) if isinstance(value, list) else value for key, value in recipe.base_args.items()}
    optimizer: torch.optim.Optimizer = build(parameters, lr=recipe.lr, **own, **extra)
    return optimizer


def _radius(recipe: Recipe, steps: int) -> float | Schedule:
    rho, end, length = float(recipe.rho or 0.0), recipe.rho_min, max(1, steps)
    if recipe.rho_schedule == "linear":
        return Linear(rho, end, length)
    if recipe.rho_schedule == "cosine":
        return Cosine(rho, end, length)
    if recipe.rho_schedule == "like-lr":
        return LikeLr(rho, end, float(recipe.lr or 0.0))
    return rho
