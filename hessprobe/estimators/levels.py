r"""Two lengths of Lanczos chains: many short ones carry a polynomial, few long ones what is left of f.

j steps give w^T q(A) w exactly for every polynomial q of degree <= 2j - 1, at a fraction of the m steps that f itself
needs. With q fitted to f, p long chains and P short ones with probes of their own, and a = P / (P + p),

    tr f(A) ~ mean_long w^T (f - a q)(A) w + a mean_short w^T q(A) w,

which is unbiased for every q and a that do not depend on these probes: q is the weighted least-squares fit on the Ritz
values of a pilot, and a follows from the sizes. For probes on the sphere of the n sampled dimensions (see
``SpectralSketch``) the residual f - q of such a fit is uncorrelated with q, and

    Var = V(f - q) / p + V(q) / (P + p),        V(g) = 2 n^2 / (n + 2) (mean g(lambda)^2 - (mean g(lambda))^2).

References:
    Cochran (1977), "Sampling Techniques", chapter 12 (double sampling); Giles (2015), "Multilevel Monte Carlo methods";
    Hallman, Troester (2022), "A multilevel approach to stochastic trace estimation".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe.estimators import budget
from hessprobe.estimators.spectral import probe_law
from hessprobe.krylov.quadrature import gauss

Chain = tuple[Tensor, Tensor]

# Steps of short chains that are tried, and long chains.
_SHORT_STEPS = (2, 3, 4, 6, 8, 12, 16)
_GROWTH = 1.25
# The fit looks better on the Ritz values it was made from than on others.
_OPTIMISM = 1.25


@dataclass(frozen=True, eq=False)
class ShortChains:
    """Short chains and the measure that polynomials are fitted on.

    Attributes:
        norms: (P,) of the projected probes.
        chains: ``(alphas, betas)`` of each, j steps or fewer.
        nodes, weights: (r,) of the pilot.
    """

    norms: Tensor
    chains: list[Chain]
    nodes: Tensor
    weights: Tensor

    @property
    def degree(self) -> int:
        """Largest degree whose polynomials the chains integrate exactly; shorter chains are exact altogether."""
        return 2 * max((len(alphas) for alphas, _ in self.chains), default=1) - 1


@dataclass(frozen=True)
class Levels:
    """What the two kinds of chains say about one f.

    Attributes:
        share: a.
        long: (p,) w^T q(A) w of the long chains.
        short: mean of w^T q(A) w over the short chains.
        rest_std, polynomial_std: of one probe, for f - q and for q.
        std_error: of the estimate.
        df: degrees of freedom.
    """

    share: float
    long: Tensor
    short: float
    rest_std: float
    polynomial_std: float
    std_error: float
    df: float


def levels_of(
    f: Callable[[Tensor], Tensor], short: ShortChains, norms: Tensor, chains: list[Chain], dim: int
) -> Levels:
    """Return both levels for f.

    Args:
        f: elementwise map of an fp64 tensor.
        short: the short chains.
        norms: (p,) of the long chains' probes.
        chains: ``(alphas, betas)`` of the long chains.
        dim: n, dimension that the probes sample.
    """
    q = fitted(f, short.nodes, short.weights, short.degree)
    p, P = len(chains), len(short.chains)
    share = P / (P + p)
    rules = [gauss(*chain) for chain in chains if len(chain[0])]
    nodes = torch.cat([rule.nodes for rule in rules])
    weights = torch.cat([rule.weights for rule in rules]) / len(rules)
    values, curve = f(nodes), q(nodes)
    mixed = probe_law(values - share * curve, weights, dim, "sphere")
    polynomial = probe_law(curve, weights, dim, "sphere")
    # The long chains alone tell both variances.
    parts = (
        (mixed.std / math.sqrt(p), mixed.freedom(p)),
        (share * polynomial.std / math.sqrt(P), polynomial.freedom(p)),
    )
    return Levels(
        share=share,
        long=norms**2 * torch.tensor([_integral(q, chain) for chain in chains], dtype=torch.float64),
        short=float((short.norms**2 * torch.tensor([_integral(q, c) for c in short.chains]).double()).mean()),
        rest_std=probe_law(values - curve, weights, dim, "sphere").std,
        polynomial_std=polynomial.std,
        std_error=math.hypot(parts[0][0], parts[1][0]),
        df=budget.dependent_df(*parts),
    )


def fitted(f: Callable[[Tensor], Tensor], nodes: Tensor, weights: Tensor, degree: int) -> Callable[[Tensor], Tensor]:
    """Return the polynomial of a degree nearest to f in the weighted mean square over nodes, as a map of fp64 tensors.

    Args:
        f: elementwise map.
        nodes: (r,) fp64.
        weights: (r,) fp64, >= 0.
        degree: largest degree; at most r - 1 is used.
    """
    low, high = float(nodes.min()), float(nodes.max())
    middle, half = (low + high) / 2, (high - low) / 2 or 1.0
    count = min(degree, len(nodes) - 1) + 1

    def basis(x: Tensor) -> Tensor:
        t = (x - middle) / half
        columns = [torch.ones_like(t), t]
        while len(columns) < count:
            columns.append(2 * t * columns[-1] - columns[-2])
        return torch.stack(columns[:count], dim=1)

    root = weights.sqrt()
    # By singular values: few distinct nodes leave some polynomials undetermined.
    found = torch.linalg.lstsq(basis(nodes) * root[:, None], (f(nodes) * root)[:, None], driver="gelsd").solution[:, 0]

    def polynomial(x: Tensor) -> Tensor:
        value: Tensor = basis(x) @ found
        return value

    return polynomial


def _integral(q: Callable[[Tensor], Tensor], chain: Chain) -> float:
    return gauss(*chain).integrate(q) if len(chain[0]) else 0.0


@dataclass(frozen=True)
class Sizes:
    """How many chains of which length.

    Attributes:
        long: p.
        short: P; 0 where short chains do not pay.
        steps: j of the short chains.
        cost: products of all.
    """

    long: int
    short: int
    steps: int
    cost: float


def best_sizes(
    measured: dict[int, tuple[float, float]],
    plain: int,
    long_cost: int,
    half_width: float,
    confidence: float,
    limits: tuple[int, int],
) -> Sizes:
    """Return the cheapest sizes that reach a half-width.

    Args:
        measured: for each number of short steps, (standard deviation of f - q, of q) of one probe.
        plain: long chains that reach it without short ones.
        long_cost: products a long chain.
        half_width: asked for, > 0.
        confidence: its level.
        limits: fewest long chains, and most chains in all.
    """
    best = Sizes(plain, 0, 0, float(plain * long_cost))
    fewest, most = limits
    for steps, (rest, polynomial) in measured.items():
        long = float(fewest)
        while long < plain:
            p = math.ceil(long)
            rest_error = _OPTIMISM * rest / math.sqrt(p)

            def error(total: int, rest_error: float = rest_error, sd: float = polynomial) -> float:
                return math.hypot(rest_error, sd / math.sqrt(total))

            def freedom(total: int, p: int = p, rest_error: float = rest_error, sd: float = polynomial) -> float:
                share = 1 - p / total
                own = math.hypot(rest_error, (1 - share) * sd / math.sqrt(p))
                return budget.joint_df((own, p - 1.0), (share * sd / math.sqrt(total - p), total - p - 1.0))

            total = budget.smallest_count(error, freedom, half_width, confidence, minimum=p + 8, maximum=most)
            cost = float(p * long_cost + (total - p) * steps)
            if total < most and cost < best.cost:
                best = Sizes(p, total - p, steps, cost)
            long = max(long * _GROWTH, long + 1)
    return best


def short_steps(longest: int) -> list[int]:
    """Return the lengths worth trying beside chains of ``longest`` steps."""
    return [steps for steps in _SHORT_STEPS if 2 * steps <= longest]
