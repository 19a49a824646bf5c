"""The options that every sharpness-aware optimizer takes, their checks, and what is wrong with a call."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypedDict

import torch
from torch import nn

from hessprobe import checks
from hessprobe.errors import about


def require_base(base: Any) -> torch.optim.Optimizer:
    """Return a constructed optimizer that can be wrapped.

    Raises:
        TypeError: it is none, calls closures itself, is sharpness-aware already, or has a ``rho`` of its own
            (Adadelta).
    """
    if not isinstance(base, torch.optim.Optimizer):
        raise TypeError(
            f"base_optimizer must be a constructed torch optimizer; got {base!r}. "
            "Pass for example torch.optim.SGD(model.parameters(), lr=0.1)."
        )
    if isinstance(base, torch.optim.LBFGS):
        raise TypeError(
            "base_optimizer must take its gradients from .grad; got LBFGS, which calls the closure itself. "
            "Use SGD or AdamW."
        )
    if hasattr(base, "base_optimizer"):
        raise TypeError(
            f"base_optimizer must be a plain optimizer; got {type(base).__name__}, already sharpness-aware. "
            "Pass its base."
        )
    if "rho" in base.defaults:
        raise TypeError(
            f"base_optimizer must have no 'rho' of its own in its groups, where the radius is; got "
            f"{type(base).__name__}. Use SGD or AdamW."
        )
    return base


def shard_shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the weight of each of ``count`` shards, equal ones by default.

    Raises:
        ValueError: not ``count`` numbers >= 0 that sum to 1.
    """
    if weights is None:
        return [1 / count] * count
    shares = [checks.real("weights", weight, low=0) for weight in weights]
    if len(shares) != count or not math.isclose(sum(shares), 1.0, rel_tol=1e-6):
        raise ValueError(
            f"weights must be {count} numbers that sum to 1; got {list(weights)}. Use n_i / n for shard i."
        )
    return shares


P = ParamSpec("P")

_BASE = "base_optimizer"


def explained(init: Callable[P, None]) -> Callable[P, None]:
    """Return ``init`` that says of a call which does not fit what to write instead; the signature stays.

    Nothing that works is refused: what is said replaces a ``TypeError`` only.
    """

    @functools.wraps(init)
    def explaining(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            init(*args, **kwargs)
        except TypeError as error:
            kind = type(args[0])
            # Those of the parents see what a class hands on, not what was written.
            if inspect.getattr_static(kind, "__init__") is not explaining:
                raise
            said = _mistake(kind, args[1:], kwargs, str(error))
            if said is None:
                raise
            raise TypeError(said) from error

    return explaining


def split_call(
    kind: type, params: Any, base: Callable[..., torch.optim.Optimizer], arguments: Mapping[str, Any]
) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """Return the base optimizer and the arguments of ``kind``, from those of both together.

    Raises:
        TypeError: ``kind`` owns its update.
    """
    own, name = arguments_of(kind), kind.__name__
    if _BASE not in own:
        raise TypeError(
            f"{name} must be given parameters alone, as it owns its update; got a base optimizer. "
            f"Write {name}(model.parameters(), ...)."
        )
    of_rule = {key: value for key, value in arguments.items() if key in own}
    of_base = {key: value for key, value in arguments.items() if key not in own}
    return base(params, **of_base), of_rule


def _mistake(kind: type, args: Sequence[Any], given: Mapping[str, Any], error: str) -> str | None:
    known = arguments_of(kind)
    first = args[0] if args else given.get(_BASE)
    wraps = _BASE in known
    if wraps and (args or given) and not isinstance(first, torch.optim.Optimizer):
        return _construct_first(kind, args, given, known)
    if "params" in known and isinstance(first, torch.optim.Optimizer):
        got, name = type(first).__name__, kind.__name__
        return about(
            "params", f"must be parameters; got {got}. {name} owns its update: write {name}(model.parameters(), ...)."
        )
    unknown = next((name for name in given if name not in known and f"keyword argument {name!r}" in error), None)
    if unknown is None:
        return None
    if wraps and unknown in getattr(first, "defaults", {}):
        base = type(first).__name__
        return f"{kind.__name__} has no argument {unknown!r}, which is one of its base optimizer. Give it to {base}."
    return checks.no_argument(kind.__name__, unknown, known)


def _construct_first(kind: type, args: Sequence[Any], given: Mapping[str, Any], known: Sequence[str]) -> str:
    """Sort the arguments of a call that other packages understand into those of the base and those of the rule."""
    values = [*args, *given.values()]
    base = next((v for v in values if isinstance(v, type) and issubclass(v, torch.optim.Optimizer)), torch.optim.SGD)
    of_base = {name: value for name, value in given.items() if name not in (*known, "params")}
    of_rule = {name: value for name, value in given.items() if name in known and name != _BASE}
    inner = ["model.parameters()", *_written(of_base or {"lr": 0.1})]
    outer = [f"{_path(base)}({', '.join(inner)})", *_written(of_rule)]
    got = args[0] if args else given.get(_BASE, given.get("params"))
    what = f"the class {got.__name__}" if isinstance(got, type) else type(got).__name__
    return (
        f"{_BASE} must be a constructed torch optimizer; got {what}. "
        f"Construct it first: {kind.__name__}({', '.join(outer)})."
    )


def arguments_of(kind: type) -> list[str]:
    """Return the arguments of a class, those that it hands on to its parents included."""
    names: dict[str, None] = {}
    for each in kind.__mro__:
        if "__init__" not in each.__dict__ or each is torch.optim.Optimizer:
            continue
        parameters = list(inspect.signature(each.__dict__["__init__"]).parameters.values())[1:]
        # A class that takes parameters makes the base optimizer for its parent.
        own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and not (names and p.name == _BASE)]
        names |= dict.fromkeys(own)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _written(arguments: Mapping[str, Any]) -> list[str]:
    plain = (bool, int, float, str, tuple)
    return [f"{name}={value!r}" if isinstance(value, plain) else f"{name}={name}" for name, value in arguments.items()]


def _path(base: type) -> str:
    return f"torch.optim.{base.__name__}" if base.__module__.startswith("torch.optim") else base.__name__


class EngineOptions(TypedDict, total=False):
    """Options that every sharpness-aware optimizer takes, see ``SharpnessAware``."""

    model: nn.Module | None
    seed: int
    rng: str
    accumulate: str
    sync: str
    foreach: bool | None
    diagnostics: bool
    check_finite: bool | None
    eps: float
