"""Functions of a matrix under a trace: the catalogue, and their value on one Lanczos chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.krylov.quadrature import (
    QuadratureRule,
    gauss,
    gauss_radau,
    squared_chain,
    steps_for_log,
    steps_for_smoothed_log,
)

_EPS = torch.finfo(torch.float64).eps
# A Ritz value may pass a known end of the spectrum by this many units of rounding of the products.
_SLACK = 64.0
# Relative accuracy for which the a-priori number of steps is worked out.
_RATE_TOL = 1e-6


@dataclass(frozen=True)
class SpectralFunction:
    """A scalar function f that is applied to eigenvalues, with what is known of its quadrature error.

    Attributes:
        f: elementwise map of an fp64 tensor, made of differentiable torch operations (f' comes from autograd).
        name: for ``Estimate.method`` and messages.
        degree: of f where it is a polynomial, else None; a Gauss rule of m nodes is exact up to 2m - 1.
        left: left end of an interval that holds the spectrum and on which the derivatives have the signs that make
            (Gauss, Gauss-Radau) a bracket; None where there is no such interval.
        alternates_from: order from which the derivatives alternate in sign on that interval.
        singularity: the point left of ``left`` up to which the signs hold; the prescribed node stays above it.
        rate_steps: a-priori number of steps as a function of the spectral radius, or None.
        of_square: g with f(x) = g(x^2) and a bracket on y = x^2 >= 0, for a spectrum of both signs; or None.
    """

    f: Callable[[Tensor], Tensor]
    name: str
    degree: int | None = None
    left: float | None = None
    alternates_from: int = 1
    singularity: float = -math.inf
    rate_steps: Callable[[float], int] | None = None
    of_square: SpectralFunction | None = None

    def values(self, x: Tensor) -> Tensor:
        """Return f(x) for fp64 ``x`` (m,).

        Raises:
            TypeError: f does not map a tensor to a tensor of the same shape.
            ValueError: f is nan or infinite on the spectrum.
        """
        y = self.f(x)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise TypeError(
                f"{self.name} must map an fp64 tensor to one of the same shape; got {_describe(y)} for shape "
                f"{tuple(x.shape)}. Write it with torch functions, e.g. lambda x: torch.log1p(x**2)."
            )
        bad = ~torch.isfinite(y)
        if bool(bad.any()):
            raise ValueError(
                f"{self.name} must be finite on the spectrum; got {float(y[bad][0])} at eigenvalue "
                f"{float(x[bad][0]):g}. Choose a function that is finite there."
            )
        return y.double()

    def slopes(self, x: Tensor) -> Tensor | None:
        """Return f'(x) for fp64 ``x`` (m,), or None where f has no derivative to speak of (a step, a NumPy detour)."""
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            total = self.f(leaf).sum()
            if not total.requires_grad:
                return None
            (slope,) = torch.autograd.grad(total, leaf)
        return slope if bool(torch.isfinite(slope).all()) else None


@dataclass(frozen=True, eq=False)
class ChainValue:
    """q^T f(A) q for the unit start q of one chain.

    Attributes:
        value: midpoint of the bracket where there is one, else the Gauss rule.
        half: half-width of the bracket; 0 for an exact rule or where there is no bracket.
        differences: where there is no bracket, rule of about m/2 points minus that of 3m/4, and this minus the full
            one; None otherwise.
        direction: coordinates of f'(A) q in the chain's basis, (m,), or None.
        nodes: Ritz values.
        weights: (m,) of the Gauss rule.
        images: (m,) f at the nodes.
    """

    value: float
    half: float
    differences: tuple[float, float] | None
    direction: Tensor | None
    nodes: Tensor
    weights: Tensor
    images: Tensor


def on_chain(
    function: SpectralFunction, alphas: Tensor, betas: Tensor, noise: float, *, sloped: bool = True
) -> ChainValue:
    """Return q^T f(A) q from a chain of m steps, with its error.

    Args:
        function: what to evaluate.
        alphas: (m,) Lanczos diagonal.
        betas: (m,) off-diagonal, the last being the norm of the residual (0: the chain is exact).
        noise: absolute rounding of the products; the bracket rests on a node this much below the smallest Ritz value.
        sloped: also work out the direction f'(A) q.
    """
    rule = gauss(alphas, betas)
    images = function.values(rule.nodes)
    slopes = function.slopes(rule.nodes) if sloped else None
    direction = None if slopes is None else rule.vectors @ (slopes * rule.vectors[0])
    value, half, differences = rule.integrate(function.values), 0.0, None
    exact = float(betas[-1]) == 0.0 or (function.degree is not None and function.degree <= 2 * len(alphas) - 1)
    if not exact:
        ends = _bracket(function, rule, alphas, betas, noise)
        if ends is None:
            differences = _shorter_rules(function, alphas, betas, value)
        else:
            value, half = (ends[0] + ends[1]) / 2, abs(ends[0] - ends[1]) / 2
    return ChainValue(value, half, differences, direction, rule.nodes, rule.weights, images)


def _bracket(
    function: SpectralFunction, rule: QuadratureRule, alphas: Tensor, betas: Tensor, noise: float
) -> tuple[float, float] | None:
    """Return the Gauss and the Gauss-Radau value where the signs of the derivatives make them a bracket, else None."""
    if function.of_square is not None and len(alphas) > 1:
        return _bracket_of_square(function.of_square, alphas, betas, float(rule.nodes.square().max()))
    node = _node(function, rule, len(alphas), noise)
    if node is None:
        return None
    return rule.integrate(function.values), gauss_radau(alphas, betas, node).integrate(function.values)


def _bracket_of_square(
    function: SpectralFunction, alphas: Tensor, betas: Tensor, largest: float
) -> tuple[float, float] | None:
    """Return the bracket of ``function`` of A^2, widened by the rounding of squares, relative to the largest one."""
    squared, rounding = squared_chain(alphas, betas), rounding_slack(largest, _EPS)
    rule = gauss(*squared)
    # A square is not negative, whatever the rounding of the products.
    ends = _bracket(function, rule, *squared, rounding)
    if ends is None:
        return None
    # Of a root at 0 it is no longer small.
    nodes = rule.nodes.clamp(min=0.0)
    slack = float(rule.weights @ (function.values(nodes + rounding) - function.values(nodes)).abs())
    return max(ends) + slack, min(ends) - slack


def _node(function: SpectralFunction, rule: QuadratureRule, steps: int, noise: float) -> float | None:
    if function.left is None or function.alternates_from > 2 * steps:
        return None
    node = min(function.left, float(rule.nodes[0]) - noise)
    return node if node - noise > function.singularity else None


def _shorter_rules(function: SpectralFunction, alphas: Tensor, betas: Tensor, value: float) -> tuple[float, float]:
    m = len(alphas)
    if m == 1:
        return 0.0, value
    if m < 4:
        return 0.0, gauss(alphas[:-1], betas).integrate(function.values) - value
    mid, low = m - m // 4, m - 2 * (m // 4)
    short, longer = (gauss(alphas[:n], betas[:n]).integrate(function.values) for n in (low, mid))
    return short - longer, longer - value


def extrapolated_error(first: Tensor, last: Tensor) -> float:
    """Estimate (not bound) the quadrature error of a mean over chains from shorter rules.

    Differences between rules scatter around their mean over the chains. The scatter of what is still missing is part
    of the spread between probes already; its mean is not. With d1, d2 = |mean| + standard error of the two successive
    differences and r = d2 / d1 (kept within [0.1, 0.75]) the answer is 3 d2 r / (1 - r): for geometric convergence
    three times what is still to come, for an error of 1/m just that.

    Args:
        first: (p,) differences between about m/2 and 3m/4 points, weighted as the values are.
        last: (p,) differences between 3m/4 and m points.
    """
    sizes = []
    for differences in (first, last):
        count = len(differences)
        scatter = float(differences.std()) / math.sqrt(count) if count > 1 else 0.0
        sizes.append(abs(float(differences.mean())) + scatter)
    ratio = min(max(sizes[1] / sizes[0] if sizes[0] > 0 else 0.75, 0.1), 0.75)
    return 3 * sizes[1] * ratio / (1 - ratio)


def radius(theta: Tensor, chains: list[ChainValue]) -> float:
    """Return the largest |value| among deflated Ritz values and those of the chains."""
    return max((float(x.abs().max()) for x in (theta, *(c.nodes for c in chains)) if len(x)), default=0.0)


def mean_quadrature_error(squares: Tensor, chains: list[ChainValue]) -> float:
    """Return the mean half-width of the brackets, plus the extrapolated error of chains without one."""
    if not chains:
        return 0.0
    halves = torch.tensor([chain.half for chain in chains], dtype=torch.float64)
    pairs = torch.tensor([chain.differences or (0.0, 0.0) for chain in chains], dtype=torch.float64)
    rest = extrapolated_error(*(squares[:, None] * pairs).T)
    return float((squares * halves).mean()) + rest


def quadrature_kind(chains: list[ChainValue]) -> str:
    """Return how the quadrature error of a set of chains is known."""
    if any(chain.differences for chain in chains):
        return "extrapolated"
    return "bracket" if any(chain.half for chain in chains) else "exact"


@dataclass(frozen=True)
class ProbeLaw:
    """What the law of one probe says of w^T f(A) w.

    Attributes:
        std: standard deviation of one probe.
        df: degrees of freedom, for one probe, with which a mean over probes knows ``std``^2.
    """

    std: float
    df: float

    def freedom(self, count: int) -> float:
        """Return the degrees of freedom of the mean of ``count`` probes: never fewer than their own spread has.

        Over 2,000 samples of 4, 8, 12 and 16 probes of 28 spectra and functions (120 dimensions) intervals with these
        covered 93 to 98 % at 1.00 to 1.31 (4 probes) and 1.00 to 1.12 (8 and more) times the width of a known variance.
        """
        return max(self.df * count, count - 1.0)


def probe_law(images: Tensor, weights: Tensor, dim: int, law: str) -> ProbeLaw:
    """Return the law of w^T f(A) w, from f on the spectrum; probes are on the sphere of ``dim`` = n dimensions.

    With m_k the mean of f(lambda)^k, Var = c (m_2 - m_1^2), c = 2 n^2 / (n + 2) on the sphere, and 2 n m_2 for Gaussian
    probes: *theorems*. What p probes see of it is the mean of h(lambda), h = f^2 - 2 m_1 f (h = f^2), to first order,
    whose variance the same law gives; matching it to chi-square (Satterthwaite, *asymptotic*) gives degrees of freedom
    of 2 p Var^2 / Var(its estimate). They are many where all eigenvalues take part and about p where one does.

    Args:
        images: (r,) f at nodes.
        weights: (r,) of the nodes, of sum 1.
        dim: n, >= 1.
        law: ``"sphere"`` or ``"gaussian"``.
    """
    scale = float(images.abs().max())
    if scale == 0.0:
        return ProbeLaw(0.0, math.inf)
    f = images / scale
    sphere = law == "sphere"
    first = float(weights @ f) if sphere else 0.0
    h = f.square() - 2 * first * f
    factor = 2 * dim**2 / (dim + 2) if sphere else 2.0 * dim
    variance = factor * max(float(weights @ f.square()) - first**2, 0.0)
    spread = max(float(weights @ h.square()) - float(weights @ h) ** 2, 0.0)
    # The weights are shares of a unit vector's squared length, whatever the law of its length.
    noise = 2 * factor**2 / (dim + 2) * spread
    return ProbeLaw(scale * math.sqrt(variance), 2 * variance**2 / noise if noise > 0 else math.inf)


def identity() -> SpectralFunction:
    """Return f(x) = x: the trace."""
    return SpectralFunction(lambda x: x, "trace", degree=1)


def square() -> SpectralFunction:
    """Return f(x) = x^2: the squared Frobenius norm."""
    return SpectralFunction(lambda x: x * x, "frobenius", degree=2)


def shifted_log(shift: float, lower: float | None) -> SpectralFunction:
    """Return f(x) = log(x + shift) for a spectrum at or above ``lower`` > -shift (None: not known).

    The derivatives alternate from the first on, f' > 0: Gauss is above, Gauss-Radau at ``lower`` below.
    """
    shift = checks.real("shift", shift)
    floor = -shift if lower is None else lower

    def rate(radius: float) -> int:
        return steps_for_log(max(radius - floor, 0.0), floor + shift if floor + shift > 0 else shift, _RATE_TOL)

    if lower is None:
        return SpectralFunction(lambda x: torch.log(x + shift), "logdet", singularity=-shift)
    return SpectralFunction(
        lambda x: torch.log(x.clamp(min=floor - (floor + shift) / 2) + shift),
        "logdet",
        left=floor,
        singularity=floor - (floor + shift) / 2,
        rate_steps=rate,
    )


def smoothed_log(eps: float) -> SpectralFunction:
    """Return f(x) = log(x^2 + eps^2) / 2: half the log-determinant of A^2 + eps^2 I.

    It is g(x^2), g(y) = log(y + eps^2) / 2 of alternating derivatives: bracketed, whatever the signs of the spectrum.
    """
    eps = checks.real("eps", eps, low=0, low_open=True)
    return SpectralFunction(
        lambda x: torch.log(torch.hypot(x, torch.full_like(x, eps))),
        "smoothed-logdet",
        rate_steps=lambda radius: steps_for_smoothed_log(radius, eps, _RATE_TOL),
        of_square=SpectralFunction(
            lambda y: torch.log(y.clamp(min=-(eps**2) / 2) + eps**2) / 2,
            "smoothed-logdet",
            left=0.0,
            singularity=-(eps**2) / 2,
        ),
    )


def absolute_power(p: float, lower: float | None) -> SpectralFunction:
    """Return f(x) = |x|^p, p >= 1, for Schatten norms.

    Where the spectrum may have both signs |x|^p = (x^2)^(p/2), and what is said of x holds for x^2 and p/2.

    On x >= 0 with p no integer the k-th derivative has the sign (-1)^(k - ceil(p)) for k >= p, so that the derivatives
    alternate and (Gauss, Gauss-Radau at 0) is a bracket.
    """
    p = checks.real("p", p, low=1)
    psd = lower is not None and lower >= 0
    if float(p).is_integer() and (psd or int(p) % 2 == 0):
        power = int(p)
        return SpectralFunction(lambda x: x**power, f"schatten-{p:g}", degree=power)
    if not psd:
        root = SpectralFunction(
            lambda y: y.clamp(min=0.0) ** (p / 2),
            f"schatten-{p:g}",
            left=0.0,
            alternates_from=math.ceil(p / 2),
        )
        return SpectralFunction(lambda x: x.abs() ** p, f"schatten-{p:g}", of_square=root)
    return SpectralFunction(
        lambda x: x.clamp(min=0.0) ** p,
        f"schatten-{p:g}",
        left=0.0,
        alternates_from=math.ceil(p),
    )


def saturation(shift: float, lower: float | None) -> SpectralFunction:
    """Return f(x) = x / (x + shift), shift > 0: the effective dimension, for a spectrum known to be >= 0.

    Otherwise f(x) = x^2 / (x^2 + shift^2), which counts the eigenvalues beyond the shift on either side and, unlike
    |x| / (|x| + shift), is analytic at 0, where most eigenvalues of a network lie. The derivatives of
    1 - shift / (x + shift) alternate from the first on, f' > 0, as for the logarithm.
    """
    shift = checks.real("shift", shift, low=0, low_open=True)
    if lower is None or lower < 0:
        return SpectralFunction(
            lambda x: 1.0 - shift**2 / (x.square() + shift**2),
            "effective-dimension-squared",
            rate_steps=lambda radius: steps_for_smoothed_log(radius, shift, _RATE_TOL),
            of_square=SpectralFunction(
                lambda y: 1.0 - shift**2 / (y.clamp(min=-(shift**2) / 2) + shift**2),
                "effective-dimension-squared",
                left=0.0,
                singularity=-(shift**2) / 2,
            ),
        )
    return SpectralFunction(
        lambda x: 1.0 - shift / (x.clamp(min=-shift / 2) + shift),
        "effective-dimension",
        left=0.0,
        singularity=-shift / 2,
        rate_steps=lambda radius: steps_for_log(radius, shift, _RATE_TOL),
    )


def rounding_slack(radius: float, eps: float) -> float:
    """Return how far a Ritz value may lie outside the spectrum by rounding, given spectral radius and eps."""
    return _SLACK * eps * radius


def _describe(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
