"""Which closures a training step hands to the optimizer: the one place that knows what each kind returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.optim.engine import SharpnessAware
from hessprobe.training.evaluation import Loss, count_hits, losses_by_example

Shard = tuple[Tensor, Tensor]


@dataclass
class Tally:
    """Sums over the steps of an epoch, kept on the device so that no step waits for it.

    Attributes:
        loss: sum of the loss over examples, of the steps whose loss is finite.
        hits: number of labels predicted.
        examples: number of examples in those steps.
    """

    loss: Tensor
    hits: Tensor
    examples: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Tally:
        """Return an empty one."""
        precise = torch.float32 if device.type == "mps" else torch.float64
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return cls(torch.zeros((), dtype=precise, device=device), zero, zero.clone())

    def add_loss(self, mean: Tensor, n: int) -> None:
        """Add the mean loss of a step of ``n`` examples."""
        finite = torch.isfinite(mean)
        self.loss += torch.where(finite, mean.to(self.loss.dtype) * n, 0.0)
        self.examples += finite * n


@dataclass
class StepClosures:
    """The closures of one step.

    The first run over each shard, at the clean weights for nearly every rule, counts its hits.

    Attributes:
        model: in training mode.
        loss: mean over a batch.
        shards: parts of the batch, as the model takes them.
        tally: told the hits.
        amp: floating type of autocast, or None.
        scaler: the ``GradScaler``, or None.
        in_parts: whether the optimizer is given a list even of one closure, as for a short last batch.
    """

    model: nn.Module
    loss: Loss
    shards: Sequence[Shard]
    tally: Tally
    amp: torch.dtype | None = None
    scaler: Any = None
    in_parts: bool = False
    _counted: set[int] = field(default_factory=set)

    @property
    def sizes(self) -> list[int]:
        """Number of examples in each shard."""
        return [len(labels) for _, labels in self.shards]

    @property
    def shares(self) -> list[float]:
        """Weight of each shard: its part of the examples."""
        total = sum(self.sizes)
        return [size / total for size in self.sizes]

    def for_optimizer(self, optimizer: SharpnessAware) -> dict[str, Any]:
        """Return the arguments of ``optimizer.step``, after the kind of closure that its rule wants."""
        make = {"backward": self._backward, "per-sample": self._per_sample, "outputs": self._outputs}
        closures = [make[optimizer.closure_kind](index) for index in range(len(self.shards))]
        arguments: dict[str, Any] = {"closure": closures if self.in_parts else closures[0]}
        if self.in_parts:
            arguments["weights"] = self.shares
        if optimizer.needs_loss or len(closures) == 1:
            # Over several shards this loss is that of the whole batch at once, so only rules that need it get it.
            arguments["loss"] = self._whole_loss
        return arguments

    def backward(self) -> Tensor:
        """Add the gradient of the mean loss over all shards to ``.grad`` and return that loss."""
        total = None
        for index, share in enumerate(self.shares):
            value = self._forward(index)[1]
            part = value if len(self.shards) == 1 else value * share
            torch.autograd.backward(part if self.scaler is None else self.scaler.scale(part))
            total = part.detach() if total is None else total + part.detach()
        if total is None:
            raise ValueError("shards must hold at least one part; got none.")
        return total

    def _backward(self, index: int) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            self.model.zero_grad()
            value = self._forward(index)[1]
            torch.autograd.backward(value if self.scaler is None else self.scaler.scale(value))
            return value

        return closure

    def _per_sample(self, index: int) -> Callable[[Tensor | None], Tensor]:
        inputs, labels = self.shards[index]

        def closure(subset: Tensor | None = None) -> Tensor:
            if subset is None:
                outputs = self._forward(index)[0]
                return losses_by_example(outputs, labels)
            with self._autocast():
                outputs = self.model(inputs[subset])
            return losses_by_example(outputs, labels[subset])

        return closure

    def _outputs(self, index: int) -> Callable[[], tuple[Tensor, Tensor]]:
        return lambda: self._forward(index)

    def _whole_loss(self) -> Tensor:
        parts = [self._forward(index)[1] * share for index, share in enumerate(self.shares)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def _forward(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, labels = self.shards[index]
        with self._autocast():
            outputs = self.model(inputs)
            value = self.loss(outputs, labels)
        if index not in self._counted:
            self._counted.add(index)
            self.tally.hits += count_hits(outputs.detach(), labels)
        return outputs, value

    def _autocast(self) -> torch.autocast:
        device = self.shards[0][1].device.type
        return torch.autocast(device, dtype=self.amp, enabled=self.amp is not None)
