"""Which closures a training step hands to the optimizer: the one place that knows what each kind returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.hvp.pool import Ranks
from hessprobe.optim.engine import SharpnessAware
from hessprobe.training import sharing
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
        ranks: that share the passes out which only add to ``.grad``; the others, whose outputs or graph a rule takes
            further, are made whole by each. None where this process is alone.
    """

    model: nn.Module
    loss: Loss
    shards: Sequence[Shard]
    tally: Tally
    amp: torch.dtype | None = None
    scaler: Any = None
    in_parts: bool = False
    ranks: Ranks | None = None
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
        if not self.shards:
            raise ValueError("shards must hold at least one part; got none.")
        return self._gradient(range(len(self.shards)), self.shares)

    def _backward(self, index: int) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            self.model.zero_grad()
            return self._gradient([index], [1.0])

        return closure

    def _gradient(self, indices: Sequence[int], shares: Sequence[float]) -> Tensor:
        """Add the gradient of a weighted sum of the shards' losses to ``.grad``, and return that sum."""
        ranks = self.ranks
        if ranks is None or min(self.sizes) < ranks.count:
            total = sum_of(self._pulled(self._forward(i)[1], share) for i, share in zip(indices, shares, strict=True))
            return total
        losses, hits, unseen = [], torch.zeros_like(self.tally.hits), set(indices) - self._counted
        with sharing.SharedStatistics(ranks):
            for index, share in zip(indices, shares, strict=True):
                inputs, labels, own = sharing.part_of(ranks, *self.shards[index])
                outputs, value = self._evaluated(inputs, labels)
                losses.append(self._pulled(value, share * own))
                hits += count_hits(outputs.detach(), labels) * (index in unseen)
        total, counted = sharing.summed(ranks, self.model, [sum_of(losses), hits])
        self._counted |= unseen
        self.tally.hits += counted
        return total

    def _pulled(self, value: Tensor, share: float) -> Tensor:
        part = value if share == 1 else value * share
        torch.autograd.backward(part if self.scaler is None else self.scaler.scale(part))
        return part.detach()

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
        outputs, value = self._evaluated(inputs, labels)
        if index not in self._counted:
            self._counted.add(index)
            self.tally.hits += count_hits(outputs.detach(), labels)
        return outputs, value

    def _evaluated(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with self._autocast():
            outputs = self.model(inputs)
            return outputs, self.loss(outputs, labels)

    def _autocast(self) -> torch.autocast:
        device = self.shards[0][1].device.type
        return torch.autocast(device, dtype=self.amp, enabled=self.amp is not None)


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars, of which there is at least one, in order."""
    return functools.reduce(torch.add, parts)
