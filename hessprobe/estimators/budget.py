"""Sample sizes: a fixed number of probes, or a tolerance that a pilot turns into one.

A tolerance asks that the half-width of the ``confidence`` interval be at most ``max(atol, rtol * |value|)``. It is
met in two stages: a pilot of fixed size estimates the spread of one sample; then one run of the size this asks for,
with fresh probes, gives value *and* error. The pilot's probes never enter the answer. Given its size, the final run
is therefore an ordinary sample of fixed size, unbiased and with the coverage of a fixed sample, which a rule that
stops when the running interval looks good does not have. The price is the pilot, and that the interval may come out
somewhat wider than asked for when the pilot saw too little spread: its standard deviation is taken at its upper 80 %
confidence limit (chi-square) to make this rare, and a result that misses its tolerance carries the flag
``"tolerance-missed"``.

References:
    Stein (1945), "A two-sample test for a linear hypothesis whose power is independent of the variance".

What deflating a pilot's own products would leave, told from these products alone.

The products Z = A W of a pilot span what a random sketch sees of the range of A. Their k leading singular vectors V
cost no product, are independent of every later probe, and may therefore be deflated without bias at k products. What
they would leave is known beforehand by leaving one probe out: with V_i made of all products but z_i and
P_i = I - V_i^T V_i,

    r_ik = ||P_i A w_i||^2,        E r_ik = E ||P_i A||_F^2 >= E ||P_i A P_i||_F^2,

as w_i is independent of V_i. The mean over i is an unbiased estimate, for a sketch of one probe fewer, of what bounds
the part that is left to sample. Everything comes from the Gram matrix of the products.

References:
    Halko, Martinsson, Tropp (2011), "Finding structure with randomness".
    Epperly, Tropp, Webber (2024), "XTrace" (leaving one probe out).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from scipy import special
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NumericalWarning, about
from hessprobe.estimate import Estimate, student_quantile
from hessprobe.vectors import combine, gram, orthonormal_rows

R = TypeVar("R")

DEFAULT_PROBES = 16
MAX_PROBES = 10_000

# Upper confidence level at which a pilot's standard deviation is taken.
_PILOT_LEVEL = 0.8
# An answer without any error is worth this many times the products of one with an error.
WORTH = 1.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an estimator has come, handed to ``callback`` after each block of products.

    The last one of each stage is what an interrupted run can still report.

    Attributes:
        done: products (or passes over the data) made so far in the current run, may be fractional.
        total: products the current run will make; None where that is not known.
        value: the estimate from what is known so far; None where nothing is known yet.
        std_error: its standard error; None while it cannot be told.
        stage: what is under way where a measurement has several stages, e.g. ``"eigenvalues"``.
    """

    done: float
    total: float | None = None
    value: float | None = None
    std_error: float | None = None
    stage: str = ""

    def __post_init__(self) -> None:
        for name in ("total", "value", "std_error"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                object.__setattr__(self, name, None)


Callback = Callable[[Progress], Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """What the caller asked for: a fixed number of probes, or a tolerance.

    Attributes:
        n_probes: fixed size, or None where a tolerance decides.
        rtol, atol: tolerances >= 0; both 0 where ``n_probes`` is fixed.
        confidence: level of the interval the tolerances speak of.
        max_probes: cap on the size a tolerance may ask for.
    """

    n_probes: int | None
    rtol: float
    atol: float
    confidence: float
    max_probes: int

    def target(self, value: float) -> float:
        """Return the half-width asked for at ``value``."""
        return max(self.atol, self.rtol * abs(value))


def goal(
    rtol: float | None,
    atol: float | None,
    n_probes: int | None,
    confidence: float = 0.95,
    max_probes: int = MAX_PROBES,
) -> Goal:
    """Check the arguments every estimator shares; neither tolerance nor ``n_probes`` means ``DEFAULT_PROBES``.

    Raises:
        TypeError, ValueError: a tolerance that is not a positive number, fewer than two probes, a tolerance together
            with ``n_probes``, or a confidence outside (0, 1).
    """
    hint = "Leave it out or give a positive number, e.g. 0.01."
    relative = 0.0 if rtol is None else checks.real("rtol", rtol, low=0, low_open=True, hint=hint)
    absolute = 0.0 if atol is None else checks.real("atol", atol, low=0, low_open=True, hint=hint)
    level = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    cap = checks.positive_int("max_probes", max_probes, minimum=2)
    if n_probes is None:
        fixed = None if relative or absolute else DEFAULT_PROBES
        return Goal(fixed, relative, absolute, level, cap)
    if relative or absolute:
        raise ValueError(
            about(
                "n_probes",
                f"must be None where rtol or atol is given; got {n_probes}. Fix the size or the tolerance, not both.",
            )
        )
    count = checks.positive_int("n_probes", n_probes, minimum=2, hint="One sample has no standard error.")
    return Goal(count, 0.0, 0.0, level, cap)


def required_samples(std: float, half_width: float, confidence: float, *, minimum: int = 8) -> int:
    """Return the smallest n >= ``minimum`` with t_{n-1} std / sqrt(n) <= ``half_width``.

    Args:
        std: standard deviation of one sample, >= 0.
        half_width: of the two-sided interval, > 0 (0 is allowed where ``std`` is 0).
        confidence: level in (0, 1).
        minimum: at least 2.

    Raises:
        ValueError: an argument outside its range.
    """
    std = checks.real("std", std, low=0)
    minimum = checks.positive_int("minimum", minimum, minimum=2)
    if std == 0.0:
        return minimum
    half_width = checks.real("half_width", half_width, low=0, low_open=True)
    return smallest_count(
        lambda n: std / math.sqrt(n), lambda n: n - 1.0, half_width, confidence, minimum=minimum, maximum=2**62
    )


def smallest_count(
    error_at: Callable[[int], float],
    df_at: Callable[[int], float],
    half_width: float,
    confidence: float,
    *,
    minimum: int,
    maximum: int,
) -> int:
    """Return the smallest n in [minimum, maximum] with t_{df(n)} error(n) <= half_width; ``maximum`` where none has.

    Args:
        error_at: standard error expected of n samples, falling in n.
        df_at: its degrees of freedom, rising in n.
        half_width: >= 0.
        confidence: level in (0, 1).
        minimum: smallest n tried.
        maximum: largest; the search doubles, then bisects.
    """
    level = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)

    def enough(n: int) -> bool:
        error = error_at(n)
        return error == 0.0 or student_quantile(0.5 + level / 2, df_at(n)) * error <= half_width

    low, high = minimum - 1, minimum
    while not enough(high):
        if high >= maximum:
            return maximum
        low, high = high, min(2 * high, maximum)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def exact_pays(dim: int, products: float) -> bool:
    """True where d = ``dim`` products, which give an answer without an error, beat so many for a sampled one.

    Every ``method="auto"`` asks this of the fewest products that sampling can take before it makes any, and of those
    that the pilot says it would take.
    """
    return dim <= WORTH * products


@dataclass(frozen=True)
class Way(Generic[R]):
    """A way to an answer, as a pilot sees it.

    Attributes:
        products: that it is still expected to take.
        run: makes the answer.
        reason: for it, in words.
    """

    products: float
    run: Callable[[], R]
    reason: str = ""


def carried_out(dim: int, ways: Sequence[Way[R]], exact: Callable[[float], R] | None) -> tuple[R, str]:
    """Return the answer of the way with the fewest products, or of d products where these pay, and why.

    Args:
        dim: d.
        ways: at least one, of runs of fixed size with probes of their own.
        exact: makes the answer from d products, told what sampling would take; None where it may not be.
    """
    best = min(ways, key=lambda way: way.products)
    if exact is not None and exact_pays(dim, best.products):
        return exact(best.products), f"{dim} products give it exactly, sampling would take {best.products:.0f}"
    return best.run(), best.reason


def pilot_passes(n_terms: int, samples: int = 12) -> int:
    """Return the passes of a pilot over ``n_terms`` independently probed terms: so many samples in all, at least 2."""
    return max(2, -(-samples // n_terms))


def minimum_passes(n_terms: int) -> int:
    """Return the fewest passes of a final run: 8 for one term, fewer where many terms pool their variances."""
    return max(2, min(8, -(-24 // n_terms)))


def upper_std(std: float, df: float) -> float:
    """Return the upper confidence limit of a standard deviation measured with ``df`` degrees of freedom."""
    if std == 0.0 or math.isinf(df):
        return std
    return std * math.sqrt(df / float(2 * special.gammaincinv(df / 2, 1 - _PILOT_LEVEL)))


def joint_df(*parts: tuple[float, float]) -> float:
    """Return the degrees of freedom of the sum of independent errors, given as (standard error, df) (Satterthwaite)."""
    spread = sum(error**4 / df for error, df in parts if error > 0)
    return sum(error**2 for error, _ in parts) ** 2 / spread if spread > 0 else min(df for _, df in parts)


def dependent_df(*parts: tuple[float, float]) -> float:
    """Return the degrees of freedom of sqrt(sum_k s_k^2) where the variances may have been measured together.

    s_k^2 known to df_k degrees of freedom has the standard deviation s_k^2 sqrt(2 / df_k); those of variances that
    the same probes measure add up at most, where those of independent ones add in squares (``joint_df``):

        df = (sum_k s_k^2)^2 / (sum_k s_k^2 / sqrt(df_k))^2,

    which lies between the smallest and the largest df_k.

    Args:
        *parts: (standard error, degrees of freedom) each, at least one error positive.
    """
    spread = sum(error**2 / math.sqrt(df) for error, df in parts)
    return (sum(error**2 for error, _ in parts) / spread) ** 2


def spread_df(values: Tensor) -> float:
    """Return the degrees of freedom behind the sample variance of ``values`` (n,), n >= 2: at most n - 1.

    With the sample kurtosis k the variance of n numbers has relative variance (k - 1) / n, which is that of chi-square
    with 2 n / (k - 1) degrees of freedom. It is n for normal numbers, and stays near 2 however many are drawn where
    the law has no variance, as then one number carries the sum of squares.

    References:
        Satterthwaite (1946), "An approximate distribution of estimates of variance components"; Box (1953),
        "Non-normality and tests on variances".
    """
    n = len(values)
    deviations = values.double() - values.double().mean()
    size = deviations.abs().max()
    if not float(size) > 0:
        return n - 1.0
    squares = (deviations / size).square()
    excess = float(n * squares.square().sum() / squares.sum() ** 2) - 1.0
    return min(2 * n / excess, n - 1.0) if excess > 0 else n - 1.0


def settled(estimate: Estimate, asked: Goal, wanted: int, used: int) -> Estimate:
    """Return ``estimate`` with the flags of a tolerance that was cut by ``max_probes`` or missed.

    Args:
        estimate: of the final run.
        asked: the goal.
        wanted: probes the pilot asked for (at least ``used``).
        used: probes of the final run.

    Warns:
        NumericalWarning: ``max_probes`` cut the sample.
    """
    if asked.n_probes is not None:
        return estimate
    target = asked.target(estimate.value)
    flags = list(estimate.flags)
    if estimate.half_width(asked.confidence) > target:
        flags.append("tolerance-missed")
    if wanted >= asked.max_probes and used >= asked.max_probes and "tolerance-missed" in flags:
        flags.append("budget-exhausted")
        warnings.warn(
            f"max_probes must be larger for this tolerance; got {asked.max_probes}, which leaves a half-width of "
            f"{estimate.half_width(asked.confidence):.3g} where {target:.3g} was asked. Deflate leading eigenvectors, "
            "loosen the tolerance, or raise max_probes.",
            NumericalWarning,
            stacklevel=2,
        )
    return estimate.with_(flags=tuple(flags))


# Directions of this share of the largest one, relative and squared, are rounding.
_FLOOR = 64 * torch.finfo(torch.float64).eps


def remainders(products: Tensor) -> Tensor:
    """Return r_ik, fp64 (m, m) on the CPU: row i for the probe left out, column k for k deflated directions, k < m.

    Args:
        products: (m, d) rows A w_i, m >= 2.
    """
    G = gram(products, products).cpu()
    m = len(G)
    kept = torch.stack([torch.cat([torch.arange(i), torch.arange(i + 1, m)]) for i in range(m)])
    values, vectors = torch.linalg.eigh(G[kept[:, :, None], kept[:, None, :]])
    # Largest first; what is rounding takes nothing out.
    values, vectors = values.flip(-1), vectors.flip(-1)
    usable = values > _FLOOR * values[:, :1].clamp_min(torch.finfo(torch.float64).tiny)
    along = (vectors.mT @ G[torch.arange(m)[:, None], kept][:, :, None])[:, :, 0]
    taken = torch.where(usable, along.square() / torch.where(usable, values, 1.0), 0.0).cumsum(-1)
    left = G.diagonal()[:, None] - torch.cat([torch.zeros(m, 1, dtype=torch.float64), taken], dim=1)
    return left.clamp_min(0.0)


def leading(products: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading directions of the rows of ``products`` (m, d), orthonormal, in their dtype.

    Fewer where the products span fewer.
    """
    values, vectors = torch.linalg.eigh(gram(products, products))
    floor = _FLOOR * float(values[-1])
    usable = int((values > max(floor, 0.0)).sum())
    columns = vectors.flip(-1)[:, : min(count, usable)]
    return orthonormal_rows(combine(columns.T, products))
