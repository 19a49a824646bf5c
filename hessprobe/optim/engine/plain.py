"""Steps without a closure: the base optimizer alone, on the gradients that are there."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from hessprobe.errors import PlainStepWarning
from hessprobe.optim.engine.owner import Owner

# torch's own wrapper around ``step``, its body and the two functions below lie between the caller and the warning.
_CALLER = 6


def plain_step(optimizer: Owner, clip_grad_norm: float | None) -> None:
    """Take a base step on the present gradients."""
    _warn_once(optimizer)
    optimizer.prepare()
    if clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(optimizer.parameters(), clip_grad_norm)
    optimizer.base_optimizer.step()
    optimizer.memory.reserve_vectors(optimizer.vectors, optimizer.parameters())


def refuse_scaler_step(optimizer: Owner, closure: Any) -> None:
    """Refuse a step that ``GradScaler.step`` takes, with gradients that are still scaled.

    Raises:
        RuntimeError: the scaler has left its marks.
    """
    if getattr(optimizer, "found_inf", None) is None:
        return
    for given in ("found_inf", "grad_scale"):
        optimizer.__dict__.pop(given, None)
    name = type(optimizer).__name__
    how = "scaler.step(opt, closure)" if closure is not None else "scaler.step(opt)"
    raise RuntimeError(
        f"{name} must be stepped with opt.step(closure, scaler=scaler); got {how}, which would apply scaled "
        "gradients. Call opt.step(closure, scaler=scaler), then scaler.update()."
    )


def _warn_once(optimizer: Owner) -> None:
    # A rate of zero trains nothing: torch.distributed.checkpoint steps so to have the state made.
    if optimizer.rule_in_use or not any(group.get("lr", 1) for group in optimizer.param_groups):
        return
    optimizer.rule_in_use = True
    base = type(optimizer.base_optimizer).__name__
    warnings.warn(
        f"{type(optimizer).__name__}.step() without a closure is a step of plain {base}; "
        "call opt.step(closure), or opt.first_step() and opt.second_step() after a backward each; in the Trainer of "
        "transformers use hessprobe.optim.integrations.SAMTrainer.",
        PlainStepWarning,
        stacklevel=_CALLER,
    )
