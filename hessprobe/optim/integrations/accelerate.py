"""Both passes in loops written for ``accelerate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.optim.engine import SharpnessAware
from hessprobe.optim.integrations.micro_batches import evaluate_together, require_backward


class AcceleratedBackward:
    """What takes the place of ``accelerator.backward`` where the optimizer is a sharpness-aware one.

        model, optimizer, loader, scheduler = accelerator.prepare(model, SAM(AdamW(...)), loader, scheduler)
        backward = AcceleratedBackward(accelerator, model, optimizer)
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = backward(lambda x=x, y=y: criterion(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    All but the third and fifth line is the loop of the library. The micro-batches of a step are kept and evaluated
    together with the last of them: the functions must hold on to their own batch, as ``x=x, y=y`` does.

    Args:
        accelerator: the ``Accelerator``.
        model: as prepared.
        optimizer: as prepared, around a sharpness-aware one.
        clip_grad_norm: what the loop clips with; only rules that clip several gradients (WSAM, Lookbehind) look at it.

    Raises:
        TypeError: the optimizer is not sharpness-aware, or its rule needs losses by example or outputs.
    """

    def __init__(
        self, accelerator: Any, model: nn.Module, optimizer: Any, *, clip_grad_norm: float | None = None
    ) -> None:
        self._accelerator, self._model, self._bound = accelerator, model, clip_grad_norm
        inner = optimizer
        while not isinstance(inner, SharpnessAware) and hasattr(inner, "optimizer"):
            inner = inner.optimizer
        require_backward(inner)
        self._optimizer: SharpnessAware = inner
        self._losses: list[Callable[[], Tensor]] = []

    def __call__(self, loss: Callable[[], Tensor]) -> Tensor | None:
        """Keep a micro-batch; with the last one of a step evaluate the rule on all of them.

        Args:
            loss: computes the loss of this micro-batch, with its graph.

        Returns:
            The mean loss of the micro-batches of the step, detached; None before the last of them.
        """
        self._losses.append(loss)
        accelerator = self._accelerator
        if not accelerator.sync_gradients:
            return None
        losses, self._losses = self._losses, []
        # The library divides by this at every backward, however many micro-batches there are.
        share = 1.0 / int(accelerator.gradient_accumulation_steps)

        def backward_of(one: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def backward() -> Tensor:
                value = one()
                accelerator.backward(value)
                return value.detach() * share

            return backward

        return evaluate_together(
            self._optimizer,
            [backward_of(one) for one in losses],
            loss=lambda: torch.stack([one() for one in losses]).sum() * share,
            no_sync=lambda: accelerator.no_sync(self._model),
            scaler=accelerator.scaler,
            clip_grad_norm=self._bound,
        )
