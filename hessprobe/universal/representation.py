"""Universality as a tool: (phi, psi, mu) for a given continuous function of the Hessian's eigenvalues.

Eigenvalues from their elementary symmetric functions, and which of them an error there leaves indistinct.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NonFiniteError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.budget import Callback
from hessprobe.hvp import Hessian
from hessprobe.objective.base import Objective
from hessprobe.operators import settled
from hessprobe.universal.definition import Measure
from hessprobe.universal.products import DEFAULT_DRAWS, Forms, draws, evaluate
from hessprobe.universal.samplers import Point, gaussian

# Roots count as one multiple root up to this many times the radius to which a change of the polynomial by its error
# spreads a multiple root: the bound on the change is met within such a factor.
_SPREAD = 2.0
# Roundings in an integral: those of a dozen eigenvalues and logarithms.
ROUNDING = 4.0
# Standard errors that an integral from random directions may be off by.
_SIGMAS = 2.0


@dataclass(frozen=True, eq=False)
class SymmetricSystem:
    """f of the eigenvalues l_i of a matrix from integrals y_k = det(I + s_k H)^(-1/2).

    Attributes:
        f: (d,) eigenvalues, descending -> number.
        solve: (u, m) matrix that takes y^(-2) - 1 to e_1, ..., e_u, the elementary symmetric functions of l / scale.
        dim: d >= u; eigenvalues beyond the u-th are 0.
        scale: bound on the eigenvalues, > 0.
    """

    f: Callable[[Tensor], Tensor]
    solve: Tensor
    dim: int
    scale: float

    def value(self, y: Tensor, slack: Tensor | None = None) -> Tensor:
        """Return f of the eigenvalues behind ``y`` (m,); see ``eigenvalues`` for ``slack`` (u,)."""
        found = eigenvalues(self._symmetric(y), slack) * self.scale
        padded = torch.cat([found, found.new_zeros(self.dim - len(found))])
        return self.f(padded.sort(descending=True).values)

    def indistinct(self, y: Tensor, slack: Tensor) -> bool:
        """Return whether some of the eigenvalues behind ``y`` cannot be told apart; see ``eigenvalues``."""
        found = _roots(self._symmetric(y))
        return len(_groups(found, slack)) < len(found)

    def rounding_error(self, y: Tensor) -> Tensor:
        """Return how far rounding of ``y`` may move each e_j, (u,)."""
        size = self.solve.to(y.device).abs() @ (y.detach() ** -2).abs()
        return ROUNDING * torch.finfo(torch.float64).eps * size

    def sampling_error(self, samples: Tensor) -> Tensor:
        """Return how far the mean of ``samples`` (n, m) may move each e_j, to first order: two standard errors."""
        mean = samples.mean(0)
        influence = (-2 * mean**-3 * (samples - mean)) @ self.solve.to(samples.device).T
        return _SIGMAS * influence.std(0) / math.sqrt(len(samples))

    def _symmetric(self, y: Tensor) -> Tensor:
        return self.solve.to(y.device) @ (y**-2 - 1)


def eigenvalues(symmetric: Tensor, slack: Tensor | None = None) -> Tensor:
    """Return the real parts of the roots of p(x) = x^m - e_1 x^(m-1) + e_2 x^(m-2) - ..., descending.

    An error of size delta in p moves a simple root in proportion, and spreads a k-fold one into a ring of radius about
    delta^(1/k), whose center moves in proportion again. Roots that ``slack`` leaves indistinct are therefore replaced
    by their mean, each of them.

    Differentiable in ``symmetric``: where k roots equal c, p(c + t) = t^k q(t), a change dp of p changes the factor
    with these roots by the terms of dp(c + t) / q(t) below t^k, and so their mean by -1/k times the coefficient of
    t^(k-1); for k = 1 that is -dp(c) / p'(c).

    Args:
        symmetric: (e_1, ..., e_m), fp64.
        slack: (m,) >= 0, how far each e_j may be off; None for exact ones, where only equal roots are one.

    Raises:
        NonFiniteError: an entry is nan or infinite.
    """
    found = _roots(symmetric.detach())
    groups = _groups(found, torch.zeros_like(symmetric) if slack is None else slack)
    means = torch.cat([found[i:j].mean().expand(j - i) for i, j in groups])
    if not symmetric.requires_grad:
        return means.real
    signs = (-1.0) ** torch.arange(1, len(symmetric) + 1, dtype=symmetric.dtype, device=symmetric.device)
    coefficients = torch.cat([symmetric.new_ones(1), signs * symmetric]).to(means.dtype)
    moved = []
    for i, j in groups:
        k, center = j - i, means[i]
        inverse = _inverse_series([_taylor(coefficients.detach(), center, n) for n in range(k, 2 * k)])
        change = sum((_taylor(coefficients, center, n) * inverse[k - 1 - n] for n in range(k)), start=0 * center)
        moved.append((center - (change - change.detach()) / k).expand(k))
    return torch.cat(moved).real


def _roots(symmetric: Tensor) -> Tensor:
    """Return the complex roots as they come, by descending real part."""
    size = len(symmetric)
    signs = (-1.0) ** torch.arange(size, dtype=torch.float64, device=symmetric.device)
    companion = torch.diag(torch.ones(size - 1, dtype=torch.float64, device=symmetric.device), -1)
    companion = torch.cat([(signs * symmetric)[None, :], companion[1:]])
    if not bool(torch.isfinite(companion).all()):
        raise NonFiniteError("E psi must be positive and finite; got 0, nan or inf. Draw more, or lower scale=.")
    values: Tensor = torch.linalg.eigvals(companion)
    return values[values.real.argsort(descending=True)]


def _groups(values: Tensor, slack: Tensor) -> list[tuple[int, int]]:
    """Return (start, stop) of the runs of sorted roots that an error of p within ``slack`` makes of one root.

    The largest run goes first; what lies on either side of it is divided in the same way.
    """
    points, errors = values.cpu().tolist(), slack.detach().cpu().tolist()
    open_runs, done = [(0, len(points))], []
    while open_runs:
        start, stop = open_runs.pop()
        i, j = next(
            (i, i + size)
            for size in range(stop - start, 0, -1)
            for i in range(start, stop - size + 1)
            if size == 1 or _one_root(points, errors, i, i + size)
        )
        done.append((i, j))
        open_runs += [run for run in ((start, i), (j, stop)) if run[0] < run[1]]
    return sorted(done)


def _one_root(points: list[complex], errors: list[float], start: int, stop: int) -> bool:
    """Return whether points[start:stop] lie as near their mean as a multiple root spreads."""
    size = stop - start
    mean = sum(points[start:stop]) / size
    change = sum(error * abs(mean) ** (len(points) - 1 - power) for power, error in enumerate(errors))
    apart = math.prod(abs(mean - other) for other in (*points[:start], *points[stop:]))
    width = max(abs(point - mean) for point in points[start:stop])
    # As powers: the product may be 0 where further roots are at the mean, too.
    return (width / _SPREAD) ** size * apart <= change


def _taylor(coefficients: Tensor, center: Tensor, order: int) -> Tensor:
    """Return the coefficient of (x - center)^order of a polynomial given by its coefficients, highest power first."""
    degree = len(coefficients) - 1
    if order > degree:
        return torch.zeros_like(center)
    powers = [center ** (degree - i - order) * math.comb(degree - i, order) for i in range(degree - order + 1)]
    total: Tensor = (coefficients[: degree - order + 1] * torch.stack(powers)).sum()
    return total


def _inverse_series(series: list[Tensor]) -> list[Tensor]:
    """Return the first coefficients of 1 / sum_n s_n t^n, as many as there are s_n."""
    inverse = [1 / series[0]]
    for n in range(1, len(series)):
        inverse.append(-sum((series[i] * inverse[n - i] for i in range(1, n + 1)), start=0 * series[0]) / series[0])
    return inverse


MODES = ("exact", "monte-carlo")

# Nodes reach this share of the radius at which det(I + s H) may vanish.
_REACH = 0.8
# Points at which the fit of a sum is made and its error looked for.
_FIT_POINTS, _CHECK_POINTS = 400, 4001
# A relative error beyond which a value from exact integrals is called an estimate, not exact.
_EXACT = 1e-4


@dataclass(frozen=True, eq=False)
class Representation:
    """S = phi(E psi(u^T H u / 2)), psi_k(t) = exp(-s_k t), u ~ N(0, I), that equals a function of the eigenvalues.

    Attributes:
        measure: phi, psi, mu; any evaluation of a measure takes it.
        nodes: s_k, fp64 (m,).
        dim: d.
        condition: condition number of the linear system that phi solves: it multiplies the errors of E psi.
        scale: bound on ||H||_2 for which the integrals exist.
        mode: ``"exact"`` or ``"monte-carlo"``: how ``evaluate`` gets the integrals.
        error_bound: for a sum, d times the largest error of the fit on a grid, an estimate; 0 where the
            representation is exact; None where its error depends on the spectrum (fewer nodes than dimensions).
        truth: f itself, of the eigenvalues in descending order.
        system: what phi solves, see ``SymmetricSystem``; None for a sum, which needs no roots.
    """

    measure: Measure
    nodes: Tensor
    dim: int
    condition: float
    scale: float
    mode: str
    error_bound: float | None
    truth: Callable[[Tensor], Tensor]
    system: SymmetricSystem | None = None

    def integrals(self, H: Tensor) -> Tensor:
        """Return y_k = E exp(-s_k u^T H u / 2) = det(I + s_k H)^(-1/2), fp64 (m,), for a dense H (d, d).

        Raises:
            ValueError: H is of another size, or beyond ``scale``, where an integral may not exist.
        """
        values = self._eigenvalues(H)
        return torch.exp(-0.5 * torch.log1p(self.nodes[:, None] * values).sum(1))

    def evaluate(
        self, H: Any, *, n_probes: int = DEFAULT_DRAWS, seed: int = 0, callback: Callback | None = None
    ) -> Estimate:
        """Return the value on ``H``: from exact integrals of a dense (d, d) matrix, or from random directions.

        Args:
            H: (d, d) tensor; with ``mode="monte-carlo"`` anything that ``universal.evaluate`` takes.
            n_probes: draws, for ``"monte-carlo"``.
            seed: of the draws.
            callback: see ``universal.evaluate``.

        Returns:
            The estimate. ``errors.solver``: for exact integrals what their rounding may do to first order, and the
            larger of the error bound of a fit and the distance to f at the eigenvalues of H, which are known here:
            where they are equal, rounding moves roots by more than in proportion. For random directions the error
            bound of a fit, and how far S moves when eigenvalues that the sample leaves indistinct are put together;
            the flag ``"indistinct-eigenvalues"`` says so, as the standard error holds for distinct ones only.
            ``kind`` is ``"exact"`` for exact integrals of an exact representation whose error is within 1e-4 of the
            value, or of f on a spectrum spread over [-scale, scale]; beyond it the flag ``"ill-conditioned"`` is set.
            ``details``: ``condition``, ``nodes``, ``error_bound``, and for exact integrals ``amplification``:
            relative errors of size e in the integrals change S by up to amplification * e, to first order.

        Raises:
            TypeError, ValueError: ``H`` of another kind or size, or beyond ``scale``.
            NonFiniteError: the sample lies outside the domain of phi, as happens where the condition number times the
                Monte Carlo error is not small.
        """
        started = time.perf_counter()
        more = {"condition": self.condition, "nodes": self.nodes, "error_bound": self.error_bound}
        fit = self.error_bound or 0.0
        if self.mode == "monte-carlo":
            found = self._sampled(H, n_probes, seed, callback)
            errors = ErrorParts(found.errors.probe, None, found.errors.solver + fit)
            return found.with_(errors=errors, details={**found.details, **more})
        if not isinstance(H, Tensor):
            H = settled(H).to_dense()
        y, truth = self.integrals(H), float(self.truth(self._eigenvalues(H).flip(0)))
        value, slope = self.measure.value(y)
        amplification = float((slope * y).abs().sum())
        rounding = ROUNDING * torch.finfo(torch.float64).eps * (amplification + abs(value))
        error = rounding + max(fit, abs(value - truth))
        typical = float(self.truth(torch.linspace(self.scale, -self.scale, self.dim, dtype=torch.float64)))
        close = error <= _EXACT * max(abs(value), abs(truth), abs(typical))
        return Estimate(
            value,
            ErrorParts(solver=error),
            method="gaussian-integrals",
            kind="exact" if self.error_bound == 0.0 and close else "estimate",
            flags=("ill-conditioned",) if self.error_bound == 0.0 and not close else (),
            seconds=time.perf_counter() - started,
            details={**more, "amplification": amplification},
        )

    def _sampled(self, H: Any, n_probes: int, seed: int, callback: Callback | None) -> Estimate:
        """Return the estimate from random directions; how far indistinct eigenvalues move it is an error of it."""
        operator = Hessian(H) if isinstance(H, Objective) else settled(H)
        forms = Forms(operator, self.measure.mu, Point(operator.dim), seed=seed, callback=callback)
        found = evaluate(self.measure, operator, n_probes=n_probes, seed=seed, forms=forms)
        if self.system is None:
            return found
        samples = self.measure.samples(self.measure.c * forms.first(draws(self.measure, n_probes)))
        mean, slack = samples.mean(0), self.system.sampling_error(samples)
        if not self.system.indistinct(mean, slack):
            return found
        moved = abs(found.value - float(self.system.value(mean, slack)))
        errors = ErrorParts(found.errors.probe, None, found.errors.solver + moved)
        return found.with_(errors=errors, flags=(*found.flags, "indistinct-eigenvalues"))

    def _eigenvalues(self, H: Tensor) -> Tensor:
        if H.ndim != 2 or tuple(H.shape) != (self.dim, self.dim):
            raise ValueError(
                f"H must have shape ({self.dim}, {self.dim}); got {tuple(H.shape)}. Represent f for its d."
            )
        values: Tensor = torch.linalg.eigvalsh(H.detach().double().cpu())
        if float(values.abs().max()) > self.scale * (1 + 1e-9):
            raise ValueError(
                f"H must have a norm of at most scale = {self.scale:g}; got {float(values.abs().max()):.4g}. "
                "Represent f with a larger scale=."
            )
        return values


def represent(
    f: Callable[[Tensor], Tensor], d: int, mode: str = "exact", *, scale: float = 1.0, m: int | None = None
) -> Representation:
    """Return (phi, psi, mu) with S(H) = f(eigenvalues of H) for every symmetric H (d, d) with ||H||_2 <= scale.

    With u ~ N(0, I) and psi_k(t) = exp(-s_k t), y_k = E psi_k = det(I + s_k H)^(-1/2), and

        y_k^(-2) = 1 + sum_{j=1}^d e_j s_k^j,

    e_j the elementary symmetric functions of the eigenvalues. d distinct nodes s_k != 0 determine them (a Vandermonde
    system), their polynomial has the eigenvalues as roots, and phi = f of these (a theorem). This shows that such a
    triple exists; it is no way to measure: the system and the roots amplify errors by a factor of 10 or so a dimension,
    so that exact integrals in float64 leave some 8 to 10 digits at d = 8 and 3 to 7 at d = 12, by the gaps of the
    spectrum, and 2 million sampled directions one or two digits at d = 5. A k-fold eigenvalue is worse: an error e in
    the integrals spreads it over about e^(1/k). Eigenvalues that rounding leaves indistinct are taken at their mean,
    which is again off by about e only; those that are in truth apart then miss that much, and the error stated by
    ``evaluate`` says it.

    Args:
        f: maps the eigenvalues, fp64 (d,) descending, to a number; continuous, of torch operations.
        d: dimension, >= 1.
        mode: ``"exact"`` integrals from a dense matrix, or ``"monte-carlo"``.
        scale: bound on ||H||_2, > 0. A draw of exp(-s t) has a variance only where I + 2 s H > 0: for a standard error
            to trust with ``"monte-carlo"``, take at least 1.6 times the norm.
        m: nodes, d by default. With m < d the e_j beyond m are taken as 0, which is exact for matrices of rank <= m (f
            sees d - m zeros) and uncontrolled for others; with m > d the system is solved by least squares. For sums
            over the eigenvalues see ``represent_sum``, which needs few nodes at any d.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range; f that does not return one number.
    """
    dim = checks.positive_int("d", d)
    count = dim if m is None else checks.positive_int("m", m)
    reach, make = _common(mode, scale)
    nodes = chebyshev_nodes(count)
    unknown = min(count, dim)
    # In powers of the nodes in (-1, 1): their size is that of the system, whatever the scale of H.
    matrix = nodes[:, None] ** torch.arange(1, unknown + 1, dtype=torch.float64)
    _require_number(f, torch.linspace(scale, -scale, dim, dtype=torch.float64))
    system = SymmetricSystem(f, torch.linalg.pinv(matrix), dim, scale)
    condition = float(torch.linalg.cond(matrix))

    def phi(y: Tensor) -> Tensor:
        return system.value(y, system.rounding_error(y) if mode == "exact" else None)

    return make(phi, f, nodes * reach, dim, condition, None if count < dim else 0.0, system)


def represent_sum(
    f: Callable[[Tensor], Tensor],
    d: int,
    mode: str = "exact",
    *,
    scale: float = 1.0,
    m: int = 8,
    low: float | None = None,
    exact_at_zero: bool = False,
) -> Representation:
    """Return (phi, psi, mu) with S(H) near sum_i f(l_i), from m nodes at any dimension d.

    f(x) is fitted by a_0 + sum_k a_k log(1 + s_k x) on [low, scale] by least squares at Chebyshev points; with
    log det(I + s_k H) = -2 log E exp(-s_k t) the sum is phi = a_0 d - 2 sum_k a_k log y_k. Its error is at most d times
    that of the fit (``error_bound``), whatever the spectrum: m does not depend on d. Large coefficients a_k, which the
    condition number foretells, multiply the errors of E psi.

    Args:
        f: elementwise map of fp64 tensors, continuous on [low, scale].
        d: dimension, >= 1.
        mode: see ``represent``.
        scale: bound on ||H||_2, > 0.
        m: nodes, >= 1.
        low: lower bound of the spectrum, -scale by default.
        exact_at_zero: fix a_0 = f(0), so that eigenvalues at 0, where most of a network's are, add no error. The
            largest error of the fit, and with it ``error_bound``, may grow.

    Raises:
        TypeError, ValueError: an argument outside its range; f not elementwise or not finite there.
    """
    dim, count = checks.positive_int("d", d), checks.positive_int("m", m)
    reach, make = _common(mode, scale)
    floor = -scale if low is None else checks.real("low", low, low=-scale, high=scale, high_open=True)
    nodes = chebyshev_nodes(count)
    angles = (torch.arange(_FIT_POINTS, dtype=torch.float64) + 0.5) * (math.pi / _FIT_POINTS)
    x = (scale + floor) / 2 + (scale - floor) / 2 * torch.cos(angles)
    basis = _log_basis(nodes * reach, x)
    if exact_at_zero:
        basis, solution = basis[:, 1:], _fixed_at_zero(f, basis[:, 1:], x, floor)
    else:
        solution = torch.linalg.lstsq(basis, _images(f, x)[:, None], driver="gelsd").solution[:, 0]
    grid = torch.linspace(floor, scale, _CHECK_POINTS, dtype=torch.float64)
    worst = float((_log_basis(nodes * reach, grid) @ solution - _images(f, grid)).abs().max())

    def phi(y: Tensor) -> Tensor:
        a = solution.to(y.device)
        total: Tensor = dim * a[0] - 2 * (a[1:] * torch.log(y)).sum()
        return total

    def total(values: Tensor) -> Tensor:
        return f(values).sum()

    return make(phi, total, nodes * reach, dim, float(torch.linalg.cond(basis)), dim * worst)


def chebyshev_nodes(count: int) -> Tensor:
    """Return ``count`` Chebyshev nodes in (-0.8, 0.8), fp64, none of them 0, where exp(-s t) tells nothing.

    For odd counts those of the next even number, without the most negative one: there exp(-s t) has the widest spread.
    """
    even = count + count % 2
    angles = (2 * torch.arange(even, dtype=torch.float64) + 1) * (math.pi / (2 * even))
    return _REACH * torch.cos(angles)[:count]


def _common(mode: str, scale: float) -> tuple[float, Callable[..., Representation]]:
    """Return 1/scale, and what makes a representation of phi and nodes."""
    checks.one_of("mode", mode, MODES)
    bound = checks.real("scale", scale, low=0, low_open=True)

    def make(
        phi: Callable[[Tensor], Tensor],
        truth: Callable[[Tensor], Tensor],
        nodes: Tensor,
        dim: int,
        condition: float,
        error: float | None,
        system: SymmetricSystem | None = None,
    ) -> Representation:
        def psi(t: Tensor) -> Tensor:
            return torch.exp(-t[..., None] * nodes.to(t.device))

        measure = Measure(phi, psi, gaussian(), name="representation")
        return Representation(measure, nodes, dim, condition, bound, mode, error, truth, system)

    return 1 / bound, make


def _fixed_at_zero(f: Callable[[Tensor], Tensor], logs: Tensor, x: Tensor, low: float) -> Tensor:
    """Return f(0) and the least-squares coefficients of f - f(0) in the logarithms, which are 0 at 0."""
    if not low <= 0:
        raise ValueError(f"low must be <= 0 where exact_at_zero; got {low:g}. Leave exact_at_zero out.")
    constant = _images(f, torch.zeros(1, dtype=torch.float64))
    rest: Tensor = torch.linalg.lstsq(logs, (_images(f, x) - constant)[:, None], driver="gelsd").solution[:, 0]
    return torch.cat([constant, rest])


def _log_basis(nodes: Tensor, x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x)[:, None], torch.log1p(nodes * x[:, None])], 1)


def _images(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    values = f(x)
    if not isinstance(values, Tensor) or values.shape != x.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"f must map a tensor elementwise; got {got} for shape {tuple(x.shape)}. Use torch operations.")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("f must be finite on [low, scale]; got nan or inf. Raise low=, or cut f off.")
    return values.double()


def _require_number(f: Callable[[Tensor], Tensor], example: Tensor) -> None:
    if not callable(f):
        raise TypeError(f"f must be a function of the eigenvalues; got {type(f).__name__}. Pass a function.")
    value = f(example)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"f must return one number, a tensor, for eigenvalues ({len(example)},); got {got}. Use torch operations."
        )
