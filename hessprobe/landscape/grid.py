"""A landscape: a risk on a grid of points of a line or plane, resumable, the center exact."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessprobe.hvp import Hessian
from hessprobe.landscape.plane import Plane
from hessprobe.landscape.points import Points
from hessprobe.landscape.result import Floats, Landscape, Store
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import Objective, require_objective
from hessprobe.vectors import gram

Report = Callable[[int, int], object]

# Points are handed over about this often, and finished ones written to disk this often (or rarer, where writing is
# slow: at most this share of the time goes into it).
_CHUNK_SECONDS, _SAVE_SECONDS, _SAVE_SHARE = 1.0, 10.0, 0.05
_CHUNK, _HELD_BYTES = 256, 1 << 28


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
    total, begun = book.done.size, int(book.done.sum())
    try:
        for finished in _fill(points, plane, grid, book):
            book.save_sometimes()
            if callback is not None:
                callback(begun + finished, total)
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
        evaluated=int(book.done.sum()) - begun,
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
        self._saved, self._spent, self._clean = time.perf_counter(), 0.0, False
        known = None if self._store is None else self._store.load()
        if known is not None and known["done"].shape == shape:
            self.done, self._clean = known["done"].astype(bool), True
            self.values = {name: known[f"values.{name}"].astype(np.float64) for name in quantities}

    def enter(self, index: tuple[int, ...], found: dict[str, float]) -> None:
        for name, value in found.items():
            self.values[name][index] = value
        self.done[index], self._clean = True, False

    def save_sometimes(self) -> None:
        if time.perf_counter() - self._saved > max(_SAVE_SECONDS, self._spent / _SAVE_SHARE):
            self.save()

    def save(self) -> None:
        if self._store is None or self._clean:
            return
        began = time.perf_counter()
        arrays: dict[str, NDArray[Any]] = {f"values.{name}": values for name, values in self.values.items()}
        arrays |= {f"axes.{index}": values for index, values in enumerate(self._axes)}
        arrays |= {"done": self.done, "rows": self._plane.rows.detach().cpu().numpy()}
        facts = {"kind": self._plane.kind, "labels": list(self._plane.labels), "facts": self._plane.facts}
        self._store.save(arrays, facts)
        self._saved, self._clean = time.perf_counter(), True
        self._spent = self._saved - began


def _fill(points: Points, plane: Plane, axes: tuple[Floats, ...], book: _Book) -> Iterator[int]:
    """Compute every point that is not done, the center first, and yield how many have been computed so far."""
    finished = 0
    center = tuple(int(np.flatnonzero(values == 0)[0]) for values in axes)
    if not book.done[center]:
        book.enter(center, points.at_center())
        finished += 1
        yield finished
    open_points = _snake(book.done)
    held = max(int(_HELD_BYTES // (plane.rows.element_size() * plane.rows.shape[1])), 1)
    chunk = min(16, held)
    while open_points:
        part, open_points = open_points[:chunk], open_points[chunk:]
        began = time.perf_counter()
        where = [[float(values[i]) for values, i in zip(axes, index, strict=True)] for index in part]
        found = points.at([plane.point(at) for at in where])
        for position, index in enumerate(part):
            book.enter(index, {name: values[position] for name, values in found.items()})
        finished += len(part)
        yield finished
        each = (time.perf_counter() - began) / len(part)
        chunk = max(1, min(_CHUNK, held, int(_CHUNK_SECONDS / max(each, 1e-9))))
        if points.width > 1:
            chunk = max(points.width, chunk // points.width * points.width)


def _snake(done: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Return the open points row by row, to and fro, so that each is next to the one before (for warm starts)."""
    order: list[tuple[int, ...]] = []
    for row in range(done.shape[0]):
        if done.ndim == 1:
            if not done[row]:
                order.append((row,))
            continue
        columns = range(done.shape[1])
        order += [(row, column) for column in (columns if row % 2 == 0 else reversed(columns)) if not done[row, column]]
    return order


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
