"""What SAM sees at a checkpoint: its gradient against the top eigenvectors, the arc, and the parts of the curvature."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks, estimators, krylov
from hessprobe.errors import NumericalWarning, UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.hvp import GaussNewton
from hessprobe.objective.base import Objective
from hessprobe.operators import Combination, Counted
from hessprobe.sharpness.arc import Arc, arc_profile, require_plain
from hessprobe.sharpness.average import place_of, require_gradient
from hessprobe.sharpness.neighborhood import Neighborhood, steepest
from hessprobe.sharpness.result import Cost
from hessprobe.vectors import gram

DEFAULT_K = 5


@dataclass(frozen=True)
class Alignment:
    """|cos| of two gradients with the top eigenvectors.

    Attributes:
        eigenvalues: (k,) fp64, largest first, with ``residuals`` (k,).
        residuals: ||H v - lambda v||.
        gradient: (k,) fp64, |cos(g, v_i)|.
        sam_gradient: (k,) fp64, |cos(g(w + rho g/||g||), v_i)|.
        gradient_share, sam_gradient_share: squared norm within the span of all k, in [0, 1].
        gradient_norm, sam_gradient_norm: ||g|| and ||g(w + rho g/||g||)||.
        cosine: cos between the two gradients.
        rho: radius of SAM's gradient.
    """

    eigenvalues: Tensor
    residuals: Tensor
    gradient: Tensor
    sam_gradient: Tensor
    gradient_share: float
    sam_gradient_share: float
    gradient_norm: float
    sam_gradient_norm: float
    cosine: float
    rho: float


@dataclass(frozen=True)
class Split:
    """One number of H = G + F, G the Gauss-Newton and F = H - G the functional part.

    Attributes:
        name: ``"trace"``, ``"frob"`` or ``"along the gradient"`` (v^T A v, v = g/||g||).
        whole, gauss_newton, functional: of H, G and F. Norms do not add up.
    """

    name: str
    whole: Estimate
    gauss_newton: Estimate
    functional: Estimate


@dataclass(frozen=True)
class Diagnostics:
    """See ``diagnose``.

    Attributes:
        alignment: with the top eigenvectors.
        arc: the loss along XSAM's arc.
        splits: of the curvature; empty where the risk has no outputs.
        notes: sentences for a reader.
        cost: of everything.
    """

    alignment: Alignment
    arc: Arc
    splits: tuple[Split, ...]
    notes: tuple[str, ...]
    cost: Cost


def diagnose(
    risk: Objective | Neighborhood,
    rho: float,
    *,
    k: int = DEFAULT_K,
    rho_max: float | None = None,
    rtol: float = 0.05,
    **place: Any,
) -> Diagnostics:
    r"""Return how SAM with radius rho relates to the curvature at this point.

    * alignment: along a run of SAM the gradient turns into the top eigenvector (Wen et al., 2023).
    * arc: see ``arc_profile``.
    * split: to first order in rho SAM's gradient adds rho H g/||g||, and Functional-SAM's adds rho (H - G) g/||g||; the
      split says which part of the curvature that is.

    Args:
        risk: the objective, or a plain l2 ``Neighborhood``.
        rho: radius of SAM, > 0.
        k: eigenvectors, >= 1; at most the dimension is used.
        rho_max: radius of the arc; twice rho by default.
        rtol: relative half-width of the traces and norms of the split.
        **place: see ``Neighborhood``; only with an objective.

    Raises:
        TypeError, ValueError: an argument outside its range.
        UnsupportedError: a gradient that is exactly 0.
        NonFiniteError: a loss or gradient that is not finite.

    References:
        Wen, Ma, Li (2023); Singh, Mobahi, Agarwala, Dauphin (2025), "Avoiding spurious sharpness minimization broadens
        applicability of SAM"; Chen, Zhou (2026).
    """
    near = place_of(risk, place)
    require_plain(near)
    rho = checks.real("rho", rho, low=0, low_open=True)
    k = min(checks.positive_int("k", k), near.risk.dim)
    rtol = checks.real("rtol", rtol, low=0, high=1, low_open=True, high_open=True)
    require_gradient(near)
    before = near.cost
    pairs = _top(near, k)
    aligned = _alignment(near, rho, pairs)
    arc = arc_profile(near, rho, rho_max=rho_max)
    notes = []
    if arc.at_end:
        notes.append(f"alpha* is the largest alpha tried, {arc.best:g}; the maximum may lie beyond")
    if not bool((aligned.residuals <= 0.01 * aligned.eigenvalues.abs()).all()):
        notes.append("some eigenvectors are rough (residual above 1 % of the eigenvalue), and so are their cosines")
    splits: tuple[Split, ...] = ()
    spent = 0.0
    try:
        splits, spent = _split(near, rtol, pairs)
    except UnsupportedError as error:
        notes.append(f"no split of the curvature: {error}")
    cost = near.cost - before + Cost(products=spent)
    return Diagnostics(aligned, arc, splits, tuple(notes), cost)


def _top(near: Neighborhood, k: int) -> krylov.Eigenpairs:
    def report(state: krylov.Progress) -> None:
        near.report("eigenvectors", Progress(state.matvecs, state.max_matvecs, state.largest, state.largest_residual))

    with warnings.catch_warnings():
        # The residuals, which are returned, say the same.
        warnings.simplefilter("ignore", NumericalWarning)
        return krylov.eigsh(near.operator, k, "largest", tol=1e-3, seed=near.seed, callback=report, data_error=False)


def _alignment(near: Neighborhood, rho: float, pairs: krylov.Eigenpairs) -> Alignment:
    g = near.gradient
    there = near.slope(rho * steepest(g, "l2"), rho)[1]
    units = torch.stack([steepest(g, "l2"), steepest(there, "l2")])
    cosines = gram(units, pairs.vectors).cpu()
    return Alignment(
        pairs.values.cpu(),
        pairs.residuals.cpu(),
        cosines[0].abs().clamp(max=1.0),
        cosines[1].abs().clamp(max=1.0),
        min(float(cosines[0].square().sum()), 1.0),
        min(float(cosines[1].square().sum()), 1.0),
        float(g.double().norm()),
        float(there.double().norm()),
        float(gram(units[:1], units[1:])[0, 0]),
        rho,
    )


def _split(near: Neighborhood, rtol: float, pairs: krylov.Eigenpairs) -> tuple[tuple[Split, ...], float]:
    """Return trace, Frobenius norm and curvature along the gradient of H, G and H - G, and the products they took.

    Raises:
        UnsupportedError: the risk has no outputs.
    """
    H, G = Counted(near.hessian), Counted(GaussNewton(near.risk))
    F = Combination([H, G], [1.0, -1.0])
    operators = {"whole": H, "gauss_newton": G, "functional": F}
    v = steepest(near.gradient, "l2")[None]
    # First what is cheap: it fails at once where there are no outputs.
    h, g = float(H.quadratic_forms(v)[0]), float(G.quadratic_forms(v)[0])
    rounding = 8 * torch.finfo(near.risk.dtype).eps * (abs(h) + abs(g))
    along = [Estimate(x, ErrorParts(solver=rounding), matvecs=1, method="product", kind="exact") for x in (h, g, h - g)]

    def report(state: estimators.Progress) -> None:
        near.report("split", state)

    whole = estimators.trace(H, rtol=rtol, seed=near.seed, callback=report)
    part = estimators.trace(G, rtol=rtol, seed=near.seed, callback=report)
    # The difference, as the trace of H mostly has that of G as its control variate.
    rest = part.scaled(-1.0).with_(
        value=whole.value - part.value,
        errors=ErrorParts(
            math.hypot(whole.errors.probe, part.errors.probe), None, whole.errors.solver + part.errors.solver
        ),
        df=min(whole.df, part.df),
        support=(-math.inf, math.inf),
        matvecs=whole.matvecs + part.matvecs,
        samples=whole.samples,
        method="difference",
        kind="exact" if whole.kind == part.kind == "exact" else "estimate",
        details={},
    )
    # A few eigenvalues carry most of the norm, and of the variance of what samples it.
    known = pairs.vectors[: H.dim // 2] if H.dim > 1 else None
    norms = {
        name: estimators.frobenius_norm(A, rtol=rtol, deflate=known, seed=near.seed, callback=report)
        for name, A in operators.items()
    }
    return (
        Split("trace", whole, part, rest),
        Split("frob", norms["whole"], norms["gauss_newton"], norms["functional"]),
        Split("along the gradient", *along),
    ), H.matvec_count + G.matvec_count
