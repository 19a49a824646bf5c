"""Gauss and Gauss-Radau quadrature from a Lanczos tridiagonal matrix.

For a unit vector q the numbers q^T f(A) q = sum_i f(l_i) (u_i^T q)^2 are integrals of f against a discrete measure.
m Lanczos steps from q give the m-point Gauss rule of that measure, exact for polynomials of degree 2m - 1.

References:
    Golub, Meurant (2010), "Matrices, Moments and Quadrature with Applications", chapters 3 and 6.
    Golub (1973), "Some modified matrix eigenvalue problems" (the prescribed node).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class QuadratureRule:
    """Nodes and weights of a rule for a probability measure on the line.

    Attributes:
        nodes: (m,) fp64, ascending.
        weights: (m,) fp64, >= 0, of sum 1.
        vectors: (m, m) eigenvectors of the Jacobi matrix as columns, in the order of the nodes.
    """

    nodes: Tensor
    weights: Tensor
    vectors: Tensor

    def integrate(self, f: Callable[[Tensor], Tensor]) -> float:
        """Return sum_i w_i f(x_i); nodes of weight 0 are left out."""
        used = self.weights > 0
        return float((self.weights[used] * f(self.nodes[used])).sum())


def tridiagonal(alphas: Tensor, betas: Tensor) -> Tensor:
    """Return the symmetric (m, m) matrix with diagonal ``alphas`` (m,) and off-diagonal ``betas[: m - 1]``."""
    off = betas[: len(alphas) - 1].double()
    return torch.diag(alphas.double()) + torch.diag(off, 1) + torch.diag(off, -1)


def gauss(alphas: Tensor, betas: Tensor) -> QuadratureRule:
    """Return the m-point Gauss rule: nodes are Ritz values, weights squared first components of T's eigenvectors.

    With measure Psi, nodes x_i and f of class C^{2m}, for some xi within the spectrum (Golub and Meurant, 6.1)

        integral f dPsi - sum_i w_i f(x_i) = f^{(2m)}(xi) / (2m)! * integral of prod_i (x - x_i)^2 dPsi,

    so the rule is above the integral where the even derivatives of f are negative (log) and below where positive.

    Args:
        alphas: (m,) Lanczos diagonal, m >= 1.
        betas: at least (m - 1,) Lanczos off-diagonal; further entries are not read.
    """
    nodes, vectors = torch.linalg.eigh(tridiagonal(alphas, betas))
    weights = vectors[0] ** 2
    return QuadratureRule(nodes, weights / weights.sum(), vectors)


def gauss_radau(alphas: Tensor, betas: Tensor, node: float) -> QuadratureRule:
    """Return the (m+1)-point Gauss-Radau rule with one node at ``node``, exact to degree 2m.

    The Jacobi matrix is extended by alpha' = node + beta_m^2 / delta_m, where delta_1 = alpha_1 - node and
    delta_i = alpha_i - node - beta_{i-1}^2 / delta_{i-1}. With ``node`` at or below the spectrum

        integral f dPsi - rule = f^{(2m+1)}(xi) / (2m+1)! * integral (x - node) prod_i (x - x_i)^2 dPsi,

    so the rule is below the integral where the odd derivatives of f are positive (log) and above where negative.

    Args:
        alphas: (m,) Lanczos diagonal.
        betas: (m,) Lanczos off-diagonal; the last is the norm of the residual. Where it is 0 the Gauss rule is exact
            and is returned.
        node: finite. For a one-sided rule it must not exceed the smallest eigenvalue; it may then not exceed the
            smallest Ritz value either, which is checked here because rounding can break it.

    Raises:
        ValueError: ``node`` is not below the smallest Ritz value.
    """
    residual = float(betas[len(alphas) - 1])
    if residual == 0.0:
        return gauss(alphas, betas)
    node = checks.real("node", node)
    pivot = math.inf
    for index, alpha in enumerate(alphas.tolist()):
        coupling = float(betas[index - 1]) ** 2 / pivot if index else 0.0
        pivot = alpha - node - coupling
        if not pivot > 0:
            raise ValueError(f"node must be below the smallest Ritz value; got {node:g}. Lower it.")
    return _extended(alphas, betas, node + residual**2 / pivot)


def squared_chain(alphas: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(alphas, betas)``, both (k,), k = m // 2, of the measure of x^2 where x has the measure of a chain.

    m steps know the moments of x up to degree 2m (the last one from the norm of the residual), hence those of x^2 up to
    degree m >= 2k, which k Lanczos steps with A^2 would find: no product is needed. Its Gauss and Gauss-Radau rules
    with a node at 0 bracket integrals of g(x^2) for g of alternating derivatives, such as log(y + eps^2), also where
    the spectrum has both signs, and converge at the rate of the chain itself.

    Args:
        alphas: (m,) Lanczos diagonal, m >= 2.
        betas: (m,) off-diagonal, the last being the norm of the residual.
    """
    count = len(alphas) // 2
    # Moments up to degree 2m do not depend on the corner.
    longer = gauss(torch.cat([alphas.double(), torch.zeros(1, dtype=torch.float64)]), betas)
    nodes, vector = longer.nodes.square(), longer.weights.sqrt()
    basis = torch.zeros(count + 1, len(nodes), dtype=torch.float64)
    basis[0] = vector / vector.norm()
    diagonal, off = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for step in range(count):
        image = nodes * basis[step]
        diagonal[step] = image @ basis[step]
        for _ in range(2):
            image = image - basis[: step + 1].T @ (basis[: step + 1] @ image)
        off[step] = image.norm()
        if not float(off[step]) > _EPS * float(nodes.max()):
            off[step] = 0.0
            return diagonal[: step + 1], off[: step + 1]
        basis[step + 1] = image / off[step]
    return diagonal, off


def steps_for_log(radius: float, shift: float, tol: float) -> int:
    """Return m for a relative quadrature error near ``tol`` of log(x + shift) on [0, radius].

    The nearest singularity, -shift, lies on the Bernstein ellipse of [0, radius] with parameter
    r = (sqrt(kappa) + 1) / (sqrt(kappa) - 1), kappa = 1 + radius / shift; a Gauss rule converges like r^{-2m}.

    Args:
        radius: largest eigenvalue, >= 0.
        shift: distance of the singularity below 0, > 0.
        tol: in (0, 1).
    """
    root = math.sqrt(1.0 + checks.real("radius", radius, low=0) / checks.real("shift", shift, low=0, low_open=True))
    return _steps(math.log((root + 1) / (root - 1)) if root > 1 else math.inf, tol)


def steps_for_smoothed_log(radius: float, eps: float, tol: float) -> int:
    """Return m for a relative quadrature error near ``tol`` of log(x^2 + eps^2) / 2 on [-radius, radius].

    The singularities +-i eps lie on the Bernstein ellipse with parameter r = e + sqrt(1 + e^2), e = eps / radius, so
    log r = asinh(e) and m is about radius / (2 eps) * log(1 / tol).

    Args:
        radius: spectral radius, >= 0.
        eps: smoothing, > 0.
        tol: in (0, 1).
    """
    radius, eps = checks.real("radius", radius, low=0), checks.real("eps", eps, low=0, low_open=True)
    return _steps(math.asinh(eps / radius) if radius > 0 else math.inf, tol)


def cdf_bounds(
    alphas: Tensor, betas: Tensor, x: float, slack: float = 0.0, *, left: bool = False
) -> tuple[float, float]:
    """Return the sharpest bounds on Psi(x), or on Psi(x-), that m Lanczos steps give (Chebyshev, Markov, Stieltjes).

    The rule with a node at x (exact to degree 2m) has weight S below x and w at x, and S <= Psi(x-) <= Psi(x) <= S + w.

    Args:
        alphas: (m,) Lanczos diagonal.
        betas: (m,) off-diagonal, as for ``gauss_radau``.
        x: where; inside, below or above the spectrum.
        slack: eigenvalues within ``slack`` of x count on the side that widens the bounds (rounding of the products).
        left: bound Psi(x-) = Psi of what is < x; it differs from Psi(x) for an exact chain only.
    """
    # Read as arrays: torch takes every number out of a tensor by a call of its own, as if it lay on a device.
    diagonal, beside = alphas.double().numpy(), betas.double().numpy()
    if beside[len(diagonal) - 1] == 0.0:
        rule = gauss(alphas, betas)
        return _weight_below(rule, x - slack, not left), _weight_below(rule, x + slack, not left)
    tiny = math.sqrt(_EPS) * float(np.abs(diagonal).max() + np.abs(beside).max())
    # Near a Ritz value the extended matrix has a huge corner; half a step aside costs nothing, as Psi is monotone.
    ritz = torch.linalg.eigvalsh(tridiagonal(alphas, betas)).numpy()
    aside = 4 * tiny if np.abs(ritz - x).min() < 2 * tiny else 0.0
    slack = max(slack, tiny)
    rule = _through(alphas, betas, x - aside)
    low = _weight_below(rule, x - aside - slack, False)
    return low, _weight_below(_through(alphas, betas, x + aside) if aside else rule, x + aside + slack, True)


def step_bounds(rule: QuadratureRule, x: Tensor, *, exact: bool, slack: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return bounds low <= Psi(x) <= high at many points, from the Gauss rule alone.

    At a node, S_{i-1} <= Psi(x_i-) <= Psi(x_i) <= S_i with S_i the sum of the first i weights. Psi is monotone, so
    between x_i and x_{i+1} it lies in [S_{i-1}, S_{i+1}].

    Args:
        rule: m nodes.
        x: (g,) points.
        exact: the chain ended in an invariant subspace, so that Psi is the rule itself.
        slack: as for ``cdf_bounds``.
    """
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), rule.weights.cumsum(0)]).clamp(max=1.0)
    sums[-1] = 1.0
    last = len(rule.nodes)
    under, over = x.double() - slack, x.double() + slack
    low_index = torch.searchsorted(rule.nodes, under, right=exact)
    high_index = torch.searchsorted(rule.nodes, over, right=True)
    if not exact:
        between = torch.searchsorted(rule.nodes, under, right=True) == low_index
        low_index = torch.where(between, (low_index - 1).clamp(min=0), low_index)
        between = torch.searchsorted(rule.nodes, over, right=False) == high_index
        high_index = torch.where(between, (high_index + 1).clamp(max=last), high_index)
    return sums[low_index], sums[high_index]


def _weight_below(rule: QuadratureRule, x: float, closed: bool) -> float:
    nodes = rule.nodes.numpy()
    inside = nodes <= x if closed else nodes < x
    return min(float(rule.weights.numpy()[inside].sum()), 1.0)


def _through(alphas: Tensor, betas: Tensor, x: float) -> QuadratureRule:
    """Return the (m+1)-point rule with a node at x, which is no Ritz value."""
    shifted = tridiagonal(alphas, betas) - x * torch.eye(len(alphas), dtype=torch.float64)
    unit = torch.zeros(len(alphas), dtype=torch.float64)
    unit[-1] = betas[len(alphas) - 1] ** 2
    return _extended(alphas, betas, x + float(torch.linalg.solve(shifted, unit).numpy()[-1]))


def _extended(alphas: Tensor, betas: Tensor, corner: float) -> QuadratureRule:
    longer = torch.cat([alphas.double(), torch.tensor([corner], dtype=torch.float64)])
    return gauss(longer, betas[: len(alphas)])


def _steps(log_rate: float, tol: float) -> int:
    tol = checks.real("tol", tol, low=0, high=1, low_open=True, high_open=True)
    return max(math.ceil(math.log(1.0 / tol) / (2 * log_rate)), 1)
