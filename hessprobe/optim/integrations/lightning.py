"""Both passes under Lightning's automatic optimization; nothing of Lightning is imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hessprobe.optim.engine import SharpnessAware
from hessprobe.optim.integrations.micro_batches import evaluate_together, require_backward


class SAMModule:
    """Placed before ``LightningModule``: automatic optimization by a rule, with accumulation and clipping.

        class Net(SAMModule, pl.LightningModule):
            def configure_optimizers(self):
                return GSAM(torch.optim.AdamW(self.parameters(), lr=1e-3), rho=0.05)

    ``Trainer(accumulate_grad_batches=k, gradient_clip_val=c)`` then act as with every optimizer: a step is that of the
    k micro-batches together, ``c`` clips what the base is given, ``on_before_optimizer_step`` sees that gradient once a
    step, ``global_step`` counts steps. What ``self.log`` is given is of the weights themselves: the passes elsewhere
    log nothing. ``training_step`` is run once for every micro-batch and point. A method ``on_train_batch_start`` of
    your own must call ``super()``.

    Rules that need the loss itself (Sassha, Eigen-SAM, X-SAM) get it. ESAM, K-SAM, Functional-SAM and Sparse-SAM with
    ``mask="fisher"`` need losses by example or outputs, and rules with a displacement for every micro-batch a list of
    closures: set ``self.automatic_optimization = False`` and call ``self.optimizers().optimizer.step(...)``, which
    ``global_step`` does not count. By hand is as elsewhere: backward, ``opt.first_step()``, backward, ``opt.step()``,
    where ``opt = self.optimizers()``.

    Raises:
        TypeError: (at the first step) a rule that does not fit.
        ValueError: (at a step) ``rng="same"`` or ``accumulate="per_microbatch"`` with several micro-batches.
        RuntimeError: (at a step) the micro-batches were not seen.
    """

    _is_elsewhere = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        """Keep the micro-batch for the passes to come."""
        kept: list[tuple[Any, int]] = self.__dict__.setdefault("_micro_batches", [])
        if batch_idx % self._parts_of_a_step() == 0:
            kept.clear()
        kept.append((batch, batch_idx))
        return super().on_train_batch_start(batch, batch_idx)  # type: ignore[misc]  # of LightningModule

    def log(self, *args: Any, **kwargs: Any) -> None:
        """See ``LightningModule``; nothing is logged away from the weights."""
        if not self._is_elsewhere:
            super().log(*args, **kwargs)  # type: ignore[misc]  # of LightningModule

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Evaluate the rule on the micro-batches of the step, then have Lightning clip and step."""
        rule = optimizer.optimizer
        if not isinstance(rule, SharpnessAware) or optimizer_closure is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)  # type: ignore[misc]  # of LightningModule
            return
        require_backward(rule)
        kept = self._kept_for(batch_idx, rule)
        trainer: Any = self.trainer  # type: ignore[attr-defined]  # of LightningModule
        value = evaluate_together(
            rule,
            [_Once(rule, optimizer_closure, lambda: self._again(trainer, kept, rule))],
            loss=lambda: torch.stack([self._loss(trainer, *one) for one in kept]).sum(),
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            clip_grad_norm=trainer.gradient_clip_val if trainer.gradient_clip_algorithm != "value" else None,
        )
        optimizer.step(closure=lambda: value)

    def _kept_for(self, batch_idx: int, rule: SharpnessAware) -> list[tuple[Any, int]]:
        kept: list[tuple[Any, int]] = list(self.__dict__.get("_micro_batches", ()))
        expected = batch_idx % self._parts_of_a_step() + 1
        if len(kept) != expected or kept[-1][1] != batch_idx:
            raise RuntimeError(
                f"on_train_batch_start must see every batch; got {len(kept)} of the {expected} of this step. Call "
                "super().on_train_batch_start(batch, batch_idx) in yours."
            )
        if expected > 1 and (rule.rng == "same" or rule.accumulate == "per_microbatch"):
            option = "rng" if rule.rng == "same" else "accumulate"
            wanted = "fresh" if rule.rng == "same" else "global"
            raise ValueError(
                f"{option} must be {wanted!r} with accumulate_grad_batches={self._parts_of_a_step()}; got "
                f"{getattr(rule, option)!r}. Step by hand, or do not accumulate."
            )
        return kept

    def _parts_of_a_step(self) -> int:
        return int(self.trainer.accumulate_grad_batches)  # type: ignore[attr-defined]  # of LightningModule

    def _again(self, trainer: Any, kept: list[tuple[Any, int]], rule: SharpnessAware) -> Tensor:
        total: Tensor | None = None
        for index, one in enumerate(kept):
            # Of strategies with several processes, which average the gradients with the last micro-batch.
            hold = getattr(trainer.strategy, "block_backward_sync", nullcontext)
            with nullcontext() if index == len(kept) - 1 else hold():
                loss = self._loss(trainer, *one)
                trainer.strategy.backward(loss, rule)
            total = loss.detach() if total is None else total + loss.detach()
        return torch.zeros(()) if total is None else total

    def _loss(self, trainer: Any, batch: Any, batch_idx: int) -> Tensor:
        wanted = len(inspect.signature(self.training_step).parameters)  # type: ignore[attr-defined]  # of LightningModule
        self._is_elsewhere = True
        try:
            output = trainer.strategy.training_step(*(batch, batch_idx)[:wanted])
        finally:
            self._is_elsewhere = False
        loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
        return loss / self._parts_of_a_step()


class _Once:
    """The backward of a step whose first run is Lightning's own, which adds to the gradients that are there.

    Args:
        rule: the optimizer.
        first: runs the last micro-batch, the gradients of those before being in place.
        again: runs all of them.
    """

    def __init__(self, rule: SharpnessAware, first: Callable[[], Any], again: Callable[[], Tensor]) -> None:
        self._first: Callable[[], Any] | None = first
        self._again = again
        self._parameters = [p for group in rule.param_groups for p in group["params"]]
        self._found = [p.grad for p in self._parameters]
        # The engine refuses to begin with gradients of somebody else.
        for parameter in self._parameters:
            parameter.grad = None

    def __call__(self) -> Tensor:
        first, self._first = self._first, None
        if first is None:
            return self._again()
        for parameter, gradient in zip(self._parameters, self._found, strict=True):
            parameter.grad = gradient
        self._found = []
        loss: Tensor = first()
        return loss
