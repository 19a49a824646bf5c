"""The micro-batches of one step, evaluated together wherever a rule wants them: what loops that accumulate need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hessprobe.errors import about
from hessprobe.optim.engine import SharpnessAware

Backward = Callable[[], Tensor]


def evaluate_together(
    optimizer: SharpnessAware,
    backwards: Sequence[Backward],
    *,
    loss: Callable[[], Tensor],
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    scaler: Any = None,
    clip_grad_norm: float | None = None,
) -> Tensor:
    """Do all of a step but the base step, see ``SharpnessAware.evaluate``.

    Args:
        optimizer: of the step.
        backwards: one for each micro-batch: each adds its part of the gradient to ``.grad``, scaled by ``scaler``, and
            returns its part of the loss; the parts sum to the loss of the step.
        loss: forward only: the loss of the step with its graph, for rules that want one.
        no_sync: holds back the averaging over ranks, which only the last micro-batch of a pass is to do.
        scaler: the ``GradScaler``, or None.
        clip_grad_norm: what the caller will clip with.

    Returns:
        The loss at the first point evaluated.

    Raises:
        TypeError: the rule wants losses by example or outputs, which no such loop can give.
    """
    require_backward(optimizer)
    given = _closures(optimizer, backwards, no_sync)
    wanted = loss if optimizer.needs_loss else None
    value = optimizer.evaluate(given, loss=wanted, scaler=scaler, clip_grad_norm=clip_grad_norm)
    return torch.zeros(()) if value is None else value


def require_backward(optimizer: Any) -> None:
    """Refuse a rule whose closures are of another kind than "backward".

    Raises:
        TypeError: there, or where it is no sharpness-aware optimizer.
    """
    if not isinstance(optimizer, SharpnessAware):
        raise TypeError(
            about(
                "optimizer",
                f"must be a sharpness-aware one; got {type(optimizer).__name__}. Pass for example "
                "SAM(torch.optim.AdamW(model.parameters())).",
            )
        )
    if optimizer.closure_kind != "backward":
        what = {"per-sample": "the loss of every example", "outputs": "the outputs"}[optimizer.closure_kind]
        raise TypeError(
            f"{type(optimizer).__name__} must be stepped in a loop of your own, as it needs {what}, which this trainer "
            f"does not hand out; call opt.step(closure) with a closure that returns {_RETURNS[optimizer.closure_kind]}."
        )


_RETURNS = {"per-sample": "losses (n,) for closure(subset)", "outputs": "(outputs, loss)"}


def _closures(
    optimizer: SharpnessAware, backwards: Sequence[Backward], no_sync: Callable[[], AbstractContextManager[Any]]
) -> Backward | list[Backward]:
    if optimizer.accumulate == "per_microbatch":
        return [_alone(optimizer, backward, len(backwards)) for backward in backwards]

    def closure() -> Tensor:
        optimizer.zero_grad()
        total: Tensor | None = None
        for index, backward in enumerate(backwards):
            with nullcontext() if index == len(backwards) - 1 else no_sync():
                part = backward().detach()
            total = part if total is None else total + part
        return torch.zeros(()) if total is None else total

    return closure


def _alone(optimizer: SharpnessAware, backward: Backward, count: int) -> Backward:
    # A part of the loss is 1/count of what the micro-batch has by itself; the engine takes the mean of all of them.
    def closure() -> Tensor:
        optimizer.zero_grad()
        part = backward().detach() * count
        for parameter in optimizer.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(count)
        return part

    return closure
