"""Kendall's tau between a measure and the generalisation gap of few checkpoints, with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy import special
from torch import Tensor

from hessprobe import checks
from hessprobe.comparison.names import FEWEST

# Simulated samples behind a limit, checkpoints up to which they are made, and halvings of the range of correlations.
_DRAWS, _SIMULATED, _HALVINGS = 4000, 40, 14


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau of pairs (x_i, y_i).

    Attributes:
        tau: tau-b in [-1, 1]; nan where all x or all y are equal.
        interval: of the tau of the population that the pairs are a sample of.
        confidence: its level.
        count: number of pairs.
        method: of the interval.
    """

    tau: float
    interval: tuple[float, float]
    confidence: float
    count: int
    method: str

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval[0] > 0 or self.interval[1] < 0


def kendall(x: Sequence[float], y: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> RankCorrelation:
    r"""Return Kendall's tau-b with an interval.

    Up to 40 pairs the interval holds every tau whose normal law would not make the observed one a surprise: limits at
    P(T >= t) and P(T <= t) = (1 - confidence) / 2, T the tau of as many draws from a bivariate normal law with
    rho = sin(pi tau / 2), by simulation. As tau depends on ranks alone this holds for any law that monotone changes of
    x and y make normal; being discrete, T covers at least as often as it says. Beyond 40 pairs: Fieller's
    atanh(t) -+ z sqrt(0.437 / (n - 4)).

    Args:
        x: (n,) finite, n >= 5.
        y: (n,) finite.
        confidence: in (0, 1).
        seed: of the simulation, >= 0.

    Raises:
        ValueError: fewer than 5 pairs, lengths that differ, numbers that are not finite.

    References:
        Kendall (1938); Fieller, Hartley, Pearson (1957), "Tests for rank correlation coefficients. I".
    """
    first, second = (torch.as_tensor(list(each), dtype=torch.float64) for each in (x, y))
    confidence = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    if len(first) != len(second) or len(first) < FEWEST:
        raise ValueError(
            f"x and y must be as many, and at least {FEWEST}; got {len(first)} and {len(second)}. Fewer checkpoints "
            "leave every correlation possible."
        )
    if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise ValueError("x and y must be finite; got nan or inf. Leave such checkpoints out.")
    count, tau = len(first), _tau_b(first, second)
    if math.isnan(tau):
        return RankCorrelation(tau, (-1.0, 1.0), confidence, count, "none: all values are equal")
    if count > _SIMULATED:
        return RankCorrelation(tau, _fieller(tau, count, confidence), confidence, count, "Fieller")
    limits = _limits(tau, count, (1 - confidence) / 2, seed)
    return RankCorrelation(tau, limits, confidence, count, "simulated normal law")


def _tau_b(x: Tensor, y: Tensor) -> float:
    i, j = torch.triu_indices(len(x), len(x), offset=1)
    a, b = (x[i] - x[j]).sign(), (y[i] - y[j]).sign()
    size = math.sqrt(float(a.abs().sum()) * float(b.abs().sum()))
    return float((a * b).sum()) / size if size else math.nan


@lru_cache(maxsize=1024)
def _limits(tau: float, count: int, tail: float, seed: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, _DRAWS, count, generator=generator, dtype=torch.float64)
    i, j = torch.triu_indices(count, count, offset=1)
    du, dv = u[:, i] - u[:, j], v[:, i] - v[:, j]
    signs = du.sign()

    def taus(rho: float) -> Tensor:
        found: Tensor = (signs * (rho * du + math.sqrt(1 - rho**2) * dv).sign()).mean(1)
        return found

    slack = 1e-9  # tau is a multiple of 2 / (n (n - 1)), up to rounding
    low = _root(lambda rho: float((taus(rho) >= tau - slack).double().mean()) < tail)
    high = _root(lambda rho: float((taus(rho) <= tau + slack).double().mean()) >= tail)
    return 2 / math.pi * math.asin(low), 2 / math.pi * math.asin(high)


def _root(below: Callable[[float], bool]) -> float:
    """Return the correlation in [-1, 1] up to which ``below`` holds."""
    low, high = -1.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2 if abs(low + high) < 2 - 2**-_HALVINGS * 4 else math.copysign(1.0, low + high)


def _fieller(tau: float, count: int, confidence: float) -> tuple[float, float]:
    half = float(special.ndtri(0.5 + confidence / 2)) * math.sqrt(0.437 / (count - 4))
    centre = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, tau)))
    return math.tanh(centre - half), math.tanh(centre + half)
