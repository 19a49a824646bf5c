"""A line or a plane through parameter space: where it lies, what spans it, which points of it are known exactly.

Lines and planes through several checkpoints: interpolation, and principal components of a trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hessprobe.vectors import gram

# Two directions whose sine is below this span no plane as far as float32 weights can tell.
_PARALLEL = 1e-4


@dataclass(frozen=True, eq=False)
class Plane:
    """theta(x) = origin + sum_i x_i direction_i.

    Attributes:
        origin: (d,) the point with coordinates 0; always on the grid.
        rows: (k, d) the directions, k = 1 or 2, linearly independent; their lengths are the units of the axes.
        labels: what each axis is, in words.
        kind: how the directions were made, a name in ``names.DIRECTIONS``.
        anchors: further points whose parameters are known to the last bit, as (coordinates, theta) pairs; at these
            coordinates theta is taken as it is instead of being computed.
        marks: points to draw, as (name, coordinates).
        facts: plain values for the record (eigenvalues, explained variance, ...).

    Raises:
        ValueError: directions of the wrong shape, of length 0, not finite, or parallel.
    """

    origin: Tensor
    rows: Tensor
    labels: tuple[str, ...]
    kind: str
    anchors: tuple[tuple[tuple[float, ...], Tensor], ...] = ()
    marks: tuple[tuple[str, tuple[float, ...]], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.rows.shape)
        if self.rows.ndim != 2 or shape[0] not in (1, 2) or shape[1:] != tuple(self.origin.shape):
            raise ValueError(
                f"directions must be one or two rows of length {len(self.origin)}; got shape {shape}. "
                "Pass one row for a line, two for a plane."
            )
        _require_independent(self.rows)

    @property
    def dim(self) -> int:
        """1 for a line, 2 for a plane."""
        return len(self.rows)

    @property
    def gram(self) -> Tensor:
        """(k, k) fp64 dot products of the directions, on the CPU."""
        return gram(self.rows, self.rows).cpu()

    @property
    def lengths(self) -> tuple[float, ...]:
        """Euclidean length of one unit of each axis."""
        return tuple(float(value) for value in self.gram.diagonal().sqrt())

    def point(self, coordinates: Sequence[float]) -> Tensor:
        """Return theta (d,) at ``coordinates`` (k,): the origin itself at 0, an anchor itself at its place."""
        at = tuple(float(x) for x in coordinates)
        if not any(at):
            return self.origin
        for place, theta in self.anchors:
            if place == at:
                return theta
        theta = self.origin.clone()
        for x, row in zip(at, self.rows, strict=True):
            theta.add_(row, alpha=x)
        return theta

    def coordinates(self, theta: Tensor) -> tuple[tuple[float, ...], float]:
        """Return the coordinates of the point of the plane nearest to ``theta`` (d,), and how far away that is."""
        offset = (theta.double() - self.origin.double())[None]
        slopes = gram(self.rows.double(), offset)[:, 0].cpu()
        at = torch.linalg.solve(self.gram, slopes)
        rest = offset[0] - (at.to(self.rows.device)[:, None] * self.rows.double()).sum(0)
        return tuple(float(x) for x in at), float(rest.norm())


def _require_independent(rows: Tensor) -> None:
    lengths = rows.double().norm(dim=1)
    if not bool(torch.isfinite(lengths).all()) or not bool((lengths > 0).all()):
        shown = ", ".join(f"{float(length):.3g}" for length in lengths)
        raise ValueError(
            f"directions must be finite and longer than 0; got lengths {shown}. Choose other directions, or a point "
            "where the gradient is not 0."
        )
    if len(rows) == 2:
        units = rows.double() / lengths[:, None]
        # The chords, not the cosine, which loses half of the digits of a small angle.
        chord = min(float((units[0] - units[1]).norm()), float((units[0] + units[1]).norm()))
        if chord < _PARALLEL:
            raise ValueError(
                f"directions must not be parallel; got an angle of {chord:.1e} between them. "
                "Choose other directions, or one alone for a line."
            )


def line_plane(origin: Tensor, others: Sequence[Tensor], names: Sequence[str]) -> Plane:
    """Return the straight line through two points, or the plane through three.

    On the line the coordinate is the share of the way: 0 the origin, 1 the other, both to the last bit. In the plane
    the axes are orthonormal: the first towards the first other point, the second towards the second.

    Args:
        origin: (d,) parameters of the first checkpoint.
        others: one or two more.
        names: of all of them.

    Raises:
        ValueError: another number of points, or points that are equal or on one line.

    References:
        Goodfellow, Vinyals, Saxe (2015), "Qualitatively characterizing neural network optimization problems"; Garipov
        et al. (2018), "Loss surfaces, mode connectivity, and fast ensembling of DNNs".
    """
    if len(others) not in (1, 2):
        raise ValueError(
            f"checkpoints must be 2 for a line or 3 for the plane through them; got {1 + len(others)}. "
            "Use directions='pca' for more."
        )
    if len(others) == 1:
        row = (others[0].double() - origin.double()).to(origin.dtype)[None]
        marks = ((names[0], (0.0,)), (names[1], (1.0,)))
        label = f"share of the way from {names[0]} to {names[1]}"
        return Plane(origin, row, (label,), "line", (((1.0,), others[0]),), marks)
    first, second = (other.double() - origin.double() for other in others)
    reach = float(first.norm())
    u = first / reach if reach > 0 else first
    rest = second - (second @ u) * u
    if not float(rest.norm()) > 1e-6 * max(reach, float(second.norm())):
        raise ValueError(
            f"checkpoints must not lie on one line; got {', '.join(names)}. Pass two of them for the line itself."
        )
    v = rest / rest.norm()
    corners = (
        (names[0], (0.0, 0.0)),
        (names[1], (reach, 0.0)),
        (names[2], (float(second @ u), float(second @ v))),
    )
    labels = (f"distance towards {names[1]}", f"distance across, towards {names[2]}")
    return Plane(origin, torch.stack([u, v]).to(origin.dtype), labels, "line", marks=corners)


def pca_plane(points: Sequence[Tensor], names: Sequence[str]) -> Plane:
    """Return the plane of the two leading principal components of a trajectory, through its first point.

    The first point is the origin, as in ``line_plane``: the checkpoint that a landscape is named after, whichever end
    of the trajectory it is. The components are those of the points about their mean; the share of variance that each
    explains is on its axis and among the facts, with the distance of every point from the plane: the contour at a
    projected point is not the loss at the point itself.

    Args:
        points: n >= 3 parameter vectors (d,) in order, the first of them the origin.
        names: one a point.

    Raises:
        ValueError: fewer than three points, or points that lie on one line.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), "Visualizing the loss landscape of neural nets"; section 7 takes the
        components of the differences to the final point of training, without their mean.
    """
    if len(points) < 3:
        raise ValueError(
            f"checkpoints must be at least 3 for a plane of principal components (two span a line); got {len(points)}. "
            "Pass more, or use directions='line'."
        )
    origin = points[0]
    offsets = torch.stack([point.double() - origin.double() for point in points])
    centered = offsets - offsets.mean(0)
    # n points are few and d is large: the n x n Gram matrix has the same eigenvalues as the covariance.
    values, vectors = torch.linalg.eigh(gram(centered, centered))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if not float(values[1]) > 1e-10 * float(values[0]):
        raise ValueError(
            f"checkpoints must not lie on one line; got {len(points)} points with one principal component. "
            "Use directions='line' with two of them."
        )
    rows = (vectors[:, :2].T @ centered) / values[:2].sqrt()[:, None]
    # Signs are free: the trajectory starts on the left of its end, and below it.
    rows = rows * torch.where(rows @ offsets[-1] < 0, -1.0, 1.0)[:, None]
    shares = [float(value / values.sum()) for value in values[:2]]
    labels = tuple(f"principal component {i + 1} ({100 * share:.3g} % of variance)" for i, share in enumerate(shares))
    plane = Plane(origin, rows.to(origin.dtype), labels, "pca")
    places = [plane.coordinates(point) for point in points]
    marks = tuple(
        (name, place if index else (0.0, 0.0))
        for index, (name, (place, _)) in enumerate(zip(names, places, strict=True))
    )
    facts = {"explained_variance": shares, "distances": [distance for _, distance in places]}
    return Plane(origin, plane.rows, labels, "pca", marks=marks, facts=facts)
