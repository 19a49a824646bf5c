"""The tracker as a callback of Hugging Face's ``Trainer``; importing this file needs ``transformers``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hessprobe import files
from hessprobe.errors import UnsupportedError
from hessprobe.tracking.tensorboard import scalars
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

    Every point goes to the trainer's ``state.log_history``. On several ranks the first one measures. Each checkpoint
    folder of the trainer gets a file ``hessprobe-tracker.pt``, from which ``train(resume_from_checkpoint=...)`` goes
    on: it is looked for in the folder named in the trainer's arguments, then in ``output_dir``, for the trainer does
    not tell a callback what its method was given.

    Args:
        data: fixed batches, as for ``SharpnessTracker``: here dicts of what the model takes, with labels.
        loss: None takes the model's own.
        resume: the checkpoint folder to go on from, where it is neither of the two above.
        name: tells callbacks of one trainer apart in a checkpoint: part of the name of the file.
        vectors: whether the file holds the vectors that the next point begins from, see ``state_dict``.
        options: further arguments of ``SharpnessTracker``.

    Attributes:
        tracker: with its points; None before the training starts, and on all ranks but the first.

    Raises:
        TypeError, ValueError: (when training starts) an argument outside its range, or a state that does not fit.

    Warns:
        UserWarning: (when training is resumed) there is no such file; the tracker begins without points.
    """

    # ``ExportableState`` is not used: it is off by default, must fit in JSON, and makes callbacks anew without data.

    def __init__(
        self,
        data: Any,
        loss: Callable[[Any, Any], Any] | None = None,
        *,
        resume: str | Path | None = None,
        name: str = "",
        vectors: bool = True,
        **options: Any,
    ) -> None:
        self.tracker: SharpnessTracker | None = None
        self._loss, self._data, self._options = loss, data, options
        self._resume, self._vectors = resume, vectors
        self._file = f"hessprobe-tracker{'-' if name else ''}{name}.pt"
        self._lr: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Create the tracker, again where the training is resumed, as the model may be a different one."""
        resumed = state.global_step > 0
        if not state.is_world_process_zero or (self.tracker is not None and not resumed):
            return
        # Accelerate wraps the optimizer.
        optimizer = parts.get("optimizer")
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self.tracker = SharpnessTracker(parts["model"], self._loss, self._data, optimizer=optimizer, **self._options)
        if resumed:
            self._restore(self.tracker, args, state)
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

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Write the tracker's state into the checkpoint that was just written."""
        folder = _checkpoint(args, state)
        if self.tracker is not None and folder.is_dir():
            content = self.tracker.state_dict(vectors=self._vectors)
            files.write_atomically(folder / self._file, lambda file: torch.save(content, file))

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Close what the tracker opened."""
        if self.tracker is not None:
            self.tracker.close()

    def _restore(self, tracker: SharpnessTracker, args: Any, state: Any) -> None:
        named = (self._resume, args.resume_from_checkpoint)
        places = [*(Path(each) for each in named if isinstance(each, (str, Path))), _checkpoint(args, state)]
        found = next((place / self._file for place in places if (place / self._file).is_file()), None)
        if found is None:
            warnings.warn(
                f"{self._file} is not in {', '.join(map(str, places))}: the tracker begins anew at step "
                f"{state.global_step}. Name the folder in resume=.",
                stacklevel=2,
            )
            return
        tracker.load_state_dict(torch.load(found, map_location="cpu", weights_only=True))


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
