"""Any function of the Hessian as a (phi, psi, mu)-sharpness: exact integrals, sampled ones, anisotropic laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hessprobe.universal import Measure, Representation, evaluate, integrate, represent, samplers
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, below, near, seen
from hessprobe.validation.matrices import gauss_from_moments, rotated

_PAPER = "Tahmasebi et al. (2024)"
_EPS = torch.finfo(torch.float64).eps
_DIMS = (2, 3, 5, 8, 12)
Represent = Callable[..., Representation]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda e: e[0],
    "min": lambda e: e[-1],
    "condition number": lambda e: e.abs().max() / e.abs().min(),
    "entropy": lambda e: -(torch.softmax(e, 0) * torch.log_softmax(e, 0)).sum(),
    "sum |l - 0.1| + largest gap": lambda e: (e - 0.1).abs().sum() + (e[:-1] - e[1:]).max(),
}


def spread(dim: int) -> Tensor:
    """Return d simple eigenvalues of both signs, descending, of norm below 1."""
    return torch.linspace(0.97, -0.68, dim, dtype=torch.float64)


def exact_integrals(make: Represent = represent) -> Finding:
    """Five functions of the eigenvalues in up to twelve dimensions, from exact Gaussian integrals."""
    parts: list[Part] = []
    lines: list[Series] = []
    condition: list[float] = []
    for name, f in FUNCTIONS.items():
        errors = []
        for dim in _DIMS:
            values = spread(dim)
            representation = make(f, dim)
            found = representation.evaluate(rotated(values))
            gap = abs(found.value - float(f(values)))
            parts.append(below(f"{name}, d {dim}: error over what rounding may do", 1.0, gap / found.errors.solver))
            errors.append(max(gap, _EPS / 2))
            condition = [*condition, representation.condition] if len(condition) < len(_DIMS) else condition
        lines.append(Series.of(name, _DIMS, errors))
    parts += [seen(f"condition number of the linear system, d {d}", c) for d, c in zip(_DIMS, condition, strict=True)]
    lines.append(Series.of("condition x rounding", _DIMS, [c * _EPS for c in condition], dashed=True))
    return Finding(tuple(parts), Curve("d", "error", tuple(lines), log_y=True))


def sampled_error(representation: Representation, values: Tensor) -> float:
    """Return the standard error of one draw by the delta method with the exact covariance of psi.

    Cov(psi_j, psi_k) = det(I + (s_j + s_k) H)^(-1/2) - y_j y_k; inf where I + 2 s H is not positive for some node: a
    sample mean of exp(-s t) then has no variance.
    """
    nodes = representation.nodes
    inside = 1 + (nodes[:, None] + nodes)[..., None] * values
    if not float(inside.min()) > 0:
        return math.inf
    y = torch.exp(-0.5 * torch.log1p(nodes[:, None] * values).sum(1))
    covariance = torch.exp(-0.5 * inside.log().sum(-1)) - torch.outer(y, y)
    _, slope = representation.measure.value(y)
    return math.sqrt(max(float(slope @ covariance @ slope), 0.0))


def monte_carlo(draws: int, make: Represent = represent) -> Finding:
    """Eigenvalues from sampled directions: nodes inside half the radius, where the error has a variance."""
    parts: list[Part] = []
    sizes = [draws // 4**k for k in range(5, -1, -1)]
    lines, notes = [], []
    for dim in (2, 3, 5):
        values = spread(dim)
        representation = make(FUNCTIONS["max"], dim, "monte-carlo", scale=2.0)
        one = sampled_error(representation, values)
        t = _forms(values, draws)
        gaps = [_gap(representation.measure, t[:size], float(values[0])) for size in sizes]
        label = f"largest eigenvalue, d {dim}, {draws} draws"
        error = one / math.sqrt(draws)
        # Where the error is not small, phi is not linear over it, and the delta method claims nothing.
        linear = error < 0.05
        found = float(values[0]) + gaps[-1]
        parts.append(agrees(label, float(values[0]), found, error) if linear else seen(label, found, error))
        lines += [
            Series.of(f"d {dim}", sizes, [abs(gap) for gap in gaps]),
            Series.of(f"d {dim}, delta method", sizes, [one / math.sqrt(size) for size in sizes], dashed=True),
        ]
        notes.append(f"{(one / 0.01) ** 2:.2g} at d = {dim}")
    parts += _wide_nodes(make, t)
    note = (
        f"Draws for an error of 0.01 in lambda_max of a matrix of norm 0.97: {', '.join(notes)}. With nodes beyond "
        "1/(2 ||H||) the draws of exp(-s t) have no variance for some spectra, and no number of them gives an error "
        "bar."
    )
    return Finding(tuple(parts), Curve("draws", "error", tuple(lines), log_x=True, log_y=True), note)


def _wide_nodes(make: Represent, t: Tensor) -> list[Part]:
    """The same in five dimensions with the nodes that exact integrals allow."""
    values = spread(5)
    representation = make(FUNCTIONS["max"], 5, "monte-carlo")
    least = float((1 + 2 * representation.nodes[:, None] * values).min())
    gap = _gap(representation.measure, t, float(values[0]))
    return [
        seen("least 1 + 2 s l with nodes up to 0.8/||H||, d 5: a draw has a variance where it is positive", least),
        seen(f"error in lambda_max with these nodes, d 5, {len(t)} draws", gap),
    ]


def _forms(values: Tensor, draws: int) -> Tensor:
    """Return t = u^T H u / 2 of Gaussian draws, which depend on the eigenvalues alone."""
    generator = torch.Generator().manual_seed(2)
    blocks = [
        0.5 * (torch.randn(len(part), len(values), generator=generator, dtype=torch.float64).square() @ values)
        for part in torch.split(torch.arange(draws), 1 << 17)
    ]
    return torch.cat(blocks)


def _gap(measure: Measure, t: Tensor, truth: float) -> float:
    found, _ = measure.value(measure.samples(t).mean(0))
    return found - truth


_P = (0.2, 0.3, 0.6)


def _turned(off: float) -> Tensor:
    """Return diag(1, 2, 3), or for ``off`` = +-1 the same turned by 45 degrees in the plane of axes 1 and 3."""
    if off == 0.0:
        return torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    matrix = 2 * torch.eye(3, dtype=torch.float64)
    matrix[0, 2] = matrix[2, 0] = off
    return matrix


# E t and E t^2, by hand.
BERNOULLI = {0.0: (1.300, 2.480), 1.0: (1.220, 2.492), -1.0: (0.980, 1.388)}


def anisotropic(draws: int, expected: dict[float, tuple[float, float]] = BERNOULLI) -> Finding:
    """One spectrum, three bases: Bernoulli directions tell them apart, Gaussian ones do not."""
    law = samplers.product(
        lambda source, dim: (source.random(dim) < np.array(_P)).astype(float), name="bernoulli", density="u_i ~ B(p_i)"
    )
    parts: list[Part] = []
    for off, moments in expected.items():
        H = _turned(off)
        for power, truth in enumerate(moments, 1):
            label = f"E t^{power}, H_13 = {off:g}"
            measure = Measure(lambda s: s[0], lambda t, k=power: t**k, law)  # type: ignore[misc]  # defaults bind
            found = evaluate(measure, H, n_probes=draws)
            gaussian = Measure(measure.phi, measure.psi, samplers.gaussian())
            blind = integrate(gaussian, H, order=8)
            parts += [
                near(f"{label}, Bernoulli, enumerated", truth, _enumerated(H, power), 100 * _EPS),
                agrees(f"{label}, Bernoulli, sampled", truth, found.value, found.std_error),
                near(f"{label}, Gaussian", (3.0, 9.0 + 7.0)[power - 1], blind, 1000 * _EPS),
            ]
    parts.append(_whole_matrix())
    return Finding(tuple(parts))


def _enumerated(H: Tensor, power: int) -> float:
    total = 0.0
    for corner in range(8):
        u = torch.tensor([float(corner >> i & 1) for i in range(3)], dtype=torch.float64)
        share = math.prod(p if bit else 1 - p for p, bit in zip(_P, u.tolist(), strict=True))
        total += share * float(u @ H @ u / 2) ** power
    return total


def _whole_matrix() -> Part:
    """Three atoms e_1, e_2, e_1 + e_2 of known, different weights: five moments of t give every entry of H.

    The moments determine the weighted atoms of t, the weights say which form belongs to which direction. In d
    dimensions d(d + 1)/2 atoms do.
    """
    H = torch.tensor([[0.9, -0.7], [-0.7, 0.4]], dtype=torch.float64)
    U = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    t = ((U @ H) * U).sum(1) / 2
    nodes, shares = gauss_from_moments(torch.stack([(weights * t**k).sum() for k in range(6)]))
    forms = 2 * nodes[shares.argsort(descending=True)]
    off = (forms[2] - forms[0] - forms[1]) / 2
    found = torch.stack([torch.stack([forms[0], off]), torch.stack([off, forms[1]])])
    hankel = torch.stack([torch.stack([(weights * t ** (i + j)).sum() for j in range(3)]) for i in range(3)])
    slack = 10 * float(torch.linalg.cond(hankel)) * _EPS
    return near(
        "all entries of a 2 x 2 matrix from five moments: largest error", 0.0, float((found - H).abs().max()), slack
    )


CLAIMS = (
    Claim(
        "universality/exact-integrals",
        "Every continuous function of the eigenvalues is phi(E psi(t)), psi_k = exp(-s_k t), k = 1..d, u Gaussian.",
        f"{_PAPER}, the construction is made here",
        exact_integrals,
    ),
    Claim(
        "universality/monte-carlo",
        "The same from n sampled directions: the error is that of the delta method with the exact covariance of psi, "
        "and grows by orders of magnitude with d.",
        "derived here",
        partial(monte_carlo, 1 << 17),
        partial(monte_carlo, 1 << 21),
    ),
    Claim(
        "universality/full-hessian",
        "Anisotropic laws see the matrix and not only its spectrum: Bernoulli directions tell three bases apart, and "
        "moments of one discrete law determine every entry.",
        f"{_PAPER}; examples derived here",
        partial(anisotropic, 4000),
    ),
)
