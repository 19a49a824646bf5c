"""The loss around a point in the coordinates of a scale: e = C u. What several sharpnesses share is computed once.

Scales C of adaptive sharpness: the perturbation of a weight is measured in units of the weight's own size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from hessprobe import checks, estimators, krylov
from hessprobe.errors import NonFiniteError, about
from hessprobe.estimate import Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.hvp import Hessian, engines
from hessprobe.objective.base import Objective, require_objective
from hessprobe.operators import Congruence, Counted, LinearOperator
from hessprobe.sharpness.names import ADAPTIVE, NORMS
from hessprobe.sharpness.result import Cost
from hessprobe.vectors import ProbeStream, row_dots


def scale_of(risk: Objective, adaptive: str, *, eta: float = 0.0) -> Tensor | None:
    """Return the diagonal of C, (d,) in the dtype of theta, or None where C = I.

    A perturbation C u with ||u|| <= rho is a perturbation e with ||C^{-1} e|| <= rho.

    Args:
        risk: the objective; its layout says where each tensor lies.
        adaptive: ``"none"``: C = I. ``"elementwise"``: |w_i|. ``"filter"``: the norm of the filter w[j] that entry i
            belongs to in tensors of two or more dimensions (a row of a matrix, the kernel of an output channel), |w_i|
            in the others. ``"layer"``: the norm of the tensor.
        eta: >= 0, added to every entry, so that weights at 0 can move. It breaks the invariances below.

    Returns:
        With eta = 0 and a transform D that leaves the loss as it is and the origin at 0: ``"elementwise"`` sharpness is
        unchanged by every diagonal D, so by rescaling single neurons of a network of rectifiers; the other two by
        rescaling whole layers.

    Raises:
        TypeError, ValueError: an argument outside its range, or weights that are all 0, so that nothing would move.

    References:
        Kwon et al. (2021), "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
        Networks"; Andriushchenko et al. (2023), "A modern look at the relationship between sharpness and
        generalization"; Mueller et al. (2023), "Normalization layers are all that sharpness-aware minimization needs".
    """
    require_objective("risk", risk)
    checks.one_of("adaptive", adaptive, ADAPTIVE)
    eta = checks.real("eta", eta, low=0)
    if adaptive == "none":
        return None
    parts = [_sizes(tensor, adaptive) for tensor in risk.layout.split(risk.theta).values()]
    scale = risk.layout.join(parts) + eta
    if not bool((scale > 0).any()):
        raise ValueError(
            f"theta must hold a weight other than 0 for adaptive={adaptive!r}; got zeros only. "
            "Pass adaptive='none', or eta > 0."
        )
    return scale


def rescaled(operator: LinearOperator, scale: Tensor | None) -> LinearOperator:
    """Return C A C, the operator whose eigenvalues, trace and norms are the adaptive ones; A itself for C = I."""
    return operator if scale is None else Congruence(operator, scale)


def _sizes(tensor: Tensor, adaptive: str) -> Tensor:
    if adaptive == "layer":
        length: Tensor = tensor.double().norm().to(tensor.dtype)
        return length.expand(tensor.shape)
    if adaptive == "filter" and tensor.ndim >= 2:
        rows: Tensor = tensor.double().flatten(1).norm(dim=1).to(tensor.dtype)
        return rows.view(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape)
    return tensor.abs()


def steepest(slope: Tensor, norm: str) -> Tensor:
    """Return the unit vector of ``norm`` with the largest product with ``slope`` (d,); zeros where the slope is 0.

    g / ||g||_2 for ``"l2"``, sign(g) for ``"linf"``.
    """
    if norm == "linf":
        return slope.sign()
    length = float(slope.double().norm())
    return slope / length if length > 0 else torch.zeros_like(slope)


def dual_norm(slope: Tensor, norm: str) -> float:
    """Return the largest product of ``slope`` (d,) with a unit vector of ``norm``: ||g||_2, or ||g||_1 for linf."""
    return float(slope.double().norm() if norm == "l2" else slope.double().abs().sum())


def within(u: Tensor, rho: float, norm: str) -> Tensor:
    """Return the point of the ball of radius rho >= 0 that is nearest to ``u`` (d,)."""
    if norm == "linf":
        return u.clamp(-rho, rho)
    length = float(u.double().norm())
    return u * (rho / length) if length > rho else u


Callback = Callable[[str, Progress], None]

# Independent uses of the stream "sharpness".
AVERAGE, RESTART, PILOT, NOISE = 0, 1, 2, 3

# A rise of the loss must be this many times the rounding of a loss.
_RESOLVED = 10.0
_NOISE_POINTS = 2
# No loss is worth asking for beyond; its square is still a number in every dtype but half precision.
_WIDEST = 1e6


class UnresolvedRadius(ValueError):
    """A radius at which the rise of the loss drowns in the rounding of losses.

    Args:
        message: what to do instead.
        rho: the radius.
    """

    def __init__(self, message: str, rho: float) -> None:
        super().__init__(message)
        self.rho = rho


class Neighborhood:
    """L(w + C u) - L(w) for u around 0, with gradient C g and Hessian C H C; everything asked of it is counted.

    Parameters are evaluated through the objective: a module is never changed.

    Args:
        risk: the objective, at ``risk.theta``.
        adaptive: which C, see ``scale_of``.
        eta: see ``scale_of``.
        norm: of u: ``"l2"`` or ``"linf"``.
        seed: of everything random, integer >= 0, or a generator to draw one from.
        engine, memory: of the products, see ``hvp.Hessian``.
        trace_rtol: relative half-width to which traces are estimated, in (0, 1).
        callback: called with a stage and a ``Progress``; what it raises ends the work.

    Attributes:
        risk, adaptive, norm, seed: as given.
        scale: diagonal of C (d,), or None for C = I.

    Raises:
        TypeError, ValueError: an argument outside its range.
    """

    def __init__(
        self,
        risk: Objective,
        *,
        adaptive: str = "none",
        eta: float = 0.0,
        norm: str = "l2",
        seed: int | torch.Generator = 0,
        engine: str = "auto",
        memory: int | None = None,
        trace_rtol: float = 0.01,
        callback: Callback | None = None,
    ) -> None:
        self.risk = require_objective("risk", risk)
        self.scale = scale_of(risk, adaptive, eta=eta)
        self.adaptive, self.eta, self.norm = adaptive, eta, checks.one_of("norm", norm, NORMS)
        self.seed = checks.resolve_seed(seed)
        self.trace_rtol = checks.real("trace_rtol", trace_rtol, low=0, high=1, low_open=True, high_open=True)
        self._engine, self._memory, self._callback = engine, memory, callback
        self._losses, self._gradients = 0.0, 0.0
        self._place = engines.place("neighborhood")

    @property
    def cost(self) -> Cost:
        """Everything so far."""
        products = self.operator.matvec_count if "operator" in self.__dict__ else 0.0
        return Cost(self._losses, self._gradients, products)

    @cached_property
    def here(self) -> float:
        """L(w)."""
        self._losses += 1
        return float(self.risk.loss())

    @cached_property
    def gradient(self) -> Tensor:
        """C g, (d,)."""
        self._gradients += 1
        slope = self.risk.gradient()
        if not bool(torch.isfinite(slope).all()):
            raise NonFiniteError("gradient must be finite; got nan or inf at w. Check the weights and the data.")
        return self.scaled(slope)

    @cached_property
    def operator(self) -> Counted:
        """C H C, counted."""
        return Counted(rescaled(self.hessian, self.scale))

    @cached_property
    def hessian(self) -> LinearOperator:
        """H, without scale."""
        return Hessian(self.risk, engine=self._engine, memory=self._memory)

    @cached_property
    def top(self) -> krylov.Eigenpairs:
        """The largest eigenvalue of C H C with its vector."""

        def report(state: krylov.Progress) -> None:
            self.report("eigenvalue", Progress(state.matvecs, state.max_matvecs, state.largest, state.largest_residual))

        found = krylov.eigsh(self.operator, 1, "largest", tol=1e-3, seed=self.seed, callback=report, data_error=False)
        self.report("eigenvalue", Progress(found.matvecs, found.matvecs, float(found.values[0]), 0.0))
        return found

    @cached_property
    def trace(self) -> Estimate:
        """The trace of C H C."""
        return estimators.trace(
            self.operator, rtol=self.trace_rtol, seed=self.seed, callback=lambda state: self.report("trace", state)
        )

    @cached_property
    def gradient_curvature(self) -> float:
        """s^T C H C s for the steepest unit direction s."""
        return self.curvature(steepest(self.gradient, self.norm))

    @cached_property
    def noise(self) -> float:
        """How much rounding blurs a loss: seen at points that differ from w by rounding, at least eps |L|."""
        theta, eps = self.risk.theta, torch.finfo(self.risk.dtype).eps
        stream = self.stream("rademacher")
        found = eps * abs(self.here)
        for index in range(_NOISE_POINTS):
            step = 2 * eps * theta * stream.probe(index, NOISE)
            # Both ways, so that a gradient does not pass for noise.
            around = float(self._losses_at([theta + step, theta - step]).mean())
            found = max(found, abs(around - self.here))
        return found

    def measure_rounding(self) -> None:
        """Measure ``noise`` now, so that its losses are counted here."""
        _ = self.noise

    def scaled(self, vector: Tensor) -> Tensor:
        """Return C v."""
        return vector if self.scale is None else vector * self.scale

    def changes(self, U: Tensor, rho: float) -> Tensor:
        """Return L(w + C u) - L(w) for every row u of ``U`` (k, d), fp64 (k,); one pass over the data.

        Raises:
            NonFiniteError: a loss is nan or infinite; ``rho`` is for the message.
        """
        found = self._losses_at([self.risk.theta + self.scaled(u) for u in U]) - self.here
        _require_finite(found, rho)
        return found

    def slope(self, u: Tensor, rho: float) -> tuple[float, Tensor]:
        """Return L(w + C u) - L(w) and its gradient in u, (d,); one gradient.

        Raises:
            NonFiniteError: either is not finite; ``rho`` is for the message.
        """
        at = (self.risk.theta + self.scaled(u)).detach()
        self._gradients += 1
        # fp64 holds a loss and a gradient of any dtype in one row.
        both = engines.product(self._place and f"{self._place}-slope", at, lambda: self._slope(at))
        _require_finite(both, rho)
        return float(both[0]) - self.here, self.scaled(both[1:].to(at.dtype))

    def _slope(self, at: Tensor) -> Tensor:
        total, slope = torch.zeros((), dtype=torch.float64, device=at.device), torch.zeros_like(at)
        with self.risk.evaluating(), torch.enable_grad():
            for term in self.risk.terms():
                leaf = at.clone().requires_grad_()
                value = term(leaf)
                total += term.weight * value.detach().double()
                if value.requires_grad:
                    (part,) = torch.autograd.grad(value, leaf)
                    slope.add_(part, alpha=term.weight)
        return torch.cat([total[None], slope.double()])

    def curvature(self, u: Tensor) -> float:
        """Return u^T C H C u; one product."""
        return float(self.operator.quadratic_forms(u[None])[0])

    def dot(self, u: Tensor) -> float:
        """Return C g . u."""
        return float(row_dots(self.gradient[None], u[None])[0])

    def stream(self, law: str) -> ProbeStream:
        """Return the probes of this place."""
        return ProbeStream(self.risk.dim, self.seed, law, self.risk.dtype, self.risk.device, "sharpness")

    def directions(self, start: int, stop: int, use: int) -> Tensor:
        """Return random unit vectors as rows: of the sphere for l2, corners of the cube for linf."""
        if self.norm == "linf":
            return self.stream("rademacher").block(start, stop, use)
        return self.stream("sphere").block(start, stop, use) / math.sqrt(self.risk.dim)

    def report(self, stage: str, state: Progress) -> None:
        """Tell the callback."""
        if self._callback is not None:
            self._callback(stage, state)

    def require_resolved(self, change: float, rho: float, first: float, second: float) -> None:
        """Refuse a radius at which the rise of the loss drowns in rounding.

        Args:
            change: size of the rises seen.
            rho: the radius.
            first: the gradient's part of a rise by the second-order model at this radius.
            second: the curvature's part.

        Raises:
            UnresolvedRadius: names the smallest radius, of a doubling sequence, at which it would not.
        """
        limit = _RESOLVED * self.noise
        if abs(change) >= limit or (first == 0.0 and second == 0.0):
            return
        wider, factor = math.inf, 2.0
        while factor < 2.0**40 and wider == math.inf:
            if abs(first) * factor + abs(second) * factor**2 >= limit:
                wider = factor * rho
            factor *= 2.0
        dtype = str(self.risk.dtype).removeprefix("torch.")
        least = f"at least about {wider:.2g} in {dtype}" if math.isfinite(wider) else "larger than anything useful"
        raise UnresolvedRadius(
            about(
                "rho",
                f"must be {least}; got {rho:.3g}, where the rise of a loss of {abs(self.here):.3g} drowns in its "
                f"rounding. Take a larger rho{'' if dtype == 'float64' else ' or float64'}.",
            ),
            rho,
        )

    def _losses_at(self, points: list[Tensor]) -> Tensor:
        self._losses += len(points)
        return engines.product(self._place and f"{self._place}-losses", points, lambda: self._sum(points)).cpu()

    def _sum(self, points: list[Tensor]) -> Tensor:
        total = torch.zeros(len(points), dtype=torch.float64, device=self.risk.device)
        with self.risk.evaluating(), torch.no_grad():
            for term in self.risk.terms():
                total += term.weight * torch.stack([term(point).double() for point in points])
        return total


def _require_finite(values: Tensor, rho: float) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"the loss must be finite within rho; got nan or inf at rho = {rho:.3g}. Lower rho.")


def radii_of(rho: float | list[float] | tuple[float, ...]) -> list[float]:
    """Return the radii as checked floats, in the order given.

    Raises:
        TypeError, ValueError: none given, or one that is not a finite number > 0.
    """
    given = list(rho) if isinstance(rho, list | tuple) else [rho]
    if not given:
        raise ValueError(about("rho", "must hold at least one radius; got none. Pass a number > 0."))
    return [checks.real("rho", one, low=0, low_open=True, high=_WIDEST, hint="A radius is a length.") for one in given]
