"""The ``Trainer`` of Hugging Face with both passes; importing this file needs ``transformers`` and ``accelerate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hessprobe.errors import UnsupportedError
from hessprobe.optim.engine import SharpnessAware
from hessprobe.optim.integrations.micro_batches import evaluate_together, require_backward
from hessprobe.optim.rules.ascent import SAM

if TYPE_CHECKING:
    # The library is untyped; this is what is used of its class.
    class Trainer:  # noqa: D101
        optimizer: Any
        accelerator: Any
        args: Any
        __init__: Any
        create_optimizer: Any
        train: Any
        training_step: Any
else:
    try:
        from transformers import Trainer
    except ImportError as error:
        raise UnsupportedError(
            "SAMTrainer needs transformers, which is not installed. Run pip install 'hessprobe[hf]'."
        ) from error


class SAMTrainer(Trainer):
    """A ``transformers.Trainer`` whose steps are those of a sharpness-aware optimizer.

        trainer = SAMTrainer(model=model, args=args, train_dataset=data, rule=partial(GSAM, rho=0.05))
        trainer.train()

    The base is the optimizer that the ``Trainer`` makes from its arguments (``optim="adamw_torch"``, its groups without
    weight decay, its schedule), or that of ``optimizers=``. With ``gradient_accumulation_steps=k`` the micro-batches of
    a step are kept and evaluated together, so the step is that of the whole batch: k forward and backward passes at
    every point that the rule wants. ``max_grad_norm`` clips what the base is given, the ``grad_norm`` that is logged is
    its norm before that, and the loss that is logged is the one at the weights themselves. A step that fp16 makes
    overflow is skipped as ever. Checkpoints hold what the rule remembers: ``resume_from_checkpoint`` goes on exactly.

    All rules but ESAM, K-SAM, Functional-SAM and Sparse-SAM with ``mask="fisher"`` work: those need losses by example
    or outputs. Sassha, Eigen-SAM and X-SAM differentiate twice: eager attention
    (``attn_implementation="eager"``), and the memory of the graph of all k micro-batches.

    Args:
        *args: of ``Trainer``.
        rule: makes the optimizer from the base; not used where ``optimizers=`` brings a sharpness-aware one.
        **kwargs: of ``Trainer``.

    Raises:
        TypeError: the rule is one of those four.
        ValueError: training by DeepSpeed, which owns the backward pass.
    """

    def __init__(
        self, *args: Any, rule: Callable[[torch.optim.Optimizer], SharpnessAware] = SAM, **kwargs: Any
    ) -> None:
        self._sharpness_rule = rule
        self._micro_batches: list[Any] = []
        super().__init__(*args, **kwargs)
        if getattr(self, "is_deepspeed_enabled", False):
            raise ValueError(
                "SAMTrainer must make its own backward passes; got training by DeepSpeed. Use DDP or one device."
            )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer of the ``Trainer``, and the rule around it."""
        super().create_optimizer(*args, **kwargs)
        if not isinstance(_unwrapped(self.optimizer), SharpnessAware):
            self.optimizer = self._sharpness_rule(self.optimizer)
        require_backward(_unwrapped(self.optimizer))
        made: torch.optim.Optimizer = self.optimizer
        return made

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See ``Trainer``."""
        self._micro_batches.clear()  # of a training that was stopped within a step
        return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Keep the micro-batch; with the last one of a step evaluate the rule on all of them.

        Returns:
            The loss of the step, detached, with its last micro-batch; zero before.
        """
        self._micro_batches.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        kept, self._micro_batches = self._micro_batches, []
        step = super().training_step

        def backward_of(part: Any) -> Callable[[], Tensor]:
            return lambda: step(model, part, num_items_in_batch)

        def loss() -> Tensor:
            with self._no_backward() as losses:
                for part in kept:
                    step(model, part, num_items_in_batch)
            return torch.stack(losses).sum()

        bound = self.args.max_grad_norm
        return evaluate_together(
            _unwrapped(self.optimizer),
            [backward_of(part) for part in kept],
            loss=loss,
            no_sync=lambda: self.accelerator.no_sync(model),
            scaler=getattr(self.accelerator, "scaler", None),
            clip_grad_norm=bound if bound is not None and bound > 0 else None,
        ).to(self.args.device)

    @contextmanager
    def _no_backward(self) -> Iterator[list[Tensor]]:
        # How a loss is normalised differs between versions, and is settled where backward is called with it.
        losses: list[Tensor] = []
        self.accelerator.backward = lambda loss, **_: losses.append(loss)
        try:
            yield losses
        finally:
            del self.accelerator.backward


def _unwrapped(optimizer: Any) -> Any:
    while not isinstance(optimizer, SharpnessAware) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
