from __future__ import annotations

import math

import nets
import oracles
import pytest
import torch
from sharp_objectives import Function, toy

from hessprobe.errors import NonFiniteError
from hessprobe.objective import Quadratic, Rosenbrock
from hessprobe.sharpness import Neighborhood, ascent_direction, worst_direction

VALUES = torch.tensor([5.0, 3.0, 1.0, 0.2, -0.5, -2.0], dtype=torch.float64)


def test_quadratic_at_its_minimum_is_half_lambda_rho_squared_along_the_eigenvector():
    A = oracles.symmetric(VALUES)
    risk = Quadratic(A, theta=torch.zeros(6).double())
    for one, rho in zip(worst_direction(risk, [0.1, 2.0]), [0.1, 2.0], strict=True):
        assert one.value == pytest.approx(2.5 * rho**2, rel=1e-9)
        assert one.predicted.value == pytest.approx(2.5 * rho**2, rel=1e-9)
        assert one.predicted.curvature_only == pytest.approx(2.5 * rho**2, rel=1e-9)
        assert one.predicted.first_order == 0.0
        assert one.estimate.kind == "lower bound"
        assert one.model_ratio == pytest.approx(1.0, rel=1e-9)
        top = torch.linalg.eigh(A).eigenvectors[:, -1]
        assert abs(float(one.direction @ top)) == pytest.approx(rho, rel=1e-6)


def test_quadratic_elsewhere_reaches_the_exact_maximum():
    risk = Quadratic(oracles.symmetric(VALUES))
    for one in worst_direction(risk, [0.01, 0.3, 5.0]):
        assert one.value == pytest.approx(one.predicted.value, rel=1e-6)
        assert one.value > ascent_direction(risk, one.rho)[0].value


def test_linf_on_a_diagonal_quadratic_is_a_corner():
    c = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    one = worst_direction(
        Quadratic(c.diag(), theta=torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)), 0.5, norm="linf"
    )[0]
    # Each coordinate by itself: c ((|x| + rho)^2 - x^2) / 2.
    x = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    assert one.value == pytest.approx(float((c * ((x + 0.5) ** 2 - x**2)).sum() / 2), rel=1e-12)
    assert one.direction.tolist() == [0.5, -0.5, 0.5]
    assert one.predicted.value == pytest.approx(one.value, rel=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("start", [(-1.2, 1.0), (0.3, -0.4), (1.0, 1.0)])
@pytest.mark.parametrize("rho", [0.05, 0.5, 1.5])
def test_brute_force_in_the_plane(norm, start, rho):
    risk = Rosenbrock(theta=torch.tensor(start).double())
    one = worst_direction(risk, rho, norm=norm)[0]
    side = torch.linspace(-rho, rho, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    if norm == "l2":
        angles = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)
        grid = torch.cat([grid[grid.norm(dim=1) <= rho], rho * torch.stack([angles.cos(), angles.sin()], 1)])
    x, y = (risk.theta + grid).T
    best = float((100 * (y - x**2) ** 2 + (1 - x) ** 2).max() - risk.loss())
    assert best * 0.9999 <= one.value <= best * 1.001


def test_wen_ma_li_limit_of_the_worst_direction():
    risk = toy([0.6, 0.4, 0.0, 0.0])
    found = [one.value / one.rho**2 for one in worst_direction(risk, [0.1, 0.01, 0.001])]
    assert found == pytest.approx([9.3266, 9.32007, 9.32000], abs=6e-5)


def test_values_never_fall_with_the_radius_and_keep_the_order_asked_for():
    bump = Function([lambda x: torch.exp(-((x[0] - 0.3) ** 2 + x[1] ** 2) * 20)], [0.0, 0.05])
    radii = [1.0, 0.1, 0.3, 3.0]
    found = worst_direction(bump, radii)
    assert [one.rho for one in found] == radii
    by_radius = sorted(found, key=lambda one: one.rho)
    values = [one.value for one in by_radius]
    assert values == sorted(values)
    # The top of the bump lies inside the larger balls: the maximum is inside, too.
    summit = 1 - float(bump.loss())
    assert [one.value for one in by_radius[2:]] == pytest.approx([summit, summit], rel=1e-4)
    for one in found:
        assert float(one.direction.norm()) <= one.rho * (1 + 1e-12)
        assert float(bump.loss(bump.theta + one.direction) - bump.loss()) == pytest.approx(one.value, rel=1e-12)


def test_network_worst_is_above_ascent_and_above_what_random_search_finds():
    risk = nets.mlp().risk()
    near = Neighborhood(risk)
    worst, ascent = worst_direction(near, 0.5)[0], ascent_direction(near, 0.5)[0]
    random = near.changes(0.5 * near.directions(0, 200, 9), 0.5).max()
    assert worst.value > ascent.value * 1.01
    assert worst.value > float(random)
    assert worst.value == max(worst.starts.values())
    assert set(worst.starts) == {"gradient", "eigenvector", "-eigenvector", "model", "random 1", "random 2"}


def test_top_of_a_hill_has_no_rise():
    risk = Function([lambda x: -(x**2).sum()], [0.0, 0.0])
    one = worst_direction(risk, 0.5)[0]
    assert (one.value, one.predicted.value) == (0.0, 0.0)
    assert one.direction.tolist() == [0.0, 0.0]


def test_gradients_and_losses_are_counted_where_they_happen():
    risk = toy([0.5, 0.4, 0.3, 0.4])
    ones = worst_direction(risk, [0.1, 0.2], predict=False, steps=5, restarts=1)
    assert sum(one.cost.gradients for one in ones) == risk.calls[True]
    assert sum(one.cost.losses for one in ones) == risk.calls[False]
    assert [one.cost.products for one in ones] == [0.0, 0.0]
    # Radius 0.1: the gradient, two starts with up to two steps, of which both go on for three.
    assert ones[0].cost.gradients <= 1 + 2 * (1 + 2 + 3)


def test_rejects_bad_arguments_and_blurred_radii():
    risk = toy([0.5, 0.4, 0.3, 0.4])
    with pytest.raises(ValueError, match=r"rho must be a number in \(0, 1e\+06\]; got -1. A radius is a length."):
        worst_direction(risk, -1)
    with pytest.raises(ValueError, match=r"rho must hold at least one radius; got none. Pass a number > 0."):
        worst_direction(risk, [])
    with pytest.raises(ValueError, match=r"steps must be an integer >= 0; got -1."):
        worst_direction(risk, 0.1, steps=-1)
    with pytest.raises(ValueError, match=r"norm must be one of l2, linf; got 'l1'"):
        worst_direction(risk, 0.1, norm="l1")
    with pytest.raises(TypeError, match=r"risk must be an objective where seed is given; got a Neighborhood."):
        worst_direction(Neighborhood(risk), 0.1, seed=1)
    with pytest.raises(ValueError, match=r"rho must be at least about .* in float64; got 1e-17, where the rise"):
        worst_direction(risk, 1e-17)
    steep = Function([lambda x: torch.exp(x[0] ** 2)], [1.0])
    with pytest.raises(NonFiniteError, match=r"must be finite within rho; got nan or inf at rho = 100. Lower rho."):
        worst_direction(steep, 100.0)


def test_smallest_usable_radius_is_usable():
    risk = toy([0.5, 0.4, 0.3, 0.4])
    with pytest.raises(ValueError, match=r"drowns in its rounding") as raised:
        ascent_direction(risk, 1e-18)
    least = float(str(raised.value).split("about ")[1].split(" ")[0])
    one = ascent_direction(risk, 1.05 * least)[0]
    assert one.value == pytest.approx(one.predicted.value, rel=0.3)
