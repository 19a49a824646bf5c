"""The tracker as a callback of Hugging Face's ``Trainer``; importing this file needs ``transformers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hessprobe.errors import UnsupportedError
from hessprobe.tracking.board import scalars
from hessprobe.tracking.tracker import SharpnessTracker

if TYPE_CHECKING:
    # The library is untyped; what its class is to a type checker is an object.
    TrainerCallback = object
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise UnsupportedError(
            "This callback needs transformers, which is not installed. Run pip install 'hessprobe[tracking]'."
        ) from error


class SharpnessCallback(TrainerCallback):
    """Tracks the curvature of the model of a ``Trainer``; see ``SharpnessTracker``.

        trainer = Trainer(..., callbacks=[SharpnessCallback(batches, every=50, budget=0.05)])

    Every point goes to the trainer's ``state.log_history``. On several ranks the first one measures.

    Args:
        data: fixed batches, as for ``SharpnessTracker``: here dicts of what the model takes, with labels.
        loss: None takes the model's own.
        options: further arguments of ``SharpnessTracker``.

    Attributes:
        tracker: with its points; None before the training starts, and on all ranks but the first.

    Raises:
        TypeError, ValueError: (when training starts) an argument outside its range.
    """

    def __init__(self, data: Any, loss: Callable[[Any, Any], Any] | None = None, **options: Any) -> None:
        self.tracker: SharpnessTracker | None = None
        self._loss, self._data, self._options = loss, data, options
        self._lr: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Make the tracker."""
        if not state.is_world_process_zero or self.tracker is not None:
            return
        # Accelerate wraps the optimizer.
        optimizer = parts.get("optimizer")
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self.tracker = SharpnessTracker(parts["model"], self._loss, self._data, optimizer=optimizer, **self._options)
        self.tracker.pace.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Note the rate of the step, which the scheduler changes right after it."""
        optimizer = parts.get("optimizer")
        self._lr = None if optimizer is None else float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Measure where that is due."""
        if self.tracker is None:
            return
        point = self.tracker.step(int(state.global_step), lr=self._lr)
        if point is not None:
            state.log_history.append({**scalars(point), "epoch": state.epoch, "step": state.global_step})

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Close what the tracker opened."""
        if self.tracker is not None:
            self.tracker.close()
