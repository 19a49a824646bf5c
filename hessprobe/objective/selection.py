"""Which parameters theta is made of: chosen by glob, regex, predicate, submodule or identity."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hessprobe import checks
from hessprobe.errors import NonFiniteError, UnsupportedError, about


def select_parameters(module: nn.Module, params: Any = None) -> dict[str, nn.Parameter]:
    """Return the chosen trainable parameters by name, in the module's order; a tied parameter comes once.

    Args:
        module: owner of the parameters.
        params: None (all that require grad); a glob or a list of globs over dotted names, where ``"*"`` also crosses
            dots and the name of a submodule stands for all in it; a compiled regular expression (``search``);
            a predicate ``(name, parameter) -> bool``; a submodule; parameters; or a list that mixes these.
            Frozen parameters (``requires_grad=False``) are always left out.

    Raises:
        TypeError: ``params`` of another kind, or dtypes that differ.
        ValueError: nothing trainable is chosen, or devices differ, or a lazy or meta parameter.
    """
    named = dict(module.named_parameters())
    aliases = _aliases(module)
    chosen = set(named) if params is None else _matches(params, named, aliases)
    trainable = {name: p for name, p in named.items() if name in chosen and p.requires_grad}
    if not trainable:
        raise ValueError(_nothing(module, params, chosen, named))
    _require_uniform(trainable)
    return trainable


def require_finite(module: nn.Module) -> None:
    """Refuse nan and infinite parameters, and nan in buffers (an infinity there may be a mask).

    Raises:
        NonFiniteError: with the name of the first such tensor and how many entries are bad.
        UnsupportedError: a parameter made in inference mode, which has no gradient; or this is called inside it.
    """
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(
            "Curvature must be measured outside torch.inference_mode, where nothing has a gradient. Leave it first."
        )
    kinds = (("parameter", module.named_parameters()), ("buffer", module.named_buffers()))
    for kind, tensors in kinds:
        for name, tensor in tensors:
            if tensor.is_inference() and kind == "parameter":
                raise UnsupportedError(
                    f"parameter {name!r} must be made outside torch.inference_mode, where tensors have no gradient. "
                    "Make or load the model outside, or pass copy.deepcopy of it."
                )
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            nans = int(torch.isnan(tensor).sum())
            infinite = int(torch.isinf(tensor).sum()) if kind == "parameter" else 0
            if nans or infinite:
                raise NonFiniteError(
                    f"{kind} {name!r} must be finite; got {nans} nan and {infinite} inf of {tensor.numel()} entries. "
                    "Check how the model was trained and saved."
                )


def _aliases(module: nn.Module) -> dict[int, list[str]]:
    aliases: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    return aliases


def _matches(params: Any, named: dict[str, nn.Parameter], aliases: dict[int, list[str]]) -> set[str]:
    if isinstance(params, str | re.Pattern):
        found = {n for n, p in named.items() if any(_fits(params, alias) for alias in aliases[id(p)])}
        if not found:
            raise ValueError(_unmatched(params, named))
        return found
    if isinstance(params, Tensor | nn.Module):
        members = [params] if isinstance(params, Tensor) else list(params.parameters())
        found = {name for name, p in named.items() if any(p is member for member in members)}
        if not found or (isinstance(params, Tensor) and len(found) != 1):
            raise ValueError(
                about(
                    "params",
                    f"must belong to the module; got a {type(params).__name__} that does not. "
                    "Pass parts of the same model object.",
                )
            )
        return found
    if callable(params):
        return {name for name, p in named.items() if params(name, p)}
    if isinstance(params, Iterable):
        return set().union(*(_matches(item, named, aliases) for item in params))
    raise TypeError(
        about(
            "params",
            f"must be None, a glob, a regex, a predicate, a module or a list of these; got {type(params).__name__}. "
            "Pass for example params='layer1.*'.",
        )
    )


def _fits(pattern: str | re.Pattern[str], name: str) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _unmatched(pattern: str | re.Pattern[str], named: dict[str, nn.Parameter]) -> str:
    text = pattern if isinstance(pattern, str) else pattern.pattern
    prefixes = {".".join(n.split(".")[:end]) for n in named for end in range(1, n.count(".") + 2)}
    first = ", ".join(list(named)[:4])
    return about(
        "params",
        f"must match a parameter; got {text!r}, which matches none of {len(named)} ({first}, ...)."
        f"{checks.nearest(text.rstrip('.*'), sorted(prefixes))}",
    )


def _nothing(module: nn.Module, params: Any, chosen: set[str], named: dict[str, nn.Parameter]) -> str:
    if params is not None and chosen:
        names = ", ".join(sorted(chosen)[:4])
        return about(
            "params",
            f"must match a trainable parameter; got {_shown(params)}, which matches only frozen ones ({names}). "
            "Call requires_grad_(True) on them first.",
        )
    if params is not None:
        return about("params", f"must match a trainable parameter; got {_shown(params)}, which matches none. Widen it.")
    return (
        f"module must have a trainable parameter; got {type(module).__name__} with {len(named)} parameters, "
        f"{'all frozen' if named else 'none at all'}. Call module.requires_grad_(True) first."
    )


def _shown(params: Any) -> str:
    return repr(params) if isinstance(params, str | re.Pattern) else f"a {type(params).__name__}"


def _require_uniform(chosen: dict[str, nn.Parameter]) -> None:
    first_name, first = next(iter(chosen.items()))
    for name, parameter in chosen.items():
        if is_lazy(parameter) or parameter.device.type == "meta":
            kind = "lazy" if is_lazy(parameter) else "meta"
            raise ValueError(
                f"parameter {name!r} must hold values; got a {kind} tensor. Load the weights, or run one batch, first."
            )
        if parameter.dtype != first.dtype or parameter.is_complex():
            raise TypeError(
                about(
                    "params",
                    f"must share one real dtype; got {first.dtype} ({first_name!r}) and {parameter.dtype} "
                    f"({name!r}). Convert with module.float() or module.double(), or choose fewer with params=.",
                )
            )
        if parameter.device != first.device:
            raise ValueError(
                about(
                    "params",
                    f"must be on one device; got {first.device} ({first_name!r}) and {parameter.device} ({name!r}). "
                    "Move the module with module.to(device), or choose fewer with params=.",
                )
            )
