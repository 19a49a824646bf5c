"""Directions: norms by hand, eigenvectors, SAM's plane, trajectories, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hessprobe.landscape import (
    Plane,
    eigen_plane,
    gradient_plane,
    line_plane,
    normalized,
    pca_plane,
    random_plane,
)
from hessprobe.landscape.axes import circle
from hessprobe.objective import Quadratic
from hessprobe.vectors import ParameterLayout, require_same

LAYOUT = ParameterLayout(("w", "b", "k"), (torch.Size((2, 2)), torch.Size((2,)), torch.Size((1, 2, 1, 1))))
# Filters (3, 4) of norm 5 and (0, 2) of norm 2; bias (1, -1); one kernel (6, 8) of norm 10.
THETA = torch.tensor([3.0, 4.0, 0.0, 2.0, 1.0, -1.0, 6.0, 8.0], dtype=torch.float64)
# Filters of the direction: (0, 1), (3, 4); bias (2, 0); kernel (1, 0).
DIRECTION = torch.tensor([0.0, 1.0, 3.0, 4.0, 2.0, 0.0, 1.0, 0.0], dtype=torch.float64)


def test_filter_normalization_by_hand():
    found = normalized(DIRECTION, THETA, LAYOUT)
    assert found.tolist() == pytest.approx([0, 5, 2 * 0.6, 2 * 0.8, 0, 0, 10, 0])


def test_layer_normalization_by_hand():
    found = normalized(DIRECTION, THETA, LAYOUT, "layer")
    scale = math.sqrt(29 / 26)
    assert found.tolist() == pytest.approx([0, scale, 3 * scale, 4 * scale, 0, 0, 10, 0])


def test_biases_by_hand():
    assert normalized(DIRECTION, THETA, LAYOUT, biases="weights")[4:6].tolist() == [1.0, -1.0]
    assert normalized(DIRECTION, THETA, LAYOUT, biases="normalize")[4:6].tolist() == pytest.approx([math.sqrt(2), 0])
    assert torch.equal(normalized(DIRECTION, THETA, LAYOUT, "none"), DIRECTION)


def test_a_filter_of_zeros_stays_where_it_is():
    theta = THETA.clone()
    theta[:2] = 0
    assert normalized(DIRECTION, theta, LAYOUT)[:2].tolist() == [0, 0]


def test_normalization_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"normalization must be one of filter, layer, none; got 'filtr'\. Did you"):
        normalized(DIRECTION, THETA, LAYOUT, "filtr")
    with pytest.raises(ValueError, match=r"biases must be one of zero, weights, normalize; got 'ones'\."):
        normalized(DIRECTION, THETA, LAYOUT, biases="ones")


def quadratic(diagonal=(4.0, 1.0, -2.0), theta=(1.0, 1.0, 1.0)):
    return Quadratic(torch.diag(torch.tensor(diagonal, dtype=torch.float64)), theta=torch.tensor(theta).double())


def test_random_directions_are_reproducible_and_differ():
    risk = quadratic()
    one, two = random_plane(risk, normalization="none"), random_plane(risk, normalization="none")
    assert torch.equal(one.rows, two.rows)
    assert not torch.equal(one.rows[0], one.rows[1])
    assert not torch.equal(one.rows, random_plane(risk, normalization="none", seed=1).rows)


@pytest.mark.parametrize(
    ("which", "axes", "values"), [("largest", (0, 1), (4, 1)), ("smallest", (1, 2), (1, -2)), ("both", (0, 2), (4, -2))]
)
def test_eigenvector_planes(which, axes, values):
    plane = eigen_plane(quadratic(), which=which, tol=1e-6)
    assert plane.facts["eigenvalues"] == pytest.approx(values)
    for row, position in zip(plane.rows, axes, strict=True):
        assert float(row[position].abs()) == pytest.approx(1.0, abs=1e-5)
    assert plane.lengths == pytest.approx((1.0, 1.0))


def test_gradient_plane_by_hand():
    """On a quadratic g_1 = A (theta + rho g/|g|) lies in the plane, and the marks where the formulas say."""
    risk, rho = quadratic((2.0, 1.0, 0.5)), 0.3
    plane = gradient_plane(risk, rho)
    g = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    v0 = g / g.norm()
    assert torch.allclose(plane.rows[0], v0)
    g1 = g * (1 + rho * v0 / risk.theta)
    place, distance = plane.coordinates(risk.theta + g1)
    assert distance < 1e-12
    assert place[1] > 0
    assert plane.gram.numpy() == pytest.approx(np.eye(2), abs=1e-12)
    (_, ascent), (_, xsam) = plane.marks
    assert ascent == (rho, 0.0)
    assert math.hypot(*xsam) == pytest.approx(2 * rho)
    best = max(
        float(risk.loss(plane.point([2 * rho * math.cos(a), 2 * rho * math.sin(a)]))) for a in np.linspace(0, 1, 200)
    )
    assert float(risk.loss(plane.point(xsam))) == pytest.approx(best, rel=1e-3)


def test_parallel_gradients_are_refused():
    with pytest.raises(ValueError, match=r"directions must not be parallel; got gradients at an angle of .* Choose"):
        gradient_plane(quadratic((1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match=r"directions must be finite and longer than 0; got a gradient of length 0\."):
        gradient_plane(quadratic(theta=(0.0, 0.0, 0.0)))


def test_planes_refuse_parallel_and_empty_directions():
    origin = torch.zeros(3)
    with pytest.raises(ValueError, match=r"directions must not be parallel; got an angle of 0\.0e\+00 between them\."):
        Plane(origin, torch.tensor([[1.0, 0, 0], [-2.0, 0, 0]]), ("a", "b"), "random")
    with pytest.raises(ValueError, match=r"directions must be finite and longer than 0; got lengths 1, 0\. Choose"):
        Plane(origin, torch.tensor([[1.0, 0, 0], [0.0, 0, 0]]), ("a", "b"), "random")
    with pytest.raises(ValueError, match=r"directions must be one or two rows of length 3; got shape \(3, 3\)\."):
        Plane(origin, torch.eye(3), ("a",), "random")


def test_circle_in_a_skewed_plane():
    rows = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    plane = Plane(torch.zeros(3).double(), rows, ("a", "b"), "random")
    ring = circle(plane.gram.numpy(), 0.7)
    assert [float(plane.point(at).norm()) for at in ring[::20]] == pytest.approx([0.7] * 10)


def test_line_reaches_both_ends_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1000, generator=generator)
    plane = line_plane(a, [b], ("a", "b"))
    assert plane.point([0.0]) is a
    assert torch.equal(plane.point([1.0]), b)
    assert torch.allclose(plane.point([0.25]), 0.75 * a + 0.25 * b, atol=1e-6)


def test_plane_through_three_points():
    points = torch.tensor([[0.0, 0, 1], [2.0, 0, 1], [1.0, 3, 1]], dtype=torch.float64)
    plane = line_plane(points[0], list(points[1:]), ("a", "b", "c"))
    assert [place for _, place in plane.marks] == [(0.0, 0.0), (2.0, 0.0), (1.0, 3.0)]
    for point, (_, place) in zip(points, plane.marks, strict=True):
        assert torch.allclose(plane.point(place), point)


def test_lines_refuse_what_spans_nothing():
    a = torch.zeros(3)
    with pytest.raises(ValueError, match=r"checkpoints must be 2 for a line or 3 for the plane .*; got 1\."):
        line_plane(a, [], ("a",))
    with pytest.raises(ValueError, match=r"checkpoints must not lie on one line; got a, b, c\. Pass two"):
        line_plane(a, [a + 1, a + 2], ("a", "b", "c"))
    with pytest.raises(ValueError, match="directions must be finite and longer than 0"):
        line_plane(a, [a], ("a", "b"))


def test_principal_components_are_those_of_numpy():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(6, 9, generator=generator, dtype=torch.float64).cumsum(0)
    plane = pca_plane(list(points), tuple("abcdef"))
    centered = (points - points.mean(0)).numpy()
    _, s, v = np.linalg.svd(centered, full_matrices=False)
    assert plane.facts["explained_variance"] == pytest.approx((s**2 / (s**2).sum())[:2])
    assert np.abs(plane.rows.numpy() @ v[:2].T) == pytest.approx(np.eye(2), abs=1e-9)
    assert torch.equal(plane.point((0.0, 0.0)), points[0])
    offset = (points[1] - points[0]).numpy()
    assert plane.marks[1][1] == pytest.approx(tuple(plane.rows.numpy() @ offset))
    rest = offset - plane.rows.numpy().T @ (plane.rows.numpy() @ offset)
    assert plane.facts["distances"][1] == pytest.approx(np.linalg.norm(rest))
    assert plane.marks[0] == ("a", (0.0, 0.0))
    assert min(plane.marks[-1][1]) > 0, "the end lies right of the beginning, and above"


def test_principal_components_need_three_points_off_a_line():
    a = torch.zeros(3)
    with pytest.raises(ValueError, match=r"checkpoints must be at least 3 for a plane of .*; got 1\. Pass more"):
        pca_plane([a], ("a",))
    with pytest.raises(ValueError, match=r"checkpoints must not lie on one line; got 3 points"):
        pca_plane([a, a + 1, a + 2], ("a", "b", "c"))


def test_architectures_that_differ_name_the_tensor():
    other = ParameterLayout(("w", "b", "k"), (torch.Size((2, 2)), torch.Size((3,)), torch.Size((1, 2, 1, 1))))
    with pytest.raises(ValueError, match=r"got tensor 'b' of shape \(2,\) in one and of shape \(3,\) in two\. Pass"):
        require_same([LAYOUT, other], ("one", "two"))
    short = ParameterLayout(("w", "b"), LAYOUT.shapes[:2])
    with pytest.raises(ValueError, match=r"got tensor 'k' of shape \(1, 2, 1, 1\) in one and missing in two\."):
        require_same([LAYOUT, short], ("one", "two"))
