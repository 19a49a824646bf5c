"""Curvature while training: a callback for a custom training loop."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from hessprobe import checks, display
from hessprobe.errors import NonFiniteError, NumericalWarning, about
from hessprobe.hvp import gauss_newton, hessian
from hessprobe.measures.context import Start, settings_of
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.modes import select_parameters, unwrap
from hessprobe.objective.preconditioner import of_optimizer
from hessprobe.tracking.names import DEFAULT, RTOL, TRACKED
from hessprobe.tracking.pace import Pace
from hessprobe.tracking.point import Point, measure_point
from hessprobe.tracking.snapshots import measures_here, require_unsharded
from hessprobe.tracking.stability import StepRule, rule_of_optimizer
from hessprobe.tracking.store import STATE_FORMAT, packed, placed, unpacked, width
from hessprobe.tracking.tensorboard import open_writer, write_point

# What may differ between a state and the tracker that loads it: when it measures, how products are made, and whether
# the error that the data give is told beside the number.
_FREE = ("every", "budget", "engine", "memory", "data_error")


class SharpnessTracker:
    """Measures loss, gradient and curvature of a model on fixed data while it trains.

        tracker = SharpnessTracker(model, nn.CrossEntropyLoss(), batches, every=50, budget=0.05, optimizer=optimizer)
        for step, (x, y) in enumerate(loader, 1):
            ...
            optimizer.step()
            tracker.step(step)

    The training is left bit-identical: weights, buffers, gradients, modes and the random states are as if no tracker
    were there. The model is measured in evaluation mode, also where it is called under ``model.train()``. Each point
    begins from the eigenvectors of the one before, and all points share their probes.

    ``state_dict`` goes into a checkpoint of the training; a tracker made anew that loads it gives the points that an
    uninterrupted run would have given.

    Under DDP, give it the wrapped module and call ``step`` on every rank: the first rank measures and the others return
    None at once. Measuring makes no collective call, so that no rank can hang in it; the others wait for the first one
    at their next all-reduce, and the time-out of the process group must be longer than one measurement. Given the bare
    module, every rank that steps measures, each on its own data.

    Args:
        model: any module; wrappers of DDP and ``torch.compile`` are taken off. One sharded by FSDP is refused.
        loss: as for ``EmpiricalRisk``; None for a model that returns ``.loss``.
        data: batches as for ``EmpiricalRisk``, the same ones each time (a list; not a loader that shuffles). The more
            examples, the more a point costs: a few hundred to a few thousand usually suffice.
        every: steps between two points, >= 1.
        budget: share b of the training's time in (0, 1] that measuring may take, in seconds, not products; None sets
            no bound. The first due measurement is always taken. Each later one waits for a due step at which it fits,
            seconds spent + expected cost <= b * seconds of training, where the expected cost is that of the most
            expensive of the last three. So right after every measurement but the first the share is at most b, if that
            one cost no more than expected; an excess is made up for before the next. A run that ends before that ends
            above b, by no more than the excess. See ``Pace``.
        measures: names in ``tracking.names.TRACKED``; the largest eigenvalue is always measured.
        k: number of largest eigenvalues, >= 1.
        rtol: half-width of the intervals of trace and Frobenius norm, relative to the value, in (0, 1).
        seed: of the probes, >= 0.
        optimizer: for the learning rate and the threshold of stability; None leaves the threshold out, unless ``step``
            is told a rate.
        writer: a ``SummaryWriter`` of TensorBoard, or the folder for one; a run of Weights & Biases, or
            ``"wandb:PROJECT"``; ``"mlflow:EXPERIMENT"``, which writes into the active run where there is one.
        engine: of the products, see ``hvp.Hessian``. The default needs no preparation; ``"auto"`` times all of them at
            the first point, which pays where many points follow.
        params: which parameters, as for ``EmpiricalRisk``.
        batchnorm: as for ``EmpiricalRisk``.
        settings: further fields of ``MeasureSettings`` (``operator``, ``n_probes``, ``memory``, ``data_error``).

    Attributes:
        points: what has been measured, in order; none on the ranks of DDP that do not measure.
        pace: times spent, see ``Pace``.

    Raises:
        TypeError, ValueError: an argument outside its range, or a model without trainable parameters.
        UnsupportedError: a model sharded over ranks.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 2).double()
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).double()
        >>> data = [(x, torch.tensor([0, 1, 0]))]
        >>> loss_fn, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)
        >>> tracker = hp.SharpnessTracker(model, loss_fn, data, every=2, optimizer=optimizer)
        >>> for step in range(1, 5):
        ...     optimizer.zero_grad()
        ...     loss_fn(model(x), data[0][1]).backward()
        ...     optimizer.step()
        ...     point = tracker.step(step)
        >>> [point.step for point in tracker.points]
        [2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Any] | None,
        data: Any,
        *,
        every: int = 1,
        budget: float | None = None,
        measures: Sequence[str] = DEFAULT,
        k: int = 1,
        rtol: float = RTOL,
        seed: int = 0,
        optimizer: torch.optim.Optimizer | None = None,
        writer: Any = None,
        engine: str = "double_backward",
        params: Any = None,
        batchnorm: str = "eval",
        **settings: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}. Pass the network itself.")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("model must have trainable parameters; got none. Set requires_grad on those to measure.")
        require_unsharded(model)
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(about("optimizer", f"must be a torch.optim.Optimizer; got {type(optimizer).__name__}."))
        self.measures = tuple(checks.one_of("measures", name, TRACKED) for name in measures)
        own = list(inspect.signature(type(self)).parameters)[:-1]
        self.settings = settings_of("SharpnessTracker", own, k=k, rtol=rtol, seed=seed, engine=engine, **settings)
        self.pace = Pace(every, budget)
        self.points: list[Point] = []
        self._model, self._loss, self._data, self._params = model, loss, data, params
        self._batchnorm, self._optimizer = batchnorm, optimizer
        surrogate = checks.one_of("engine", engine, ("auto", *hessian.ENGINES))
        self._start = Start(engines=("auto", surrogate if surrogate in gauss_newton.ENGINES else "auto"))
        self._checked, self._here = False, measures_here(model)
        self._target, self._writer, self._owned = writer, None, False
        if writer is not None and self._here:
            self._writer, self._owned = open_writer(writer)
        self.device: torch.device | None = None

    def __repr__(self) -> str:
        model = type(unwrap(self._model)).__name__
        last = f", last at step {self.points[-1].step}" if self.points else ""
        return (
            f"SharpnessTracker({model}, measures={self.measures}, every={self.pace.every}, budget={self.pace.budget}, "
            f"points={len(self.points)}{last})"
        )

    @property
    def skipped(self) -> int:
        """Due measurements that were left out to keep the budget."""
        return self.pace.skipped

    def step(self, step: int, *, lr: float | None = None, **scores: float) -> Point | None:
        """Tell the tracker that a step is done; it measures where that is due.

        Args:
            step: how many steps are done, >= 0 and more than at the last point.
            lr: learning rate > 0 of the step, for the threshold; that of the optimizer by default.
            scores: further numbers to keep with the point, e.g. ``train_accuracy=0.97``.

        Returns:
            The new point, or None where nothing was measured: not due, not within the budget, not on this rank.

        Raises:
            TypeError, ValueError: an argument outside its range, or data that do not fit.
            HessprobeError: the model cannot be measured.

        Warns:
            NumericalWarning: weights or loss are nan or infinite; the step is left out, and the training goes on.
        """
        checks.positive_int("step", step, minimum=0)
        if lr is not None:
            checks.real("lr", lr, low=0, hint="Pass the rate of this step.")
        if not self._here or not self.pace.wants(step):
            return None
        try:
            return self.measure(step, lr=lr, **scores)
        except NonFiniteError as error:
            warnings.warn(f"step {step} was not measured: {error}", NumericalWarning, stacklevel=2)
            return None

    def measure(self, step: int, *, lr: float | None = None, **scores: float) -> Point:
        """Measure now, whatever ``every``, the budget and the rank say; see ``step``. The time counts as spent."""
        if self.points and step <= self.points[-1].step:
            raise ValueError(
                f"step must be more than at the last point, {self.points[-1].step}; got {step}. "
                "Count steps over all epochs."
            )
        numbers = {name: _number(name, value) for name, value in scores.items()}
        self.pace.begin()
        _settle(self._model)
        began, done = self.pace.clock(), len(self.points)
        try:
            point = self._measured(step, self._rate() if lr is None else float(lr), numbers)
            self.points.append(point)
            if self._writer is not None:
                write_point(self._writer, point)
        finally:
            self.pace.spend(self.pace.clock() - began, finished=len(self.points) > done)
        return point

    def state_dict(self, *, vectors: bool = True) -> dict[str, Any]:
        """Return all that a tracker needs to continue from here, as plain tensors, numbers and strings.

        ``torch.load(weights_only=True)`` reads it. Model, data and optimizer are not in it. Under DDP save that of the
        first rank, and load it on all.

        Args:
            vectors: with those from which the next point begins: k and, for the Frobenius norm, 16 more of the model's
                size. Without them the next point costs more products and differs within its errors.
        """
        start = self._start if vectors else Start(engines=self._start.engines)
        return {
            "format": STATE_FORMAT,
            "settings": self._deciding(),
            "points": packed(self.points),
            "pace": self.pace.state_dict(),
            "start": packed(start),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``: its points, vectors and times replace the present ones.

        ``every``, ``budget``, ``engine`` and ``memory`` may differ from then. A folder given as ``writer`` shows each
        step once, also where the stopped run had gone further. Ranks of DDP that do not measure keep nothing.

        Raises:
            ValueError: no such state, or one of other settings or another number of parameters; the tracker is as it
                was.
        """
        self._require_own(state)
        points, start = unpacked(list(state["points"])), unpacked(state["start"])
        chosen = select_parameters(unwrap(self._model), self._params)
        dim, found = sum(parameter.numel() for parameter in chosen.values()), width(start)
        if found not in (None, dim):
            raise ValueError(f"state must be of {dim} parameters; got {found}. Load that of the same model.")
        if not self._here:
            return
        self.pace.load_state_dict(state["pace"])
        self.points, self._start = points, placed(start, next(iter(chosen.values())).device)
        if self._owned and self._writer is not None and callable(getattr(self._writer, "add_scalar", None)):
            self._writer.close()
            self._writer, _ = open_writer(self._target, points[-1].step + 1 if points else 0)

    def rows(self) -> list[dict[str, Any]]:
        """Return the points as flat dictionaries, e.g. for ``pandas.DataFrame``.

        ``hessprobe.report.track.write_track`` writes them as a record that ``hessprobe plot`` draws.
        """
        return [_row(point) for point in self.points]

    def to_dict(self) -> dict[str, Any]:
        """Return the points and how they were measured as plain data for JSON."""
        found: dict[str, Any] = display.plain({"settings": self.settings_dict(), "points": self.rows()})
        return found

    def plot(self) -> Any:
        """Return the axes of a matplotlib figure: curvature against the thresholds of stability, loss, alignment.

        Raises:
            ValueError: no point yet.
        """
        return display.draw(self)

    def _repr_html_(self) -> str:
        rows = self.rows()
        names = ["step", "loss", *self.measures] if rows else []
        cells = [[row["step"], *(f"{row[name]:.5g}" for name in names[1:])] for row in rows]
        return display.html_table(cells, header=names, caption=repr(self))

    def settings_dict(self) -> Mapping[str, Any]:
        """Return how it measures, for a record."""
        own = {"measure": list(self.measures), "every": self.pace.every, "budget": self.pace.budget}
        return {**dataclasses.asdict(self.settings), **own, "batchnorm": self._batchnorm}

    def close(self) -> None:
        """Close the writer, where the tracker has opened it itself."""
        if self._owned and self._writer is not None:
            self._writer.close()
        self._writer = None

    def __enter__(self) -> SharpnessTracker:
        """Return the tracker; it is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _measured(self, step: int, rate: float | None, scores: Mapping[str, float]) -> Point:
        risk = EmpiricalRisk(
            self._model,
            self._loss,
            self._data,
            self._params,
            batchnorm=self._batchnorm,
            check=not self._checked,
            group=None,  # one rank measures
        )
        self._checked, self.device = True, risk.device
        if self._optimizer is not None:
            risk.preconditioner = of_optimizer(self._optimizer, risk.module, risk.layout)
        point, self._start = measure_point(
            risk,
            self.settings,
            self.measures,
            step=step,
            rule=self._rule(rate),
            start=self._start,
            lr=rate,
            scores=scores,
        )
        return point

    def _deciding(self) -> dict[str, Any]:
        return {key: value for key, value in self.settings_dict().items() if key not in _FREE}

    def _require_own(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or state.get("format") != STATE_FORMAT:
            raise ValueError(f"state must be what state_dict returned ({STATE_FORMAT}); got {_kind(state)}.")
        then = state["settings"]
        for key, value in self._deciding().items():
            if then.get(key) != value:
                raise ValueError(
                    f"state must be of a tracker with the same settings; got one with {key}={then.get(key)!r}, not "
                    f"{value!r}. Make the tracker with that, or begin a new track."
                )

    def _rate(self) -> float | None:
        if self._optimizer is None:
            return None
        return float(self._optimizer.param_groups[0]["lr"])

    def _rule(self, lr: float | None) -> StepRule | str:
        if self._optimizer is not None:
            return rule_of_optimizer(self._optimizer, lr)
        if lr is None:
            return "the learning rate is not known"
        return StepRule(lr) if lr > 0 else "the learning rate is 0"


def _settle(model: nn.Module) -> None:
    """Wait for what the training has left on the device, so that it is not counted as measuring."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number; got {type(value).__name__}. Pass plain scores.") from error


def _kind(state: Any) -> str:
    return f"format {state.get('format')!r}" if isinstance(state, Mapping) else type(state).__name__


def _row(point: Point) -> dict[str, Any]:
    aligned = point.alignment
    row: dict[str, Any] = {"step": point.step, "lr": point.lr, "loss": point.loss, "gradient_norm": point.gradient_norm}
    row |= {"alignment": math.nan if aligned is None else aligned.first}
    row |= {"threshold": point.edge.plain, "threshold_sharpness_aware": point.edge.sharpness_aware}
    row |= {"threshold_preconditioned": point.edge.preconditioned}
    for result in point.results:
        row[result.measure] = result.estimate.value
        row[f"{result.measure}_error"] = max(result.estimate.std_error, result.estimate.errors.solver)
    return {**row, **point.scores, "products": point.matvecs, "seconds": point.seconds}
