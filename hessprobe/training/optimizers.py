"""Optimizers by name, the plain ones and every registered sharpness-aware one: what they take, and by default."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from hessprobe import checks
from hessprobe.errors import about
from hessprobe.optim import registry
from hessprobe.optim.engine import EngineOptions

# Set by the loop or by fields of the recipe, never through ``optimizer_args``.
_RESERVED = ("self", "base_optimizer", "params", "rho", "model", "lr", "weight_decay")


# Rates that are usual here, where those of torch are not.
_USUAL_LR = {"sgd": 0.1, "adamw": 2e-3, "adam": 2e-3, "nadam": 2e-3, "radam": 2e-3}
# They call closures, take sparse gradients or matrices only, or keep a ``rho`` of their own in the groups.
_UNFIT = ("LBFGS", "SparseAdam", "Muon", "Adadelta")


def _found() -> dict[str, type[torch.optim.Optimizer]]:
    classes = [each for each in vars(torch.optim).values() if isinstance(each, type)]
    fit = [
        each
        for each in classes
        if issubclass(each, torch.optim.Optimizer) and each is not torch.optim.Optimizer and each.__name__ not in _UNFIT
    ]
    first = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    return {**first, **{each.__name__.lower(): each for each in sorted(fit, key=lambda one: one.__name__.lower())}}


# Every optimizer of torch that can be a base, by its name in small letters.
BASES: dict[str, type[torch.optim.Optimizer]] = _found()


def names() -> list[str]:
    """Return the names of all optimizers, the plain ones first."""
    return [*BASES, *registry.available()]


def default_rho(name: str) -> float | None:
    """Return the radius that a sharpness-aware optimizer takes by default, or None where it takes no number."""
    entry = registry.get(name)
    chosen = dict(entry.arguments).get("rho", getattr(parameters_of(name).get("rho"), "default", None))
    return float(chosen) if isinstance(chosen, (int, float)) and not isinstance(chosen, bool) else None


def takes_rho(name: str) -> bool:
    """Return whether a sharpness-aware optimizer has a radius."""
    return "rho" in parameters_of(name)


def default_lr(name: str, base: str) -> float:
    """Return the usual learning rate of an optimizer, one that owns its update having its own."""
    if name in BASES or not registry.get(name).standalone:
        return _base_lr(base)
    own = getattr(registry.get(name).load(), "usual_lr", getattr(parameters_of(name).get("lr"), "default", None))
    return float(own) if isinstance(own, float) and own > 0 else _base_lr(base)


def _base_lr(base: str) -> float:
    return _USUAL_LR.get(base, float(_own_parameters(base)["lr"].default))


def owns_its_update(name: str) -> bool:
    """Return whether a sharpness-aware optimizer has no other inside."""
    return registry.get(name).standalone


def takes(name: str, base: str, field: str) -> bool:
    """Return whether a field of the recipe (``momentum``, ``weight_decay``, ``nesterov``) reaches the update.

    Args:
        name: of the optimizer.
        base: of the plain one inside, where it has one.
        field: whose name an argument has.
    """
    if name not in BASES and registry.get(name).standalone:
        return field in parameters_of(name)
    # RMSprop has a momentum of another kind, zero where it is not asked for.
    return field in _own_parameters(base) and (field != "momentum" or base == "sgd")


def check_base_arguments(base: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the plain optimizer does not have, or that the recipe sets in another way.

    Raises:
        ValueError: there.
    """
    own = ("params", "lr", "weight_decay", *(("momentum", "nesterov") if base == "sgd" else ()))
    known = [key for key in _own_parameters(base) if key not in own]
    for key in arguments:
        if key in own:
            raise ValueError(
                about("base_args", f"must not hold {key}, which the recipe itself sets; got it. Set it there.")
            )
        checks.one_of(f"argument of base {base!r}", key, known)


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the optimizer does not have.

    Raises:
        ValueError: names the nearest one; or one that the recipe sets in another way; or any, for a plain optimizer.
        TypeError: something else where true or false is wanted.
    """
    if name in BASES:
        if arguments:
            raise ValueError(
                about(
                    "optimizer_args",
                    f"must be left out for {name}, which takes none; got {', '.join(arguments)}. "
                    "Choose a sharpness-aware optimizer.",
                )
            )
        return
    parameters = parameters_of(name)
    known = [key for key in parameters if key not in _RESERVED]
    for key, value in arguments.items():
        if key in _RESERVED:
            raise ValueError(
                about("optimizer_args", f"must not hold {key}, which the recipe itself sets; got it. Set it there.")
            )
        checks.one_of(f"argument of optimizer {name!r}", key, known)
        # Any text would count as true.
        if isinstance(parameters[key].default, bool) and not isinstance(value, bool):
            raise TypeError(f"argument {key} of optimizer {name!r} must be true or false; got {value!r}.")


def _own_parameters(base: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(BASES[base]).parameters


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of a sharpness-aware optimizer, those of the engine among them."""
    found = dict(inspect.signature(registry.get(name).load().__init__).parameters)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in found.values()):
        found = {key: each for key, each in found.items() if each.kind is not inspect.Parameter.VAR_KEYWORD}
        engine = {key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in EngineOptions.__annotations__}
        found = {**engine, **found}
    return found
