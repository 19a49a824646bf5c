"""(phi, psi, mu)-sharpness from losses alone: R_rho = phi(E psi((L(x + rho u) - L(x)) / rho^2))."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NonFiniteError, about
from hessprobe.estimate import Estimate
from hessprobe.estimators.budget import Callback, Progress
from hessprobe.hvp import Hessian
from hessprobe.objective.base import BatchLoss, Objective, require_objective
from hessprobe.universal.definition import Measure
from hessprobe.universal.law import law_error
from hessprobe.universal.plugin import finish, plug_in
from hessprobe.universal.products import draws, find_point
from hessprobe.universal.samplers import Point, rademacher
from hessprobe.universal.spectra import Spectrum

# A difference of losses must be this many times the rounding of one loss, for a per cent of accuracy.
_RESOLVED = 100.0
# Directions that decide whether differences are resolved, and the widest radius tried in search of one that is.
_SCOUTS, _WIDEST = 8, 1e6
_BLOCK = 1 << 23
_MOST_POINTS = 64


def evaluate_from_losses(
    measure: Measure,
    risk: Objective,
    rho: float,
    *,
    antithetic: bool = True,
    levels: int = 1,
    n_probes: int = 256,
    seed: int | torch.Generator = 0,
    correct_bias: bool = False,
    vectorize: bool | None = None,
    point: Point | None = None,
    spectrum: Spectrum | None = None,
    callback: Callback | None = None,
) -> Estimate:
    r"""Estimate R_rho = phi(E psi(t)) from loss values, without a derivative.

        plain:       t = 2c (L(x + rho u) - L(x)) / rho^2                   = c u^T H u + 2c g.u / rho + O(rho),
        antithetic:  t = 2c (L(x + rho u) + L(x - rho u) - 2 L(x)) / (2 rho^2) = c u^T H u + O(rho^2).

    Away from a critical point the plain form does not tend to S: the gradient term grows like 1/rho. For mu = N(0, I)
    and c = 1/2, Var(t) = ||g||^2/rho^2 + ||H||_F^2/2 + g . grad Tr H + O(rho^2). The antithetic pair has no such term;
    R_rho - S = O(rho^2) everywhere. Richardson extrapolation from rho, rho/2, ... with the same directions
    raises the order to 2 * levels (for the plain form at critical points of symmetric mu only).

    Args:
        measure: phi, psi, mu and c.
        risk: the objective; it is evaluated functionally, so a module is never changed.
        rho: radius > 0: the displacement is rho u, of length about rho sqrt(d) for u ~ N(0, I).
        antithetic: take both +u and -u.
        levels: radii rho, rho/2, ..., rho/2^(levels - 1), >= 1.
        n_probes: draws of u, at least ``measure.minimum``.
        seed: integer >= 0, or a generator to draw one from.
        correct_bias: subtract the jackknife estimate of the plug-in bias.
        vectorize: evaluate many points in one vmapped call; None: where the first batch allows it.
        point: what an x-dependent mu reads; found from the objective where None.
        spectrum: of the Hessian, where known: the error is then that of the law of t, see ``law``. Without it that of a
            ``skewed`` measure comes from the sample, and its interval covers less than it says.
        callback: called with a ``Progress`` (in loss evaluations) after each block.

    Returns:
        The estimate, in ``matvecs`` only what finding the point took. ``errors.solver``: what the rounding of losses
        may do, and with two or more levels the change by the last extrapolation. ``details`` as in ``evaluate`` and:
        ``losses`` (evaluations over all data), ``rho``, ``antithetic``, ``levels``, ``by_radius`` (phi at each radius),
        ``displacement`` (mean norm of rho u), ``vectorized``.

    Raises:
        TypeError, ValueError: an argument outside its range; rho so small that the differences of losses drown in
            rounding (the message names the smallest usable one).
        NonFiniteError: a loss, an expectation, or phi of it is not finite.

    Warns:
        NumericalWarning: see ``evaluate``.
    """
    started = time.perf_counter()
    require_objective("risk", risk)
    rho = checks.real("rho", rho, low=0, low_open=True, high=_WIDEST, hint="||rho u|| is about rho sqrt(d).")
    levels = checks.positive_int("levels", levels)
    count, number = draws(measure, n_probes), checks.resolve_seed(seed)
    at, spent = (point, 0.0) if point is not None else find_point(measure.mu, Hessian(risk), risk, number)
    lines = _Lines(risk, measure, at, number, antithetic, vectorize)
    radii = [rho / 2**j for j in range(levels)]
    lines.require_resolved(radii[-1])
    t = lines.table(count, radii, callback)
    value, slope = extrapolated(measure, t, radii, measure.mass(risk.dim))
    found = plug_in(value, slope)
    rounding = _rounding_effect(measure, t, radii, lines.rounding * 2 * abs(measure.c), measure.mass(risk.dim))
    by_radius = [measure.value(measure.mass(risk.dim) * measure.samples(column).mean(0))[0] for column in t.T]
    law = None
    if spectrum is not None:
        law = law_error(measure, spectrum, count, correct_bias=correct_bias, mass=measure.mass(risk.dim), seed=number)
    return finish(
        found,
        law=law,
        correct_bias=correct_bias,
        name=measure.name,
        draws=count,
        fixed=measure.mu.fixed,
        known_square=0.0 if measure.norm else None,
        matvecs=spent,
        solver=rounding + _truncation(by_radius, radii),
        method=f"losses/{measure.mu.name}" + ("+antithetic" if antithetic else "") + ("+richardson" * (levels > 1)),
        seconds=time.perf_counter() - started,
        details={"rho": rho, "levels": levels, "by_radius": by_radius, **lines.remarks(rho)},
    )


def extrapolated(measure: Measure, t: Tensor, radii: list[float], mass: float) -> tuple[Measure, Tensor]:
    """Return the measure whose phi extrapolates those of all radii to 0, and the psi values it is to be applied to.

    Args:
        measure: the measure at one radius.
        t: (n, levels), one column a radius.
        radii: as many.
        mass: of mu.
    """
    blocks = [measure.samples(column) for column in t.T]
    width = blocks[0].shape[1]
    weights = richardson_weights(radii)

    def phi(s: Tensor) -> Tensor:
        parts = [weight * measure.phi(mass * s[j * width : (j + 1) * width]) for j, weight in enumerate(weights)]
        return torch.stack([part.reshape(()) for part in parts]).sum()

    joint = Measure(phi, measure.psi, measure.mu, measure.c, measure.name, measure.minimum)
    return joint, torch.cat(blocks, 1)


def richardson_weights(radii: list[float]) -> list[float]:
    """Return w_j, of sum 1, with sum_j w_j F(rho_j) = F(0) for every polynomial F in rho^2 of degree < levels."""
    squares = [rho**2 for rho in radii]
    return [
        math.prod(other / (other - own) for k, other in enumerate(squares) if k != j) for j, own in enumerate(squares)
    ]


@dataclass
class _Lines:
    """Losses along lines through x.

    Attributes:
        risk, measure, point, seed: what is evaluated where.
        antithetic: both ways along each line.
        here, rounding: L(x), and how much rounding blurs it.
        vectorized: whether points go through the model together; None until the first batch has decided it.
        losses: evaluations over all data so far.
        mean_norm: mean ||u|| of the draws.
    """

    risk: Objective
    measure: Measure
    point: Point
    seed: int
    antithetic: bool
    vectorized: bool | None
    losses: int = 0
    mean_norm: float = 0.0

    def __post_init__(self) -> None:
        self.here = float(self.risk.loss())
        self.losses += 1
        self.rounding = self._noise()

    def table(self, count: int, radii: list[float], callback: Callback | None) -> Tensor:
        """Return t of ``count`` draws at every radius, fp64 (count, levels)."""
        signs = (1.0, -1.0) if self.antithetic else (1.0,)
        each = len(radii) * len(signs)
        rows = max(min(_BLOCK // self.risk.dim, _MOST_POINTS) // each, 1)
        parts, norms = [], 0.0
        for start in range(0, count, rows):
            U = self._directions(start, min(start + rows, count))
            norms += float(U.double().norm(dim=1).sum())
            parts.append(torch.stack([self._changes(U, rho, signs) / rho**2 for rho in radii], 1))
            if callback is not None:
                callback(Progress(self.losses, count * each + 1, math.nan, math.inf))
        self.mean_norm = norms / count
        return 2 * self.measure.c * torch.cat(parts)

    def remarks(self, rho: float) -> dict[str, Any]:
        """Return what a reader of the result wants to know about how it was made."""
        return {
            "losses": self.losses,
            "antithetic": self.antithetic,
            "displacement": rho * self.mean_norm,
            "vectorized": self.vectorized,
        }

    def require_resolved(self, rho: float) -> None:
        """Refuse a radius at which the differences drown in the rounding of the losses.

        Raises:
            ValueError: names the smallest radius, of a doubling sequence, at which they do not.
        """
        U = self._directions(0, 1 if self.measure.mu.fixed else _SCOUTS)
        if self._resolved(U, rho):
            return
        wider = 2 * rho
        while wider < _WIDEST and not self._resolved(U, wider):
            wider *= 2
        dtype = str(self.risk.dtype).removeprefix("torch.")
        size = f"the differences of losses of size {abs(self.here):.3g} drown in the rounding of {dtype}"
        if wider >= _WIDEST:
            raise ValueError(
                about(
                    "rho",
                    f"must be such that losses differ; got {rho:.3g}, where {size}, as at every radius up to "
                    f"{_WIDEST:g}. The loss is flat or linear along these directions: use products in place of losses.",
                )
            )
        more = "" if dtype == "float64" else ", float64"
        raise ValueError(
            about(
                "rho",
                f"must be >= {wider:.2g} for {dtype} at its smallest; got {rho:.3g}, where {size}. "
                f"Take a larger rho, fewer levels{more}, or products in place of losses.",
            )
        )

    def _noise(self) -> float:
        """Return how much rounding blurs a loss: seen at points that differ from x by rounding, at least eps |L|."""
        eps = torch.finfo(self.risk.dtype).eps
        theta = self.risk.theta
        noise = eps * abs(self.here)
        for index in range(_SCOUTS // 2):
            signs = rademacher().rows(index, index + 1, Point(self.risk.dim), dtype=theta.dtype, device=theta.device)
            step = 2 * eps * theta * signs[0]
            # Both ways, so that a gradient does not pass for noise.
            around = self._loss_rows(torch.stack([theta + step, theta - step])).mean()
            noise = max(noise, abs(float(around) - self.here))
        return noise

    def _resolved(self, U: Tensor, rho: float) -> bool:
        signs = (1.0, -1.0) if self.antithetic else (1.0,)
        # A loss far from that at x (an overflow on the way to wide radii) resolves nothing either way.
        changes = self._changes(U, rho, signs, finite=False).abs()
        return bool(changes.nan_to_num(math.inf).median() >= _RESOLVED * self.rounding) and bool(changes.median() > 0)

    def _changes(self, U: Tensor, rho: float, signs: tuple[float, ...], *, finite: bool = True) -> Tensor:
        """Return the mean over signs of L(x + sign rho u) - L(x), fp64 (k,)."""
        total = torch.zeros(len(U), dtype=torch.float64)
        for sign in signs:
            found = self._loss_rows(self.risk.theta + (sign * rho) * U).cpu()
            if finite and not bool(torch.isfinite(found).all()):
                raise NonFiniteError(
                    f"losses must be finite at radius rho; got {float(found[~torch.isfinite(found)][0])} at "
                    f"rho = {rho:.3g}, where ||rho u|| is about {rho * float(U[0].norm()):.3g}. Take a smaller rho."
                )
            total += (found - self.here) / len(signs)
        return total

    def _loss_rows(self, points: Tensor) -> Tensor:
        total = torch.zeros(len(points), dtype=torch.float64, device=points.device)
        with self.risk.evaluating(), torch.no_grad():
            for term in self.risk.terms():
                total += term.weight * self._term_rows(term, points).double()
        self.losses += len(points)
        return total

    def _term_rows(self, term: BatchLoss, points: Tensor) -> Tensor:
        if self.vectorized is None:
            self.vectorized = _vectorizes(term, points[:1])
        if self.vectorized:
            values: Tensor = torch.func.vmap(term)(points)
            return values
        return torch.stack([term(row) for row in points])

    def _directions(self, start: int, stop: int) -> Tensor:
        where = {"dtype": self.risk.dtype, "device": self.risk.device}
        return self.measure.mu.rows(start, stop, self.point, seed=self.seed, **where)  # type: ignore[arg-type]  # fits


def _vectorizes(term: BatchLoss, points: Tensor) -> bool:
    """Return whether this loss runs under vmap and gives there what it gives outside."""
    function: Callable[[Tensor], Tensor] = torch.func.vmap(term)
    try:
        together = function(points)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        # What a model cannot do under vmap it says in many ways (data-dependent branches, .item(), missing rules);
        # evaluated point by point, a real failure shows itself again.
        return False
    apart = term(points[0])
    close = 100 * torch.finfo(points.dtype).eps * max(abs(float(apart)), 1e-30)
    return abs(float(together[0]) - float(apart)) <= close or not math.isfinite(float(apart))


def _truncation(by_radius: list[float], radii: list[float]) -> float:
    """Return the change by the last extrapolation, 0 for one radius, whose R_rho is then what is measured."""
    if len(radii) < 2:
        return 0.0
    full = sum(w * v for w, v in zip(richardson_weights(radii), by_radius, strict=True))
    less = sum(w * v for w, v in zip(richardson_weights(radii[1:]), by_radius[1:], strict=True))
    return abs(full - less)


def _rounding_effect(measure: Measure, t: Tensor, radii: list[float], noise: float, mass: float) -> float:
    """Return what an error of ``noise`` in L(x), common to all draws, changes in phi."""
    shift = torch.tensor([noise / rho**2 for rho in radii], dtype=t.dtype)
    joint, samples = extrapolated(measure, t, radii, mass)
    _, shifted = extrapolated(measure, t + shift, radii, mass)
    return abs(joint.value(shifted.mean(0))[0] - joint.value(samples.mean(0))[0])
