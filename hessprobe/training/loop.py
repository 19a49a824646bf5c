"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.errors import NonFiniteError
from hessprobe.training import models
from hessprobe.training.datasets import DataSet, batches
from hessprobe.training.losses import Loss, make_loss
from hessprobe.training.recipe import Recipe

_EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch: how many are done of how many, and the mean training loss of this one."""

    epoch: int
    epochs: int
    train_loss: float


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
        model: trained, in evaluation mode, on the device of the run.
        optimizer: in its last state.
        metrics: train/test loss and accuracy of the final weights, loss history, steps and seconds.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    metrics: dict[str, Any]


def train(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    *,
    layout: str = "vector",
    device: torch.device | str = "cpu",
    report: Callable[[EpochReport], None] | None = None,
) -> Trained:
    """Train ``model`` in place and measure it on both splits; no global generator is touched.

    Args:
        model: any classifier; it is moved to ``device``.
        data: batches are drawn from its training split in an order fixed by the recipe's seed.
        recipe: optimizer, lengths, rates, seed.
        layout: how the model wants its inputs, see ``DataSet.split``.
        device: where to train.
        report: called after every epoch.

    Raises:
        NonFiniteError: the loss became nan or infinite; the message names epoch and step.
    """
    place, started = torch.device(device), time.perf_counter()
    inputs, labels = (part.to(place) for part in data.split("train", layout))
    model.to(place).train()
    optimizer, loss = recipe.make_optimizer(model.parameters()), make_loss(recipe.loss)
    schedule = _schedule(optimizer, recipe, steps=recipe.epochs * math.ceil(len(labels) / recipe.batch_size))
    order, history = torch.Generator().manual_seed(recipe.seed), []
    with models.seeded(recipe.seed, place):
        for epoch in range(1, recipe.epochs + 1):
            rows = torch.randperm(len(labels), generator=order).to(place)
            total = 0.0
            for step, row in enumerate(torch.split(rows, recipe.batch_size), start=1):
                value = _step(model, optimizer, loss, inputs[row], labels[row])
                _require_finite(value, f"in epoch {epoch}, step {step}", recipe)
                schedule.step()
                total += value * len(row)
            history.append(total / len(labels))
            if report is not None:
                report(EpochReport(epoch, recipe.epochs, history[-1]))
    metrics = _final_metrics(model.eval(), data, layout, loss, recipe)
    return Trained(model, optimizer, {**metrics, "loss_history": history, "seconds": time.perf_counter() - started})


def _final_metrics(model: nn.Module, data: DataSet, layout: str, loss: Loss, recipe: Recipe) -> dict[str, Any]:
    metrics: dict[str, Any] = {"epochs": recipe.epochs}
    for split in ("train", "test"):
        parts = data.split(split, layout)
        metrics[f"{split}_loss"], metrics[f"{split}_accuracy"] = evaluate(model, *parts, loss)
        _require_finite(metrics[f"{split}_loss"], f"on the {split} split after the last step", recipe)
    return metrics


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss) -> tuple[float, float]:
    """Return mean loss and accuracy of ``model``, as it stands, over examples (n, ...) and labels (n,)."""
    device = next(model.parameters()).device
    total, hits = 0.0, 0
    with torch.no_grad():
        for x, y in batches(inputs, labels, _EVALUATION_BATCH):
            logits = model(x.to(device))
            total += float(loss(logits, y.to(device))) * len(y)
            hits += int((logits.argmax(-1) == y.to(device)).sum())
    return total / len(labels), hits / len(labels)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, inputs: Tensor, labels: Tensor) -> float:
    optimizer.zero_grad()
    value = loss(model(inputs), labels)
    torch.autograd.backward(value)
    optimizer.step()
    return value.item()


def _require_finite(loss: float, where: str, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"The training loss became {loss} {where}, with lr {recipe.lr:g}. "
            "Train with a smaller learning rate; nothing was saved."
        )


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    def factor(step: int) -> float:
        return 1.0 if recipe.schedule == "constant" or not steps else 0.5 * (1 + math.cos(math.pi * step / steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
