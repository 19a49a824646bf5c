"""Points for Weights & Biases and MLflow; their packages are imported when they are named, and only then."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from hessprobe.errors import UnsupportedError

_STEP = "hessprobe/step"
# What stands before the name of a project or an experiment.
KINDS = ("wandb", "mlflow")


class Logger(Protocol):
    """Takes the numbers of a point at once."""

    def log_point(self, values: Mapping[str, float], step: int) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class WandbLogger:
    """Writes into a run of Weights & Biases.

    Args:
        run: as ``wandb.init`` returns it.
        owned: whether it was opened here, and ends with ``close``.
    """

    def __init__(self, run: Any, owned: bool = False) -> None:
        self._run, self._owned = run, owned
        # Its own axis: the training's steps of the run may be counted otherwise.
        run.define_metric(_STEP)
        run.define_metric("hessprobe/*", step_metric=_STEP)

    def log_point(self, values: Mapping[str, float], step: int) -> None:
        """Log the numbers of one point, at the step of the run where that has not gone on already."""
        # What is logged at a step that is over is dropped.
        at = {"step": step} if step >= int(getattr(self._run, "step", 0) or 0) else {}
        self._run.log({**values, _STEP: step}, **at)

    def close(self) -> None:
        """End the run, where it was opened here."""
        if self._owned:
            self._run.finish()


class MlflowLogger:
    """Writes into a run of MLflow.

    Args:
        client: as ``mlflow.MlflowClient()``.
        run_id: of the run.
        owned: whether it was opened here, and ends with ``close``.
    """

    def __init__(self, client: Any, run_id: str, owned: bool = False) -> None:
        self._client, self._run_id, self._owned = client, run_id, owned

    def log_point(self, values: Mapping[str, float], step: int) -> None:
        """Log the numbers of one point."""
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, value, step=step)

    def close(self) -> None:
        """End the run, where it was opened here."""
        if self._owned:
            self._client.set_terminated(self._run_id)


def open_logger(target: str) -> Logger:
    """Return a logger that ``close`` ends.

    Args:
        target: ``"wandb:PROJECT"`` or ``"mlflow:EXPERIMENT"``. In MLflow the run is the active one where there is one,
            which then goes on; else a new run of the experiment, where ``MLFLOW_TRACKING_URI`` says.

    Raises:
        ValueError: no name behind the colon.
        UnsupportedError: the package is not installed.
    """
    kind, _, name = target.partition(":")
    if not name:
        raise ValueError(f"writer must be {kind}:NAME; got {target!r}. Name the project or experiment.")
    try:
        package = importlib.import_module(kind)
    except ImportError as error:
        raise UnsupportedError(f"writer={target!r} needs the package {kind}. Run pip install {kind}.") from error
    if kind == "wandb":
        return WandbLogger(package.init(project=name), owned=True)
    active, client = package.active_run(), package.MlflowClient()
    if active is not None:
        return MlflowLogger(client, active.info.run_id)
    known = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if known is None else known.experiment_id
    return MlflowLogger(client, client.create_run(experiment).info.run_id, owned=True)


def logger_of(target: Any) -> Logger | None:
    """Return a logger for a run of Weights & Biases that is open; None for anything else."""
    # A module of wandb itself has these too, and means its current run.
    if callable(getattr(target, "log", None)) and callable(getattr(target, "define_metric", None)):
        return WandbLogger(target)
    return None
