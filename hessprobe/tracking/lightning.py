"""The tracker as a callback of PyTorch Lightning; importing this file needs ``pytorch_lightning`` or ``lightning``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

from hessprobe.errors import UnsupportedError
from hessprobe.tracking.tensorboard import scalars
from hessprobe.tracking.tracker import SharpnessTracker

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:

    def _callback() -> type:
        # The two packages have a Callback each; the one whose Trainer is in use has been imported before.
        names = ("lightning.pytorch", "pytorch_lightning")
        for name in sorted(names, key=lambda each: each not in sys.modules):
            try:
                return import_module(name).Callback
            except ImportError:
                continue
        raise UnsupportedError(
            "This callback needs PyTorch Lightning, which is not installed. Run pip install 'hessprobe[tracking]'."
        )

    Callback = _callback()


class SharpnessCallback(Callback):
    """Tracks the curvature of a ``LightningModule``; see ``SharpnessTracker``.

        trainer = Trainer(callbacks=[SharpnessCallback(nn.CrossEntropyLoss(), batches, every=50, budget=0.05)])

    Every point goes to the trainer's loggers. Learning rate and threshold are those of the first optimizer. On several
    ranks the first one measures. Lightning's checkpoints hold its state, and ``fit(ckpt_path=...)`` goes on from there.

    Args:
        loss: as for ``EmpiricalRisk``.
        data: fixed batches, as for ``SharpnessTracker``.
        part: dotted name of the submodule to measure, for a module whose own ``forward`` is not the network; the module
            itself by default.
        name: tells callbacks on the same ``part`` of one trainer apart in a checkpoint.
        vectors: whether checkpoints hold the vectors that the next point begins from, see ``state_dict``.
        options: further arguments of ``SharpnessTracker``.

    Attributes:
        tracker: with its points; None before the training starts, and on all ranks but the first.

    Raises:
        TypeError, ValueError: (when training starts) an argument outside its range, or a state that does not fit.
    """

    def __init__(
        self,
        loss: Callable[[Any, Any], Any] | None,
        data: Any,
        *,
        part: str = "",
        name: str = "",
        vectors: bool = True,
        **options: Any,
    ) -> None:
        self.tracker: SharpnessTracker | None = None
        self._loss, self._data, self._part, self._options = loss, data, part, options
        self._name, self._vectors = name, vectors
        self._loaded: dict[str, Any] | None = None
        self._resumes = True
        self._lr: float | None = None
        self._seen = -1

    @property
    def state_key(self) -> str:
        """Where checkpoints keep the state."""
        return str(self._generate_state_key(part=self._part, name=self._name))

    def state_dict(self) -> dict[str, Any]:
        """Return the tracker's state, empty where this rank has no tracker."""
        if self._loaded is not None:
            return self._loaded
        return {} if self.tracker is None else self.tracker.state_dict(vectors=self._vectors)

    def on_load_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Note whether the checkpoint is loaded to continue training: validating one must not reset the track."""
        self._resumes = bool(trainer.state.fn == "fit")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state until the training starts, which then continues from it."""
        self._loaded = state_dict if self._resumes else self._loaded

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Create the tracker, again where a checkpoint was loaded, as the module may be a different one."""
        loaded, self._loaded = self._loaded, None
        if not trainer.is_global_zero or (self.tracker is not None and loaded is None):
            return
        self.tracker = self._tracker(trainer, pl_module)
        if loaded is not None:
            self.tracker.load_state_dict(loaded)
        self._seen = int(trainer.global_step) if loaded is not None else -1
        self.tracker.pace.begin()

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Any) -> None:
        """Note the rate of the step, which a scheduler may change right after it."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Measure where that is due; batches that only accumulate are no step."""
        step = int(trainer.global_step)
        if self.tracker is None or step <= self._seen:
            return
        self._seen = step
        point = self.tracker.step(step, lr=self._lr)
        if point is not None:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(point), step=step)

    def on_fit_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Close what the tracker opened."""
        if self.tracker is not None:
            self.tracker.close()

    def _tracker(self, trainer: Any, pl_module: nn.Module) -> SharpnessTracker:
        try:
            model = pl_module.get_submodule(self._part)
        except AttributeError as error:
            raise ValueError(f"part must name a submodule; got {self._part!r}. {error}.") from error
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        return SharpnessTracker(model, self._loss, self._data, optimizer=_bare(optimizer), **self._options)


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)
