"""Lines and planes through several checkpoints: interpolation, and principal components of a trajectory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hessprobe.landscape.plane import Plane
from hessprobe.vectors import gram


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
