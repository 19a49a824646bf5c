"""How small m may be: error against the number of Gaussian integrals on the spectrum of a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.universal import Measure, Representation, represent, represent_sum, samplers
from hessprobe.universal.catalogue import cumulants, powers
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, below, seen
from hessprobe.validation.claims.universality import sampled_error
from hessprobe.validation.matrices import gauss_from_moments
from hessprobe.validation.networks import digits_network

_EPS = torch.finfo(torch.float64).eps
_SUMS = (1, 2, 3, 4, 6, 8, 12, 16)
_POINTS = (1, 2, 3, 4, 5)
# Sums for which a fit that is exact at 0 is tried as well.
_EVEN = ("l^2/(l^2 + 0.1^2)", "|l|")
Sum = Callable[..., Representation]


def unit_spectrum(hidden: int) -> Tensor:
    """Return the eigenvalues of the network's Hessian over the largest in magnitude, ascending."""
    values = digits_network(hidden).spectrum
    return values / values.abs().max()


def sums() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions f for sum_i f(l_i), the smoothest first."""
    return {
        "1 - exp(-3l)": lambda x: -torch.expm1(-3 * x),
        "l^2/(l^2 + 0.1^2)": lambda x: x**2 / (x**2 + 0.01),
        "|l|": torch.abs,
        "max(-l, 0)": lambda x: (-x).clamp_min(0.0),
    }


def from_integrals(representation: Representation, values: Tensor) -> float:
    """Return phi of the exact integrals det(I + s_k H)^(-1/2)."""
    y = torch.exp(-0.5 * torch.log1p(representation.nodes[:, None] * values).sum(1))
    return representation.measure.value(y)[0]


def few_sums(hidden: int, make: Sum = represent_sum) -> Finding:
    """Sums over the eigenvalues by m integrals: error below d times that of the fit, at any d."""
    values = unit_spectrum(hidden)
    d, low = len(values), float(values[0])
    parts: list[Part] = []
    lines: list[Series] = []
    for name, f in sums().items():
        truth = float(f(values).sum())
        errors = []
        for m in _SUMS:
            representation = make(f, d, m=m, low=low)
            gap = abs(from_integrals(representation, values) - truth)
            bound = (representation.error_bound or 0.0) + _rounding(representation, values)
            parts.append(below(f"sum of {name}, m {m}", bound, gap))
            errors.append(max(gap, _EPS) / abs(truth))
        lines.append(Series.of(name, _SUMS, errors))
    return Finding(tuple(parts), Curve(f"m, with d = {d}", "relative error of the sum", tuple(lines), log_y=True))


def _rounding(representation: Representation, values: Tensor) -> float:
    y = torch.exp(-0.5 * torch.log1p(representation.nodes[:, None] * values).sum(1))
    _, slope = representation.measure.value(y)
    return len(values) * _EPS * float((slope * y).abs().sum())


def top_by_moments(points: int, scale: float = 1.0) -> Measure:
    """Return the measure 2 points + 1 moments of t -> the largest Gauss node of the measure sum_i l_i^2 delta(l_i).

    psi = (t, ..., t^m), m = 2 points + 1, u Gaussian: the cumulants of t are (k - 1)!/2 Tr H^k, and Tr H^2, ..., Tr H^m
    are the moments of that measure. The largest node tends to lambda_max from below as that of ``points`` Lanczos
    steps does, started at the vector with components l_i.
    """
    m = 2 * points + 1
    factors = torch.tensor([2 / math.factorial(k - 1) for k in range(1, m + 1)], dtype=torch.float64)

    def phi(s: Tensor) -> Tensor:
        sums_of_powers = factors * cumulants(s)
        return scale * gauss_from_moments(sums_of_powers[1:])[0][-1]

    return Measure(phi, powers(m), samplers.gaussian(), name="top-by-moments", minimum=m)


def raw_moments(values: Tensor, count: int) -> Tensor:
    """Return E t, ..., E t^count for Gaussian u, by m_n = sum_j binom(n-1, j-1) kappa_j m_{n-j}."""
    kappa = [math.factorial(k - 1) / 2 * float((values**k).sum()) for k in range(1, count + 1)]
    moments = [1.0]
    for n in range(1, count + 1):
        moments.append(sum(math.comb(n - 1, j - 1) * kappa[j - 1] * moments[n - j] for j in range(1, n + 1)))
    return torch.tensor(moments[1:], dtype=torch.float64)


def kaniel(values: Tensor, points: int) -> float:
    """Return the bound (l_1 - l_d) tan^2/T_{n-1}(1 + 2 g)^2 on l_1 - node, g = (l_1 - l_2)/(l_2 - l_d)."""
    top, second, least = float(values[-1]), float(values[-2]), float(values[0])
    tangent = float(values[:-1].square().sum()) / top**2
    gap = (top - second) / (second - least)
    chebyshev = math.cosh((points - 1) * math.acosh(1 + 2 * gap))
    return (top - least) * tangent / chebyshev**2


def draws_needed(measure: Measure, values: Tensor, count: int, error: float) -> float:
    """Return how many directions give this standard error, by the delta method with the exact covariance of psi."""
    moments = raw_moments(values, 2 * count)
    joint = torch.tensor(
        [[float(moments[i + j + 1] - moments[i] * moments[j]) for j in range(count)] for i in range(count)],
        dtype=torch.float64,
    )
    _, slope = measure.value(moments[:count])
    return max(float(slope @ joint @ slope), 0.0) / error**2


def top_from_moments(hidden: int, make: Callable[[int], Measure] = top_by_moments) -> Finding:
    """The largest eigenvalue by 3, 5, ..., 11 moments, against the bound of Kaniel and Paige."""
    values = unit_spectrum(hidden)
    top = float(values[-1])
    parts, gaps, bounds, cost = [], [], [], []
    for points in _POINTS:
        m = 2 * points + 1
        measure = make(points)
        gap = top - measure.value(raw_moments(values, m))[0]
        gaps.append(max(abs(gap), _EPS))
        bounds.append(kaniel(values, points))
        # Moments are sums of d numbers; solving for the nodes multiplies their rounding as the Hankel matrix says.
        slack = len(values) * _EPS * _hankel_condition(values, points)
        parts.append(below(f"lambda_max - node, m {m}", bounds[-1] + slack, max(gap, 0.0)))
        cost.append(draws_needed(measure, values, m, 0.01 * top))
        parts.append(seen(f"draws for a standard error of 1 %, m {m}", cost[-1]))
    m_all = [2 * n + 1 for n in _POINTS]
    lines = (Series.of("m moments", m_all, gaps), Series.of("bound", m_all, bounds, dashed=True))
    note = (
        f"d = {len(values)}: {m_all[1]} exact moments leave {gaps[1] / top:.1e} of lambda_max, {m_all[3]} leave "
        f"{gaps[3] / top:.1e}; from sampled directions a standard error of 1 % takes {cost[0]:.1e} draws with m = 3 "
        f"and {cost[1]:.1e} with m = 5."
    )
    return Finding(tuple(parts), Curve(f"m, with d = {len(values)}", "error of lambda_max", lines, log_y=True), note)


def _hankel_condition(values: Tensor, points: int) -> float:
    index = torch.arange(points)
    matrix = torch.stack([torch.stack([(values ** (i + j + 2)).sum() for j in index.tolist()]) for i in index.tolist()])
    return float(torch.linalg.cond(matrix))


def how_small(hidden: int) -> Finding:
    """Error against m: sums with a free and with an anchored fit, lambda_max from moments and by ``represent``."""
    values = unit_spectrum(hidden)
    d, top = len(values), float(values[-1])
    odd = tuple(2 * n + 1 for n in _POINTS)
    found = [top_by_moments(n).value(raw_moments(values, m))[0] for n, m in zip(_POINTS, odd, strict=True)]
    errors: list[tuple[str, tuple[int, ...], list[float]]]
    errors = [(f"sum of {name}", _SUMS, gaps) for name, gaps in _sum_errors(values).items()]
    errors += [
        ("lambda_max by moments", odd, [abs(one / top - 1) for one in found]),
        ("lambda_max by represent", _SUMS, [_truncated(values, m) for m in _SUMS]),
    ]
    parts = [
        seen(f"relative error, {label}, m {sizes[k]}", gaps[k]) for label, sizes, gaps in errors for k in (4, 1, 3)
    ]
    cost = _sampling_cost(values)
    parts += cost
    words = [f"{label}: {_first_below(sizes, gaps)}" for label, sizes, gaps in errors]
    by = {label: gaps for label, _, gaps in errors}
    before, after = by["sum of |l|"][_SUMS.index(8)], by["sum of |l|, exact at 0"][_SUMS.index(8)]
    note = (
        f"d = {d}, exact integrals. Smallest m for 1 %: {'; '.join(words)}. Few integrals serve sums of functions that "
        "are smooth on the scale of ||H||, and single outlying eigenvalues. What is decided inside the bulk, where "
        "nearly all eigenvalues lie, is lost, as each of them adds the error of the fit; a fit exact at 0 helps "
        f"(sum of |l| at m = 8: {before:.2g} becomes {after:.2g}). With m < d nodes represent takes the elementary "
        "symmetric functions beyond m as 0, and needs more nodes than there are outliers. From sampled directions "
        f"{cost[-1].measured:.2g} draws give the sum of 1 - exp(-3l) a standard error of 1 % with m = 6."
    )
    lines = tuple(Series.of(label, sizes, [max(gap, _EPS) for gap in gaps]) for label, sizes, gaps in errors)
    return Finding(tuple(parts), Curve(f"m, with d = {d}", "relative error", lines, log_y=True), note)


def _sampling_cost(values: Tensor) -> list[Part]:
    """Return how many directions give the smoothest of the sums a standard error of 1 %, nodes in half the radius."""
    name, f = next(iter(sums().items()))
    truth = float(f(values).sum())
    parts = []
    for m in (2, 4, 6):
        representation = represent_sum(f, len(values), m=m, scale=2.0, low=2 * float(values[0]))
        one = sampled_error(representation, values)
        parts.append(seen(f"draws for a standard error of 1 %, sum of {name}, m {m}", (one / (0.01 * truth)) ** 2))
    return parts


def _sum_errors(values: Tensor) -> dict[str, list[float]]:
    """Return the relative errors of sums at every m, and those with a fit that is exact at 0."""
    d, low = len(values), float(values[0])
    errors: dict[str, list[float]] = {}
    for name, f in sums().items():
        truth = float(f(values).sum())
        free = [from_integrals(represent_sum(f, d, m=m, low=low), values) for m in _SUMS]
        errors[name] = [abs(one / truth - 1) for one in free]
        if name in _EVEN:
            fixed = [represent_sum(f, d, m=m, low=low, exact_at_zero=True) for m in _SUMS]
            errors[f"{name}, exact at 0"] = [abs(from_integrals(one, values) / truth - 1) for one in fixed]
    return errors


def _truncated(values: Tensor, m: int) -> float:
    """Return the relative error of lambda_max by ``represent`` with m < d nodes; inf where phi has no value."""
    representation = represent(lambda e: e[0], len(values), m=m)
    try:
        return abs(from_integrals(representation, values) / float(values[-1]) - 1)
    except NonFiniteError:
        return math.inf


def _first_below(sizes: tuple[int, ...] | list[int], gaps: list[float], level: float = 0.01) -> str:
    kept = [m for i, m in enumerate(sizes) if all(gap <= level for gap in gaps[i:])]
    return str(kept[0]) if kept else f"more than {sizes[-1]}"


CLAIMS = (
    Claim(
        "universality/few-nodes-sums",
        "m Gaussian integrals give sums over the eigenvalues with an error of at most d times that of fitting f by "
        "log(1 + s_k x), whatever the spectrum.",
        "derived here",
        partial(few_sums, 8),
        partial(few_sums, 16),
    ),
    Claim(
        "universality/few-moments-top",
        "m = 2n + 1 moments of t give lambda_max from below within the bound of n Lanczos steps from a start with "
        "components l_i.",
        "derived here with the bound of Kaniel (1966), Paige (1971), Saad (1980)",
        partial(top_from_moments, 8),
        partial(top_from_moments, 16),
    ),
    Claim(
        "universality/how-small-m",
        "How many components m of psi do for functions of a network's Hessian is an open question; this is the error "
        "against m, m << d.",
        "open; measured here",
        partial(how_small, 8),
        partial(how_small, 16),
    ),
)
