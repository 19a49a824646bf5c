"""A run under way, and what a later process needs to continue it bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.errors import CheckpointError, about
from hessprobe.training.closures import Tally
from hessprobe.training.evaluation import Examples, Loss, assess
from hessprobe.training.recipe import Recipe

# Where the data are and what they are called may change; their content may not, and that is compared by its hash.
_FREE = ("data",)


@dataclass
class Run:
    """A run under way: everything that the next step depends on.

    Attributes:
        model, optimizer: in their present state.
        recipe: of the run.
        train, test: the examples, on the device.
        loss: mean over a batch.
        scaler: for fp16, else None.
        order, moves: generators of the order of the examples and of crops and mirror images.
        epoch: epochs done.
        curve: one report an epoch.
        seconds: spent so far.
        step: steps done of the epoch under way.
        tally: over these steps.
        drawn: states of ``order`` and ``moves`` before the draws of that epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    train: Examples
    test: Examples
    loss: Loss
    scaler: Any
    order: torch.Generator
    moves: torch.Generator
    epoch: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    tally: Tally | None = None
    drawn: tuple[Tensor, Tensor] | None = None
    _since: float | None = field(default=None, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.train.labels.device

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.train) / self.recipe.batch_size)

    def count_time(self, going_on: bool) -> None:
        """Add the time since the last call to ``seconds``, where that one was told that work is ``going_on``."""
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if going_on else None

    def metrics(self, final: bool) -> dict[str, Any]:
        """Return what is known: with ``final`` the present weights are evaluated on both splits."""
        known: dict[str, Any] = {"epochs": self.epoch, "steps": self.epoch * self.steps_per_epoch + self.step}
        for name, examples in (("train", self.train), ("test", self.test)) if final else ():
            if len(examples):
                known |= assess(self.model, examples, self.loss, name)
        history = [each["train_loss"] for each in self.curve]
        return {**known, "loss_history": history, "curve": list(self.curve), "seconds": self.seconds}


def capture(run: Run) -> dict[str, Any]:
    """Return the state of ``run``, as tensors and plain values: generators, scaler, epochs and steps done, curve.

    Weights and optimizer state are apart, in the checkpoint that this goes into. In the middle of an epoch, the
    generators are those that drew its order, which is drawn again.
    """
    cuda = run.device.type == "cuda"
    order, moves = run.drawn or (run.order.get_state(), run.moves.get_state())
    return {
        "epoch": run.epoch,
        "seconds": run.seconds,
        "curve": list(run.curve),
        "step": run.step,
        "tally": None if run.tally is None else {name: value.clone() for name, value in vars(run.tally).items()},
        "order": order,
        "moves": moves,
        "threads": torch.get_num_threads(),
        "device": run.device.type,
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(run.device) if cuda else None,
        "scaler": None if run.scaler is None else run.scaler.state_dict(),
    }


def restore(run: Run, state: Mapping[str, Any]) -> None:
    """Put ``run`` in the state that ``capture`` found, with ``weights`` and ``optimizer`` beside it.

    Raises:
        CheckpointError: it ran on a device of another kind, or something is missing.
    """
    if state.get("device") != run.device.type:
        raise CheckpointError(
            f"The run to resume was on {state.get('device')}, this one is on {run.device.type}, whose numbers differ. "
            f"Pass --device {state.get('device')}, or begin anew without --resume."
        )
    try:
        run.model.load_state_dict(state["weights"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.order.set_state(state["order"])
        run.moves.set_state(state["moves"])
        if run.scaler is not None:
            run.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], run.device)
        run.epoch, run.seconds, run.curve = int(state["epoch"]), float(state["seconds"]), list(state["curve"])
        run.step, tally = int(state.get("step", 0)), state.get("tally")
        if tally is not None:
            run.tally = Tally(**{name: value.to(run.device) for name, value in tally.items()})
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"The run to resume holds a state that does not fit: {error} Begin anew without --resume."
        ) from error


def changed_key(recipe: Recipe, recorded: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first key in which a run had another recipe, what it was then and is now; None where none differs.

    Args:
        recipe: the one asked for.
        recorded: ``Recipe.as_dict()`` of the run; keys that it lacks had their default.
    """
    default = Recipe().as_dict()
    for key, value in recipe.as_dict().items():
        before = recorded.get(key, default[key])
        if key not in _FREE and before != value:
            return key, before, value
    return None


def require_same_recipe(recipe: Recipe, recorded: Mapping[str, Any], where: str) -> None:
    """Refuse to continue a run under another recipe.

    Args:
        recipe: the one asked for.
        recorded: ``Recipe.as_dict()`` of the run; keys that it lacks had their default.
        where: the file that holds it.

    Raises:
        ValueError: names the first key that differs, with both values.
    """
    found = changed_key(recipe, recorded)
    if found is not None:
        key, before, value = found
        raise ValueError(
            about(
                key,
                f"must be {before!r}, as in the run that {where} holds; got {value!r}. "
                "Give the same recipe, or begin anew without --resume.",
            )
        )
