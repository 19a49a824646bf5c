"""Directions at a point: random ones in units of the weights, eigenvectors, and the plane of SAM's two gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.hvp import Hessian
from hessprobe.krylov import eigsh
from hessprobe.landscape.names import BIASES, NORMALIZATIONS, RHO
from hessprobe.landscape.plane import Plane
from hessprobe.objective.base import Objective, require_objective
from hessprobe.sharpness.arc import ALPHA_MAX, ALPHA_STEP, slerp
from hessprobe.vectors import ParameterLayout, ProbeStream


def normalized(
    direction: Tensor, theta: Tensor, layout: ParameterLayout, normalization: str = "filter", biases: str = "zero"
) -> Tensor:
    """Return ``direction`` (d,) in units of the weights ``theta`` (d,).

    With w a tensor of two or more dimensions and w[j] its filter j (a row of a matrix, the kernel of an output
    channel), and v the same part of the direction,

        filter: v[j] <- v[j] norm(w[j]) / norm(v[j]),    layer: v <- v norm(w) / norm(v).

    A filter that is 0 gets a direction that is 0.

    Args:
        direction: e.g. standard normal.
        theta: the weights.
        layout: where each tensor lies.
        normalization: ``"filter"``, ``"layer"`` or ``"none"``.
        biases: what becomes of tensors with fewer than two dimensions (biases, scales and shifts of normalization
            layers): ``"zero"`` leaves them where they are (the choice of Li et al. for their figures), ``"weights"``
            takes w itself as direction (their alternative), ``"normalize"`` treats the whole tensor as one filter.

    Raises:
        ValueError: an unknown name.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), "Visualizing the loss landscape of neural nets".
    """
    checks.one_of("normalization", normalization, NORMALIZATIONS)
    checks.one_of("biases", biases, BIASES)
    if normalization == "none":
        return direction
    pairs = zip(layout.split(direction).values(), layout.split(theta).values(), strict=True)
    return layout.join([_tensor(v, w, normalization, biases) for v, w in pairs])


def _tensor(v: Tensor, w: Tensor, normalization: str, biases: str) -> Tensor:
    if w.ndim < 2 and biases != "normalize":
        return torch.zeros_like(w) if biases == "zero" else w.clone()
    rows = 1 if w.ndim < 2 or normalization == "layer" else len(w)
    flat, weights = v.double().reshape(rows, -1), w.double().reshape(rows, -1)
    own = flat.norm(dim=1, keepdim=True)
    factor = weights.norm(dim=1, keepdim=True) / torch.where(own > 0, own, 1)
    scaled: Tensor = (flat * factor).to(w.dtype).view_as(w)
    return scaled


def random_plane(
    risk: Objective, k: int = 2, *, normalization: str = "filter", biases: str = "zero", seed: int = 0
) -> Plane:
    """Return the plane (k = 2) or line (k = 1) of standard normal directions in units of the weights.

    Args:
        risk: its ``theta`` is the center.
        k: 1 or 2.
        normalization: see ``normalized``.
        biases: see ``normalized``.
        seed: >= 0; the directions are those of a counter-based stream, the same on every device.

    Raises:
        TypeError, ValueError: arguments outside their ranges, or weights that are all 0.
    """
    require_objective("risk", risk)
    k = checks.positive_int("k", k)
    probes = ProbeStream(risk.dim, checks.resolve_seed(seed), "gaussian", risk.dtype, risk.device).block(0, k)
    rows = torch.stack([normalized(row, risk.theta, risk.layout, normalization, biases) for row in probes])
    unit = "" if normalization == "none" else f", {normalization}-normalized"
    labels = tuple(f"random direction {index + 1}{unit}" for index in range(k))
    facts = {"normalization": normalization, "biases": biases if normalization != "none" else "normal", "seed": seed}
    return Plane(risk.theta, rows, labels, "random", facts=facts)


def eigen_plane(
    risk: Objective, k: int = 2, *, which: str = "largest", engine: str = "auto", tol: float = 1e-3, seed: int = 0
) -> Plane:
    """Return the plane (or line) of eigenvectors of the Hessian, of unit length.

    Args:
        risk: its ``theta`` is the center.
        k: 1 or 2.
        which: ``"largest"``, ``"smallest"``, ``"magnitude"``, or ``"both"``: the top and the bottom one (k = 2).
        engine: of the products, see ``Hessian``.
        tol: relative residual.
        seed: of the random start.

    Raises:
        TypeError, ValueError: arguments outside their ranges.
        NonFiniteError: a product that is not finite.
    """
    require_objective("risk", risk)
    pairs = eigsh(
        Hessian(risk, engine=engine), k if which != "both" else 1, which, tol=tol, seed=seed, data_error=False
    )
    values = [float(value) for value in pairs.values[:k]]
    labels = tuple(f"eigenvector of {value:.4g}" for value in values)
    facts = {"eigenvalues": values, "residuals": [float(r) for r in pairs.residuals[:k]], "matvecs": pairs.matvecs}
    return Plane(risk.theta, pairs.vectors[:k].to(risk.dtype), labels, "eigen", facts=facts)


def gradient_plane(risk: Objective, rho: float = RHO, *, rho_max: float | None = None) -> Plane:
    """Return the plane of the gradient and of SAM's gradient, in which XSAM searches, on an orthonormal basis.

    With v_0 = g / norm(g), g_1 the gradient at theta + rho v_0 and v_1 = g_1 / norm(g_1): the first axis is v_0, the
    second what of v_1 is orthogonal to it. Marked are the ascent point theta + rho v_0 and XSAM's point theta + rho_max
    v(alpha*), where the loss is largest along the arc of radius rho_max (see ``sharpness.arc_profile``).

    Args:
        risk: its ``theta`` is the center.
        rho: > 0.
        rho_max: > 0, twice rho by default.

    Raises:
        TypeError, ValueError: arguments outside their ranges, a gradient that is 0, or two parallel gradients.
    """
    require_objective("risk", risk)
    rho = checks.real("rho", rho, low=0, low_open=True)
    reach = 2 * rho if rho_max is None else checks.real("rho_max", rho_max, low=0, low_open=True)
    first = _unit(risk.gradient())
    second = _unit(risk.gradient(risk.theta + (rho * first).to(risk.dtype)))
    psi = 2 * math.atan2(float((second - first).norm()), float((second + first).norm()))
    if not 1e-4 < psi < math.pi - 1e-4:
        raise ValueError(
            f"directions must not be parallel; got gradients at an angle of {psi:.1e} at rho={rho:g}. "
            "Choose other directions, or a larger rho."
        )
    across = _unit(second - (second @ first) * first)
    steps = [round(i * ALPHA_STEP, 12) for i in range(round(ALPHA_MAX / ALPHA_STEP) + 1)]
    losses = []
    for alpha in steps:
        c0, c1 = slerp(psi, alpha)
        losses.append(_quiet_loss(risk, risk.theta + (reach * (c0 * first + c1 * second)).to(risk.dtype)))
    best = steps[max(range(len(steps)), key=lambda i: losses[i])]
    c0, c1 = slerp(psi, best)
    place = (reach * (c0 + c1 * math.cos(psi)), reach * c1 * math.sin(psi))
    marks = ((f"SAM ascent point (rho = {rho:g})", (rho, 0.0)), (f"XSAM point (alpha* = {best:g})", place))
    labels = ("along the gradient", "along the rest of SAM's gradient")
    facts = {"rho": rho, "rho_max": reach, "angle": psi, "alpha": best}
    rows = torch.stack([first, across]).to(risk.dtype)
    return Plane(risk.theta, rows, labels, "gradient", marks=marks, facts=facts)


def _unit(vector: Tensor) -> Tensor:
    long = vector.double()
    length = float(long.norm())
    if not 0 < length < math.inf:
        raise ValueError(
            f"directions must be finite and longer than 0; got a gradient of length {length:.3g}. "
            "Choose other directions."
        )
    return long / length


def _quiet_loss(risk: Objective, theta: Tensor) -> float:
    value = float(Objective.loss(risk, theta))
    return value if math.isfinite(value) else -math.inf
