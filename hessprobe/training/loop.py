"""The training loop.

Random crops and mirror images of a batch, on its device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hessprobe.errors import NonFiniteError, UnsupportedError, about
from hessprobe.hvp import pool
from hessprobe.objective.base import make_loss
from hessprobe.optim.engine import SharpnessAware
from hessprobe.training import models, sharing
from hessprobe.training.building import build_optimizer, set_lr
from hessprobe.training.closures import StepClosures, Tally
from hessprobe.training.datasets import DataSet
from hessprobe.training.evaluation import Examples, assess
from hessprobe.training.recipe import Recipe, lr_factor
from hessprobe.training.state import Run, restore


@dataclass(frozen=True)
class Augmentation:
    """Shifts of up to ``crop`` pixels, black coming in, and mirror images, drawn anew for every epoch.

    Drawn on the CPU for all examples of an epoch at once, so that the device does not change them.

    Attributes:
        crop: padding in pixels, >= 0.
        flip: whether to mirror half of the images.
    """

    crop: int
    flip: bool

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.crop > 0 or self.flip

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Return (n, 3) integers: vertical and horizontal offset in 0 .. 2 crop, and 1 for mirrored."""
        offsets = torch.randint(0, 2 * self.crop + 1, (n, 2), generator=generator)
        mirrored = torch.randint(0, 1 + self.flip, (n, 1), generator=generator)
        return torch.cat([offsets, mirrored], dim=1).to(device)

    def apply(self, images: Tensor, moves: Tensor) -> Tensor:
        """Return images (B, C, h, w) shifted and mirrored by the rows (B, 3) of ``draw``; shape and type stay."""
        height, width = images.shape[2:]
        padded = functional.pad(images, (self.crop,) * 4)
        rows = moves[:, :1] + torch.arange(height, device=images.device)
        along = torch.arange(width, device=images.device)
        along = torch.where(moves[:, 2:] == 1, width - 1 - along, along)
        columns = moves[:, 1:2] + along
        picked = torch.arange(len(images), device=images.device)[:, None, None]
        # Indexing around a slice puts the indexed dimensions first: (B, h, w, C).
        return padded[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


_AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_TICK_SECONDS = 0.2


@dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch.

    Attributes:
        epoch, epochs: how many are done, of how many.
        train_loss, train_accuracy: over the steps of this epoch, each before its update.
        test_loss, test_accuracy: after it; None where nothing is held out.
        lr: of its last step.
        rho: of its last step, or None.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_accuracy: float = math.nan
    test_loss: float | None = None
    test_accuracy: float | None = None
    lr: float | None = None
    rho: float | None = None


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
        model: trained, in evaluation mode, on the device of the run.
        optimizer: in its last state.
        metrics: train/test loss and accuracy of the final weights, loss history, curve, steps and seconds.
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
    tick: Callable[[float], None] | None = None,
    state: Mapping[str, Any] | None = None,
    after_epoch: Callable[[Run], None] | None = None,
    after_step: Callable[[Run], None] | None = None,
) -> Trained:
    """Train ``model`` in place and measure it on both splits; no global generator is touched.

    Args:
        model: any classifier; it is moved to ``device``.
        data: batches are drawn from its training split in an order fixed by the recipe's seed.
        recipe: optimizer, lengths, rates, seed; the model, data, subset and label noise it names are the caller's.
        layout: how the model wants its inputs, see ``DataSet.split``.
        device: where to train.
        report: called after every epoch.
        tick: called now and then with the number of epochs done, a fraction.
        state: of ``hessprobe.training.state.capture``: continue from there, bit for bit, instead of beginning.
        after_epoch: called before the first epoch of a new run and after every epoch, e.g. to save.
        after_step: called after every step of an epoch but the last, e.g. to save.

    Raises:
        NonFiniteError: the loss became nan or infinite; the message names epoch and step.
        UnsupportedError: the device lacks the recipe's floating type.
    """
    place = torch.device(device)
    run = _begin(model, data, recipe, layout, place)
    with models.seeded(recipe.seed, place), _deterministic(place):
        if state is not None:
            restore(run, state)
        elif after_epoch is not None:
            # A checkpoint names the rate of the step that follows it.
            set_lr(run.optimizer, _lr(run, 0))
            after_epoch(run)
        for _ in range(run.epoch, recipe.epochs):
            run.count_time(going_on=True)
            outcome = _epoch(run, tick, after_step)
            run.count_time(going_on=False)
            if report is not None:
                report(outcome)
            if after_epoch is not None:
                after_epoch(run)
    started = time.perf_counter()
    metrics = run.metrics(final=True)
    for split in ("train", "test"):
        _require_finite(metrics.get(f"{split}_loss", 0.0), f"on the {split} split after the last step", recipe)
    metrics["seconds"] += time.perf_counter() - started
    return Trained(model.eval(), run.optimizer, metrics)


def _begin(model: nn.Module, data: DataSet, recipe: Recipe, layout: str, device: torch.device) -> Run:
    train, test = (Examples.of(data, split, layout, device) for split in ("train", "test"))
    if (recipe.crop or recipe.flip) and layout == "tokens":
        raise ValueError(f"crop and flip must be left out for text; got crop={recipe.crop}, flip={recipe.flip}.")
    model.to(device).train()
    steps = recipe.epochs * math.ceil(len(train) / recipe.batch_size)
    optimizer = build_optimizer(recipe, model, steps, len(train))
    _require_divisible(recipe, optimizer)
    return Run(
        model=model,
        optimizer=optimizer,
        recipe=recipe,
        train=train,
        test=test,
        loss=make_loss(recipe.loss, layout),
        scaler=_scaler(recipe, device),
        order=torch.Generator().manual_seed(recipe.seed),
        moves=torch.Generator().manual_seed(recipe.seed + 1),
    )


def _require_divisible(recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
    if recipe.accumulate == 1:
        return
    kind, shards = getattr(optimizer, "closure_kind", "backward"), getattr(optimizer, "shards", 1)
    if kind != "backward":
        raise ValueError(
            about(
                "accumulate",
                f"must be 1 for {recipe.optimizer}, which needs the whole batch at once; got "
                f"{recipe.accumulate}. Leave it out, with a smaller batch_size where memory is short.",
            )
        )
    if shards not in (1, recipe.accumulate):
        raise ValueError(
            about(
                "accumulate",
                f"must be 1 or {shards}, the shards of {recipe.optimizer}; got {recipe.accumulate}. Leave it out.",
            )
        )


def _epoch(run: Run, tick: Callable[[float], None] | None, after_step: Callable[[Run], None] | None) -> EpochReport:
    recipe, total = run.recipe, run.steps_per_epoch
    augmentation = Augmentation(recipe.crop, recipe.flip)
    run.drawn = run.order.get_state(), run.moves.get_state()
    rows = torch.randperm(len(run.train), generator=run.order).to(run.device)
    moves = augmentation.draw(len(rows), run.moves, run.device) if augmentation.active else None
    tally, last_tick = run.tally or Tally.on(run.device), time.perf_counter()
    run.tally = tally
    parts = torch.split(rows, recipe.batch_size)
    for step in range(run.step, total):
        row = parts[step]
        set_lr(run.optimizer, _lr(run, run.epoch * total + step))
        inputs = run.train.inputs[row]
        if moves is not None:
            begin = step * recipe.batch_size
            inputs = augmentation.apply(inputs, moves[begin : begin + len(row)])
        inputs = run.train.data.prepare(inputs, run.train.layout)
        value = _step(run, inputs, run.train.labels[row], tally, step)
        tally.add_loss(value, len(row))
        if tick is not None and time.perf_counter() - last_tick > _TICK_SECONDS:
            last_tick = time.perf_counter()
            tick(run.epoch + (step + 1) / total)
        run.step = step + 1
        if after_step is not None and run.step < total:
            run.count_time(going_on=False)
            after_step(run)
            run.count_time(going_on=True)
    return _close_epoch(run, tally)


def _step(run: Run, inputs: Tensor, labels: Tensor, tally: Tally, step: int) -> Tensor:
    recipe, optimizer = run.recipe, run.optimizer
    parts = max(recipe.accumulate, getattr(optimizer, "shards", 1))
    count = min(parts, len(labels))
    shards = list(zip(inputs.tensor_split(count), labels.tensor_split(count), strict=True))
    ranks = pool.current()
    if ranks is not None:
        ranks.note(step, sharing.parts(ranks, len(labels)))
    closures = StepClosures(run.model, run.loss, shards, tally, _AMP[recipe.amp], run.scaler, parts > 1, ranks)
    if isinstance(optimizer, SharpnessAware):
        value = _sharpness_aware_step(run, optimizer, closures, step)
    else:
        optimizer.zero_grad()
        value = closures.backward()
        # On a CPU the value is there already; a GPU would be waited for, and is asked once an epoch.
        if run.scaler is None and value.device.type == "cpu":
            _require_finite(value.item(), _where(run, step), recipe)
        _plain_step(run, optimizer)
    return value


def _sharpness_aware_step(run: Run, optimizer: SharpnessAware, closures: StepClosures, step: int) -> Tensor:
    arguments = closures.for_optimizer(optimizer)
    try:
        value = optimizer.step(**arguments, scaler=run.scaler, clip_grad_norm=run.recipe.clip_grad_norm)
    except NonFiniteError as error:
        raise NonFiniteError(f"The training failed {_where(run, step)}: {error}") from error
    if run.scaler is not None:
        run.scaler.update()
    if value is None:
        raise ValueError("closure must return the loss; got None.")
    return value.detach()


def _plain_step(run: Run, optimizer: torch.optim.Optimizer) -> None:
    if run.scaler is not None:
        run.scaler.unscale_(optimizer)
    if run.recipe.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.clip_grad_norm)
    if run.scaler is None:
        optimizer.step()
    else:
        run.scaler.step(optimizer)
        run.scaler.update()


def _close_epoch(run: Run, tally: Tally) -> EpochReport:
    recipe = run.recipe
    seen = int(tally.examples)
    # Under a scaler steps whose gradient overflows are skipped and forgotten; elsewhere one is enough to stop.
    if not seen or (run.scaler is None and seen < len(run.train)):
        _require_finite(math.nan, f"in epoch {run.epoch + 1}", recipe)
    run.epoch += 1
    run.step, run.tally, run.drawn = 0, None, None
    set_lr(run.optimizer, _lr(run, run.epoch * run.steps_per_epoch))
    held_out = assess(run.model, run.test, run.loss, "test") if len(run.test) else {}
    group = run.optimizer.param_groups[0]
    outcome = EpochReport(
        epoch=run.epoch,
        epochs=recipe.epochs,
        train_loss=float(tally.loss) / seen,
        train_accuracy=int(tally.hits) / run.train.labels.numel(),
        test_loss=held_out.get("test_loss"),
        test_accuracy=held_out.get("test_accuracy"),
        lr=_lr(run, run.epoch * run.steps_per_epoch - 1),
        rho=float(group["rho"]) if recipe.sharpness_aware and "rho" in group else None,
    )
    row = {key: value for key, value in vars(outcome).items() if key != "epochs" and value is not None}
    run.curve.append(row)
    return outcome


def _lr(run: Run, step: int) -> float:
    recipe, per_epoch = run.recipe, run.steps_per_epoch
    factor = lr_factor(
        recipe.schedule,
        step,
        recipe.epochs * per_epoch,
        warmup=round(recipe.warmup * per_epoch),
        milestones=recipe.milestones,
        gamma=recipe.gamma,
    )
    return float(recipe.lr or 0.0) * factor


def _where(run: Run, step: int) -> str:
    return f"in epoch {run.epoch + 1}, step {step + 1}"


def _require_finite(loss: float, where: str, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"The training loss became {loss} {where}, with lr {recipe.lr:g}. "
            "Train with a smaller learning rate; what was saved before is as it was."
        )


def _scaler(recipe: Recipe, device: torch.device) -> Any:
    if recipe.amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UnsupportedError(about("amp", f"must be off or fp16 on {device}, which has no bfloat16; got 'bf16'."))
    if recipe.amp != "fp16":
        return None
    if device.type not in ("cuda", "cpu"):
        raise UnsupportedError(
            about("amp", f"must be off or bf16 on {device}, for which torch scales no gradients; got 'fp16'.")
        )
    return torch.amp.GradScaler(device.type)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    # A CPU sums in a fixed order; on CUDA the kernels that do not must be told to.
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
