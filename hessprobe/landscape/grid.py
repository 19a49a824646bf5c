"""A landscape: a risk on a grid of points of a line or plane, resumable, the center exact."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessprobe.hvp import Hessian, engines
from hessprobe.landscape.plane import Plane
from hessprobe.landscape.points import Points
from hessprobe.landscape.result import Floats, Landscape, Store
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import Objective, require_objective
from hessprobe.vectors import gram

Report = Callable[[int, int], object]

# How many points are there for the choice of how many a pass takes, and what those of one pass may hold.
_TRIED, _HELD_BYTES = 16, 1 << 28


def evaluate(
    risk: Objective,
    plane: Plane,
    axes: Sequence[Floats],
    quantities: Sequence[str] = ("loss",),
    *,
    quadratic: bool = False,
    mode: str = "auto",
    memory: int | None = None,
    store: str | Path | None = None,
    key: str | None = None,
    callback: Report | None = None,
) -> Landscape:
    """Return the values of ``quantities`` at every point of a grid.

    The point with coordinates 0 is ``risk.theta`` itself, evaluated as ``risk.loss()`` does, so that the two agree to
    the last bit. Nothing is written into the module: points are parameter vectors of the risk. A value that is not
    finite stays as it is: a hole (``Landscape.holes``). With a risk made with ``batchnorm="recalibrate"`` the running
    statistics are computed anew at every point.

    Args:
        risk: an objective with ``theta`` the origin of the plane.
        plane: where.
        axes: one array of coordinates a direction, each with 0 in it; see ``axis``.
        quantities: of ``names.MAPS``; the loss is always among them.
        quadratic: also the second-order model in the plane: a gradient and k products with the Hessian.
        mode: see ``Points``.
        memory: see ``Points``.
        store: npz file for finished points; what it holds under the same key is not computed again.
        key: digest of everything that decides the values; by default that of risk, plane, axes and quantities.
        callback: called with (points done, points in all).

    Raises:
        TypeError, ValueError: arguments that do not fit each other.
    """
    require_objective("risk", risk)
    grid = tuple(np.asarray(values, dtype=np.float64) for values in axes)
    _require_axes(plane, grid, risk)
    points = Points(risk, quantities, mode=mode, memory=memory)
    book = _Book(plane, grid, points.quantities, store, key or digest(risk, plane, grid, points.quantities))
    try:
        for _ in _fill(points, plane, grid, book):
            if callback is not None:
                callback(int(book.done.sum()), book.done.size)
    finally:
        book.save()
    slope, bend = second_order(risk, plane) if quadratic else (None, None)
    return Landscape(
        axes=grid,
        values=book.values,
        done=book.done,
        labels=plane.labels,
        kind=plane.kind,
        lengths=plane.lengths,
        gram=plane.gram.numpy(),
        marks=tuple((name, place, None) for name, place in plane.marks),
        facts={**plane.facts, "points_per_pass": points.width},
        slope=slope,
        bend=bend,
        evaluated=book.computed,
    )


def digest(risk: Objective, plane: Plane, axes: Sequence[Floats], quantities: Sequence[str]) -> str:
    """Return the sha256 of all that decides the values: weights, buffers, data, loss, directions, grid, quantities."""
    hasher = hashlib.sha256()
    settings: dict[str, Any] = {"quantities": list(quantities), "kind": plane.kind, "dim": risk.dim}
    if isinstance(risk, EmpiricalRisk):
        described = risk.describe()
        settings |= {name: described[name] for name in ("weighting", "units", "loss", "batchnorm", "dtype")}
        settings["data"] = risk.fingerprint()
    hasher.update(json.dumps(settings, sort_keys=True).encode())
    constants = []
    if isinstance(risk, EmpiricalRisk):
        constants = [*risk._frozen.values(), *risk._buffers.values()]
    for tensor in (plane.origin, plane.rows, *(theta for _, theta in plane.anchors), *constants):
        hasher.update(_bytes(tensor))
    for values in axes:
        hasher.update(values.tobytes())
    return hasher.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class _Book:
    """The values found so far, and their copy on disk."""

    def __init__(
        self, plane: Plane, axes: tuple[Floats, ...], quantities: Sequence[str], path: str | Path | None, key: str
    ) -> None:
        shape = tuple(len(values) for values in axes)
        self.values: dict[str, Floats] = {name: np.full(shape, math.nan) for name in quantities}
        self.done: NDArray[np.bool_] = np.zeros(shape, dtype=bool)
        self._axes, self._plane = axes, plane
        self._store = None if path is None else Store(Path(path), key)
        self._clean, self.computed = False, 0
        known = None if self._store is None else self._store.load()
        if known is not None and known["done"].shape == shape:
            self.done, self._clean = known["done"].astype(bool), True
            self.values = {name: known[f"values.{name}"].astype(np.float64) for name in quantities}

    def take(
        self,
        name: str,
        part: Sequence[tuple[int, ...]],
        begun: NDArray[np.bool_],
        compute: Callable[[], dict[str, list[float]]],
        points: Points,
    ) -> bool:
        """Enter what a pass finds, or a stopped run has written down; return False where all of it was ``begun``."""
        with engines.part(name):
            known = engines.decided("found")
            if not known and all(begun[index] for index in part):
                return False

            def made() -> dict[str, list[float]]:
                values = compute()
                # Before the values: a run that ends between the two would begin the next point from nothing.
                points.keep_start()
                return values

            found = engines.value("found", made)
            if known:
                points.keep_start()
        for position, index in enumerate(part):
            for quantity, values in found.items():
                self.values[quantity][index] = values[position]
            self.done[index], self._clean = True, False
        self.computed += 0 if known else len(part)
        return True

    def save(self) -> None:
        if self._store is None or self._clean:
            return
        arrays: dict[str, NDArray[Any]] = {f"values.{name}": values for name, values in self.values.items()}
        arrays |= {f"axes.{index}": values for index, values in enumerate(self._axes)}
        arrays |= {"done": self.done, "rows": self._plane.rows.detach().cpu().numpy()}
        facts = {"kind": self._plane.kind, "labels": list(self._plane.labels), "facts": self._plane.facts}
        self._store.save(arrays, facts)
        self._clean = True


def _fill(points: Points, plane: Plane, axes: tuple[Floats, ...], book: _Book) -> Iterator[None]:
    """Compute every point that is not done, the center first, and yield after each pass.

    Passes hold the same points in a run that goes on as in one that was never stopped, as the last digits of a value
    depend on those beside it.
    """
    begun = book.done.copy()
    if begun.all():
        return
    center = tuple(int(np.flatnonzero(values == 0)[0]) for values in axes)
    others = [index for index in _snake(begun.shape) if index != center]

    def thetas(part: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [plane.point([float(values[i]) for values, i in zip(axes, index, strict=True)]) for index in part]

    def at_center() -> dict[str, list[float]]:
        return {name: [value] for name, value in points.at_center().items()}

    if book.take("center", [center], begun, at_center, points):
        yield
    held = max(int(_HELD_BYTES // (plane.rows.element_size() * plane.rows.shape[1])), 1)
    if others and points.width == 0:
        points.settle(thetas(others[: min(_TRIED, held)]))
    step = min(max(points.width, 1) * points.hands, held)
    for start in range(0, len(others), step):
        part = others[start : start + step]

        def compute(part: Sequence[tuple[int, ...]] = part) -> dict[str, list[float]]:
            return points.at(thetas(part))

        if book.take(f"from {start}", part, begun, compute, points):
            yield


def _snake(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return all points row by row, to and fro, so that each is next to the one before (for warm starts)."""
    if len(shape) == 1:
        return [(row,) for row in range(shape[0])]
    columns = range(shape[1])
    return [(row, column) for row in range(shape[0]) for column in (columns if row % 2 == 0 else reversed(columns))]


def second_order(risk: Objective, plane: Plane) -> tuple[Floats, Floats]:
    """Return slope (k,) and bend (k, k) of the loss along the directions at the center."""
    slope = gram(plane.rows, risk.gradient()[None])[:, 0]
    operator = Hessian(risk, engine="double_backward", expected_matvecs=plane.dim)
    bend = gram(plane.rows, operator.matvecs(plane.rows))
    return slope.cpu().numpy(), ((bend + bend.T) / 2).cpu().numpy()


def _require_axes(plane: Plane, axes: tuple[Floats, ...], risk: Objective) -> None:
    if len(axes) != plane.dim:
        raise ValueError(f"axes must be one a direction, {plane.dim}; got {len(axes)}. Pass as many as directions.")
    for values in axes:
        if values.ndim != 1 or not bool(np.isfinite(values).all()) or not bool((np.diff(values) > 0).all()):
            raise ValueError(f"axes must be ascending finite numbers; got {values}. Make them with axis().")
        if not bool((values == 0).any()):
            raise ValueError(f"axes must contain 0 exactly; got {values}. Make them with axis().")
    if not torch.equal(plane.origin, risk.theta):
        raise ValueError("origin must be the theta of the risk; got another point. Make the plane from this risk.")


def interrupted_note(path: str | Path, done: int, total: int) -> str:
    """Return the sentence that says what an interruption left, and how to go on."""
    return f"{done} of {total} points are kept in {path}; the same command goes on from there"


def read_progress(path: str | Path) -> tuple[int, int] | None:
    """Return (points done, points in all) of a store, or None where there is none."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        Path(path).open("rb") as file,
    ):
        content = np.load(file, allow_pickle=False)
        return int(content["done"].sum()), int(content["done"].size)
    return None
