"""Points as scalars of TensorBoard, or of another logger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hessprobe.errors import UnsupportedError, about
from hessprobe.tracking.loggers import KINDS, logger_of, open_logger
from hessprobe.tracking.point import Point

PREFIX = "hessprobe"


def open_writer(target: Any, purge_step: int | None = None) -> tuple[Any, bool]:
    """Return a writer, and whether it was made here and is to be closed here.

    Args:
        target: a ``SummaryWriter`` (or anything with ``add_scalar(tag, value, step)``), or the folder for a new one; a
            run of Weights & Biases; ``"wandb:PROJECT"`` or ``"mlflow:EXPERIMENT"``, see ``loggers``.
        purge_step: what earlier files in the folder hold from this step on is no longer shown.

    Raises:
        TypeError: neither.
        ValueError: no folder, project or experiment is named.
        UnsupportedError: what it needs is not installed.
    """
    if callable(getattr(target, "add_scalar", None)):
        return target, False
    if isinstance(target, str) and target.partition(":")[0] in KINDS and ":" in target:
        return open_logger(target), True
    if not isinstance(target, (str, Path)):
        logger = logger_of(target)
        if logger is not None:
            return logger, False
        raise TypeError(
            f"writer must be a SummaryWriter or a folder; got {type(target).__name__}. Pass for example "
            "'runs/sharpness', 'wandb:PROJECT' or 'mlflow:EXPERIMENT'."
        )
    if not str(target).strip():
        raise ValueError(about("writer", f"must name a folder; got {target!r}. Pass for example 'runs/sharpness'."))
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UnsupportedError(
            "Writing for TensorBoard needs the package tensorboard. Run pip install 'hessprobe[tracking]'."
        ) from error
    try:
        return SummaryWriter(str(target), purge_step=purge_step), True
    except OSError as error:
        raise ValueError(
            about(
                "writer",
                f"must name a folder that can be made and written; got {str(target)!r} ({error.strerror or error}). "
                "Choose another.",
            )
        ) from error


def scalars(point: Point) -> dict[str, float]:
    """Return the numbers of a point by tag."""
    found: dict[str, float | None] = {"loss": point.loss, "gradient-norm": point.gradient_norm, "lr": point.lr}
    if point.alignment is not None:
        found |= {"alignment": point.alignment.first, f"alignment-top-{point.alignment.k}": point.alignment.space}
    found |= {"edge-of-stability": point.edge.plain, "edge-of-stability-sam": point.edge.sharpness_aware}
    found |= {"edge-of-stability-preconditioned": point.edge.preconditioned}
    for result in point.results:
        estimate = result.estimate
        found[result.measure] = estimate.value
        found[f"{result.measure}-error"] = max(estimate.std_error, estimate.errors.solver)
    found |= {"products": point.matvecs, "seconds": point.seconds}
    return {f"{PREFIX}/{name}": value for name, value in found.items() if value is not None}


def write_point(writer: Any, point: Point) -> None:
    """Add the numbers of a point to a writer."""
    if callable(getattr(writer, "log_point", None)):
        writer.log_point(scalars(point), point.step)
        return
    for tag, value in scalars(point).items():
        writer.add_scalar(tag, value, point.step)
