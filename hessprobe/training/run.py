"""A run with its files: the checkpoint at the end, those on the way, and the one that a stopped run resumes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessprobe.errors import about
from hessprobe.training import checkpoint, models
from hessprobe.training.checkpoint import DataSpec
from hessprobe.training.datasets import DataSet, load_dataset, resolve_name
from hessprobe.training.datasets.base import Report
from hessprobe.training.loop import EpochReport, Trained, train
from hessprobe.training.recipe import Recipe
from hessprobe.training.state import Run, capture, changed_key, require_same_recipe

# Saving the state for a resume may take this share of the time at most: what a kill costs is a step, and the steps of
# so many times a saving (0.2 seconds where it takes 10 milliseconds).
_SAVING_SHARE = 0.05
# Seconds, while it is not known what one takes: a run that diverges at once leaves nothing.
_FIRST_COST = 0.01


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, and where it is written.

    Attributes:
        recipe: how.
        out: the checkpoint to write at the end. On the way the state of the run lies beside it, see ``resume_path``,
            and every ``save_every`` epochs a checkpoint, see ``epoch_path``.
        model_name, model_arguments: entry in the model zoo, with all of its arguments.
        data: as trained on.
        spec: the same, as the checkpoint tells it.
        save_every: epochs between two of them, >= 1; None writes none.
    """

    recipe: Recipe
    out: Path
    model_name: str
    model_arguments: dict[str, Any]
    data: DataSet
    spec: DataSpec
    save_every: int | None = None

    @property
    def resume_path(self) -> Path:
        """Where the state of the run lies until it is done: ``OUT`` with ``-resume`` before its ending."""
        return self.out.with_name(f"{self.out.stem}-resume{self.out.suffix}")

    def epoch_path(self, epoch: int) -> Path:
        """Where the checkpoint after ``epoch`` epochs lies: ``OUT`` with ``-epoch-0005`` before its ending."""
        return self.out.with_name(f"{self.out.stem}-epoch-{epoch:04d}{self.out.suffix}")


def make_plan(
    recipe: Recipe,
    out: str | Path,
    model_name: str,
    model_arguments: Mapping[str, Any],
    *,
    save_every: int | None = None,
    report: Report | None = None,
) -> Plan:
    """Load the data of a recipe and complete the model's arguments from them.

    Args:
        recipe: names the data, and what is done to them.
        out: the checkpoint to write.
        model_name: a name in the model zoo.
        model_arguments: those that differ from what the data and the defaults imply.
        save_every: see ``Plan``.
        report: told how far decoding is.

    Raises:
        ValueError: unknown model, argument or data, or a model that does not take such data.
        DataError: data that are missing or cannot be read.
    """
    if not recipe.data:
        raise ValueError("data must be given for this recipe; got none. Pass for example image-folder:PATH.")
    entry_arguments = dict(model_arguments)
    context = entry_arguments.get("context")
    data = load_dataset(
        recipe.data,
        context=context,
        part=recipe.subset,
        label_noise=recipe.label_noise,
        seed=recipe.data_seed,
        report=report,
    )
    complete = models.complete_arguments(model_name, entry_arguments, data.implied_arguments)
    layout = models.REGISTRY[model_name].layout
    data.require_layout(layout)
    spec = DataSpec(
        resolve_name(recipe.data), layout, data.sha256, recipe.subset, recipe.label_noise, recipe.data_seed, context
    )
    return Plan(recipe, Path(out), model_name, complete, data, spec, save_every)


def train_to_file(
    plan: Plan,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    report: Callable[[EpochReport], None] | None = None,
    tick: Callable[[float], None] | None = None,
) -> Trained:
    """Train and write the checkpoint; a run that was stopped, even killed, continues bit for bit with ``resume``.

    Args:
        plan: what, how and where.
        device: where to train.
        resume: continue from ``plan.resume_path`` where it is there, else begin.
        report: called after every epoch.
        tick: called now and then with the number of epochs done.

    Raises:
        ValueError: the stopped run had another recipe; names the key that differs.
        CheckpointError: its file is damaged or does not fit.
        NonFiniteError: the loss became nan or infinite; nothing is written then.
    """
    state = read_state(plan) if resume else None
    model = models.build_model(plan.model_name, plan.model_arguments, plan.recipe.seed)
    saver = _Saver(plan)
    trained = train(
        model,
        plan.data,
        plan.recipe,
        layout=plan.spec.layout,
        device=device,
        report=report,
        tick=tick,
        state=state,
        after_epoch=saver.after_epoch,
        after_step=saver.save_now_and_then,
    )
    _write(plan, plan.out, trained.model, trained.optimizer, trained.metrics)
    plan.resume_path.unlink(missing_ok=True)
    return trained


def read_state(plan: Plan) -> dict[str, Any] | None:
    """Return the state of the stopped run of ``plan``, or None where there is none.

    Raises:
        ValueError, CheckpointError: see ``train_to_file``.
    """
    path = plan.resume_path
    if not path.exists():
        return None
    stopped = checkpoint.load_checkpoint(path)
    require_same_run(plan, stopped)
    return {
        **stopped.progress,
        "weights": stopped.model.state_dict(),
        "optimizer": stopped.optimizer["state"],
    }


def require_same_run(plan: Plan, found: checkpoint.Checkpoint) -> None:
    """Refuse a checkpoint that another recipe, model or data made.

    Raises:
        ValueError: names the key that differs, with both values.
    """
    require_same_recipe(plan.recipe, found.recipe, found.path)
    other = _changed_beside_recipe(plan, found)
    if other is not None:
        name, before, now = other
        raise ValueError(
            about(
                name,
                f"must be {before!r}, as in the run that {found.path} holds; got {now!r}. "
                "Give the same model and data, or begin anew without --resume.",
            )
        )


def changed_from(plan: Plan, found: checkpoint.Checkpoint) -> tuple[str, Any, Any] | None:
    """Return what first tells the run of a checkpoint from ``plan``, as it was there and is here; None if nothing."""
    return changed_key(plan.recipe, found.recipe) or _changed_beside_recipe(plan, found)


def _changed_beside_recipe(plan: Plan, found: checkpoint.Checkpoint) -> tuple[str, Any, Any] | None:
    pairs = {
        "arguments of the model": (found.model_arguments, plan.model_arguments),
        "hash of the data": (found.data.sha256, plan.spec.sha256),
    }
    return next(((name, before, now) for name, (before, now) in pairs.items() if before != now), None)


class _Saver:
    """Writes the files of a run between its steps."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._since = time.perf_counter()
        self._cost: float | None = None

    def after_epoch(self, run: Run) -> None:
        """Write the checkpoint on the way where it is due, and the state."""
        plan = self._plan
        if plan.save_every is not None and run.epoch % plan.save_every == 0:
            _write(plan, plan.epoch_path(run.epoch), run.model, run.optimizer, run.metrics(final=True))
        if 0 < run.epoch < plan.recipe.epochs:
            self.save_now_and_then(run, first=self._cost is None)

    def save_now_and_then(self, run: Run, *, first: bool = False) -> None:
        """Write the state where that costs a small share of the time since it was written last, or it is the first."""
        plan, waited = self._plan, time.perf_counter() - self._since
        if first or waited * _SAVING_SHARE > (_FIRST_COST if self._cost is None else self._cost):
            started = time.perf_counter()
            state = capture(run)
            _write(plan, plan.resume_path, run.model, run.optimizer, run.metrics(final=False), state)
            self._since = time.perf_counter()
            self._cost = self._since - started


def _write(
    plan: Plan,
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metrics: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> None:
    checkpoint.save_checkpoint(
        path,
        model=model,
        model_name=plan.model_name,
        model_arguments=plan.model_arguments,
        data=plan.spec,
        recipe=plan.recipe,
        optimizer=optimizer,
        metrics=metrics,
        progress=state,
    )
