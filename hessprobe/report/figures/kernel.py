"""A spectrum as a curve: its weights spread over the axis that it is drawn on."""

from __future__ import annotations

import math

import numpy as np

from hessprobe.report.figures.fields import Floats

# Points of the curve, and the width of a kernel in distances between them: a line of the spectrum is a thin peak.
_POINTS = 480
_WIDTH = 2.0
# What has more than so many times the weight of one eigenvalue stands for several; then a kernel is wider, so many
# times at most.
_SEVERAL, _MOST = 3.0, 15.0


def symlog(x: Floats, threshold: float) -> Floats:
    """Return t(x) = x / z within [-z, z], sign(x) (1 + ln(|x| / z)) beyond: smooth where the two meet."""
    size = np.abs(x) / threshold
    grown: Floats = np.sign(x) * np.where(size <= 1, size, 1 + np.log(np.maximum(size, 1)))
    return grown


def unsymlog(t: Floats, threshold: float) -> Floats:
    """Return x(t), the inverse of ``symlog``."""
    back: Floats = np.sign(t) * threshold * np.where(np.abs(t) <= 1, np.abs(t), np.exp(np.abs(t) - 1))
    return back


def curve(nodes: Floats, weights: Floats, threshold: float | None, positive: bool) -> tuple[Floats, Floats]:
    """Return points and the density per unit of eigenvalue there.

    Every node is spread by a Gaussian whose width h belongs to the axis of the figure. On a logarithmic axis that is a
    width relative to the eigenvalue: one kernel for the bulk and for an outlier thousand times as far out.
    q(t) = sum_i w_i N(t; t(x_i), h_i), and the density is q(t) dt/dx. It integrates to the weights' sum. Where nodes
    stand for many eigenvalues each, h_i is at least half the distance to the next: what is between them is not known.

    Args:
        nodes: (n,) eigenvalues, in any order.
        weights: (n,) their shares.
        threshold: within it the axis is linear; None for a linear axis.
        positive: whether no eigenvalue can be negative: what a kernel carries below 0 is put back by reflection.
    """
    places = nodes if threshold is None else symlog(nodes, threshold)
    order = np.argsort(places)
    places, weights = places[order], weights[order]
    span = float(places[-1] - places[0]) or 1.0
    h = _WIDTH * span / _POINTS
    widths = _widths(places, weights, h)
    low, high = float((places - 4 * widths).min()), float((places + 4 * widths).max())
    points = np.linspace(max(low, 0.0) if positive else low, high, _POINTS + 1)
    height = _gaussians(points, places, weights, widths)
    if positive:
        height += _gaussians(-points, places, weights, widths)
    if threshold is None:
        return points, height
    slope = np.where(np.abs(points) <= 1, 1 / threshold, np.exp(1 - np.abs(points)) / threshold)
    return unsymlog(points, threshold), height * slope


def _widths(places: Floats, weights: Floats, h: float) -> Floats:
    """Return the width of each node's kernel: h, or more where it stands for more than a few eigenvalues."""
    # What lies in one cell of width h is one thing on this axis.
    first = np.concatenate([[0], np.flatnonzero(np.diff(np.floor(places / h)) > 0) + 1])
    count = np.diff(np.append(first, len(places)))
    mass, middle = np.add.reduceat(weights, first), np.add.reduceat(places, first) / count
    # The outermost is one eigenvalue, or a few.
    single = mass[int(np.argmax(np.abs(middle)))]
    gaps = np.diff(middle)
    reach = np.maximum(np.append(gaps, 0.0), np.append(0.0, gaps)) / 2
    widths = np.where(mass > _SEVERAL * single, np.clip(reach, h, _MOST * h), h)
    spread: Floats = np.repeat(widths, count)
    return spread


def _gaussians(points: Floats, places: Floats, weights: Floats, widths: Floats) -> Floats:
    z = (points[:, None] - places[None, :]) / widths
    summed: Floats = np.exp(-(z**2) / 2) @ (weights / (widths * math.sqrt(2 * math.pi)))
    return summed
