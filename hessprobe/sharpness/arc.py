"""The loss along XSAM's arc: from the gradient's direction through that of SAM's gradient and beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.estimators.budget import Progress
from hessprobe.sharpness.average import require_gradient
from hessprobe.sharpness.neighborhood import Neighborhood, steepest
from hessprobe.vectors import gram

ALPHA_MAX, ALPHA_STEP = 2.0, 0.1
# Below this sine the two directions are one as far as the arithmetic can tell.
_PARALLEL = 1e-8


@dataclass(frozen=True)
class Arc:
    """L(w + rho_max v(alpha)) - L(w) along the arc.

    Attributes:
        rho: radius at which SAM's gradient g_1 was taken.
        rho_max: radius of the arc.
        angle: psi between g_0 and g_1, in [0, pi].
        alphas: (n,) fp64.
        rises: (n,) fp64.
        model: (n,) fp64, the same by the second-order model.
        best: alpha*, where the rise is largest.
        at_end: whether that is the largest alpha tried, so that the true maximum may lie beyond.
    """

    rho: float
    rho_max: float
    angle: float
    alphas: Tensor
    rises: Tensor
    model: Tensor
    best: float
    at_end: bool


def arc_profile(
    near: Neighborhood,
    rho: float,
    *,
    rho_max: float | None = None,
    alpha_max: float = ALPHA_MAX,
    alpha_step: float = ALPHA_STEP,
) -> Arc:
    r"""Return the rise of the loss along v(alpha), alpha = 0, step, ..., alpha_max.

    With v_0 = g/||g||, g_1 the gradient at w + rho v_0, v_1 = g_1/||g_1|| and psi the angle between them,

        v(alpha) = (sin((1 - alpha) psi) v_0 + sin(alpha psi) v_1) / sin psi,

    a unit vector: alpha = 0 is the gradient's direction, 1 that of SAM's step, alpha > 1 goes on in the same plane.
    alpha* is where the loss is highest; XSAM steps along v(alpha*). For psi = 0 all v are v_0; for psi = pi the arc is
    not defined, and v_1 is taken for alpha > 0.

    Args:
        near: where; with the l2 norm and C = I (XSAM knows no other).
        rho: > 0.
        rho_max: > 0, twice rho by default.
        alpha_max: end of the grid, > 0.
        alpha_step: distance of its points, in (0, alpha_max].

    Raises:
        TypeError, ValueError: an argument outside its range, or a scaled neighborhood.
        UnsupportedError: a gradient that is exactly 0.
        NonFiniteError: a loss that is not finite.

    References:
        Chen, Zhou (2026), "Revisiting sharpness-aware minimization: a more faithful and effective implementation".
    """
    rho = checks.real("rho", rho, low=0, low_open=True)
    reach = 2 * rho if rho_max is None else checks.real("rho_max", rho_max, low=0, low_open=True)
    last = checks.real("alpha_max", alpha_max, low=0, low_open=True)
    step = checks.real("alpha_step", alpha_step, low=0, high=last, low_open=True)
    require_plain(near)
    require_gradient(near)
    v0 = steepest(near.gradient, "l2")
    v1 = steepest(near.slope(rho * v0, rho)[1], "l2")
    # Not the arc cosine, which loses half of the digits of a small angle.
    angle = 2 * math.atan2(float((v1 - v0).double().norm()), float((v1 + v0).double().norm()))
    alphas = torch.arange(math.floor(last / step + 1e-9) + 1, dtype=torch.float64) * step
    pair = torch.stack([v0, v1])
    coefficients = torch.tensor([slerp(angle, float(alpha)) for alpha in alphas], dtype=torch.float64)
    rises = []
    for index, row in enumerate(coefficients):
        direction = float(row[0]) * v0 + float(row[1]) * v1
        rises.append(near.changes(reach * direction[None], reach))
        near.report("arc", Progress(index + 1, len(alphas), float(rises[-1][0]), 0.0))
    values = torch.cat(rises)
    slopes = gram(near.gradient[None], pair)[0].cpu()
    bends = gram(pair, near.operator.matvecs(pair)).cpu()
    model = (
        reach * coefficients @ slopes + reach**2 * torch.einsum("ni,ij,nj->n", coefficients, bends, coefficients) / 2
    )
    best = int(values.argmax())
    return Arc(rho, reach, angle, alphas, values, model, float(alphas[best]), best == len(alphas) - 1)


def slerp(angle: float, alpha: float) -> tuple[float, float]:
    """Return the coefficients of v_0 and v_1 in v(alpha), see ``arc_profile``."""
    sine = math.sin(angle)
    if sine >= _PARALLEL:
        return math.sin((1 - alpha) * angle) / sine, math.sin(alpha * angle) / sine
    if angle > math.pi / 2:
        return (1.0, 0.0) if alpha == 0.0 else (0.0, 1.0)
    return 1.0 - alpha, alpha


def require_plain(near: Neighborhood) -> None:
    """Refuse a scaled neighborhood or another norm than l2.

    Raises:
        ValueError: it is one.
    """
    if near.scale is not None or near.norm != "l2":
        raise ValueError(
            f"adaptive and norm must be 'none' and 'l2' for the diagnostics of SAM; got {near.adaptive!r} and "
            f"{near.norm!r}. SAM and XSAM are defined there."
        )
