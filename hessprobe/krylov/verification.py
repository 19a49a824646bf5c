"""Which eigenpairs are wanted, and the hunt for copies of them that one Krylov space cannot see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessprobe.krylov.certificates import (
    SpectrumBounds,
    bounds_of,
    excludes_above,
    log_start_quantile,
    mirrored,
)
from hessprobe.krylov.eigenpairs import Progress
from hessprobe.krylov.restart import Floats, Ritz, ThickRestart
from hessprobe.operators import Counted

Indices = NDArray[np.intp]

# Eigenvalues below this share of the spectral norm are asked to the absolute precision of one at the share.
SMALL = 0.01

# A verification round that finds nothing is given this many products at least before it gives up.
_PATIENCE = 60

# The couplings of the pairs found widen the intervals beyond what the complement alone leaves.
_NARROW = 0.8

_SHARE, _SHARE_OF_MANY = 0.9, 0.5


@dataclass(frozen=True)
class Problem:
    """What ``eigsh`` was asked for.

    Attributes:
        A: the operator, counted.
        k, which: pairs an end, and which ends.
        target: number of pairs in all.
        tol: relative residual at which a pair counts as converged.
        delta: probability that a bound fails, in all.
        rtol: relative width of the intervals asked for, or None for whatever comes.
        verify: whether copies are looked for.
        limit: products the search and the verification may spend.
        capacity: size of the Krylov basis.
        callback: told after each product.
    """

    A: Counted
    k: int
    which: str
    target: int
    tol: float
    delta: float
    rtol: float | None
    limit: int
    capacity: int
    callback: Callable[[Progress], None] | None
    verify: bool = True

    @property
    def lower_wanted(self) -> bool:
        """Whether something is asked of the lower end."""
        return self.which != "largest"

    @property
    def upper_wanted(self) -> bool:
        """Whether something is asked of the upper end."""
        return self.which != "smallest"

    @property
    def delta_an_end(self) -> float:
        """Probability of failure left to the bound at one end of A; a search for copies gets as much."""
        ends = 1 if self.which in ("largest", "smallest") else 2
        return self.delta / ends / (2 if self.verify and self.k >= 2 else 1)

    def allowed(self, value: float, scale: float) -> float:
        """Return the width that the interval of an eigenvalue may have: rtol * max(|theta|, 0.01 * scale)."""
        return math.inf if self.rtol is None else self.rtol * max(abs(value), SMALL * scale)

    @property
    def spent(self) -> bool:
        """The products allowed are used up."""
        return self.A.matvec_count >= self.limit

    def ranking(self, values: Floats) -> Indices:
        """Return the order in which descending ``values`` are wanted, most wanted first."""
        count = len(values)
        up = np.arange(count)
        if self.which == "largest":
            return up
        if self.which == "smallest":
            return up[::-1]
        if self.which == "magnitude":
            return np.argsort(-np.abs(values), kind="stable")
        order: Indices = np.stack([up, up[::-1]], 1).ravel()[:count]
        return order

    def asked(self, values: Floats, scale: float) -> Floats:
        """Return the residuals asked for: tol * max(|theta|, 0.01 * scale)."""
        bound: Floats = self.tol * np.maximum(np.abs(values), SMALL * scale)
        return bound

    def enough(self, values: Floats, engine: ThickRestart) -> Floats:
        """Return the estimated residuals at which the search stops: a little below those asked for.

        The true residuals may be larger: pairs rotate among each other at the end, and products carry errors.
        """
        share = _SHARE if self.target == 1 else _SHARE_OF_MANY
        bound: Floats = share * np.maximum(self.asked(values, engine.scale), engine.floor)
        return bound

    def report(self, phase: str, ritz: Ritz, converged: int) -> None:
        """Tell the callback where the run stands."""
        if self.callback is None:
            return
        v, r = ritz.values, ritz.residuals
        ends = float(v[0]), float(r[0]), float(v[-1]), float(r[-1])
        limit = self.limit + self.target
        self.callback(Progress(self.A.matvec_count, limit, phase, *ends, min(converged, self.target), self.target))


@dataclass(frozen=True)
class Pool:
    """Eigenpairs found so far.

    Attributes:
        rows: (p, d) orthonormal, or the part of them that this process holds.
        values: (p,), descending.
        residuals: (p,), estimated.
    """

    rows: Tensor
    values: Floats
    residuals: Floats

    def joined(self, other: Pool) -> Pool:
        """Return the union, in descending order."""
        values = np.concatenate([self.values, other.values])
        order = np.argsort(-values, kind="stable")
        rows = torch.cat([self.rows, other.rows])[torch.from_numpy(order).to(self.rows.device)]
        return Pool(rows, values[order], np.concatenate([self.residuals, other.residuals])[order])

    def taken(self, chosen: Indices) -> Pool:
        """Return some of the pairs, in descending order."""
        order = np.sort(chosen)
        return Pool(self.rows[torch.from_numpy(order).to(self.rows.device)], self.values[order], self.residuals[order])


def pool_of(engine: ThickRestart, ritz: Ritz, chosen: Indices) -> Pool:
    """Return chosen Ritz pairs of an engine."""
    order = np.sort(chosen)
    return Pool(engine.vectors(ritz, order), ritz.values[order], ritz.residuals[order])


def kept(order: Indices, needed: int, capacity: int) -> Indices:
    """Return which Ritz vectors survive a restart: those needed and a third of the remaining room."""
    count = min(needed + max(capacity - needed, 0) // 3, capacity - 2)
    return np.sort(order[: max(count, 1)])


@dataclass(frozen=True)
class Complete:
    """What the search for copies ends with.

    Attributes:
        pool: all pairs found.
        verified: whether the last round was conclusive.
        rest: bounds on the spectrum of A on the complement of the pool.
    """

    pool: Pool
    verified: bool
    rest: SpectrumBounds


def complete(problem: Problem, engine: ThickRestart, pool: Pool) -> Complete:
    """Look for wanted eigenpairs orthogonal to those found, until none turns up.

    A Krylov space from one start holds one vector of every eigenspace. Each round locks what is known and starts from
    a random vector in its complement; by interlacing, an eigenvalue of A that was missed is at most the largest one of
    P A P, so that a bound on the complement is a bound on what was missed. A round with nothing new ends as soon as the
    polynomial bound puts the complement below the k-th value, or its extreme Ritz pair has converged there, and the
    intervals are as narrow as asked. Round j may fail with probability delta / 2^j: the number of rounds is not known
    beforehand.

    Args:
        problem: what is wanted.
        engine: the one that filled the pool; gives the random stream and the scale.
        pool: converged pairs, at least ``problem.target``.
    """
    allowed, delta = max(_PATIENCE, math.ceil(problem.A.matvec_count)), problem.delta_an_end
    while len(pool.values) < problem.A.dim:
        room, delta = problem.A.dim - len(pool.values), delta / 2
        engine.release()
        next_engine = ThickRestart(
            problem.A, min(problem.capacity, room), engine.stream, engine.next_index, pool.rows, engine.scale
        )
        found, conclusive = _round(problem, next_engine, pool, allowed, delta)
        if found is None or not conclusive:
            rest = SpectrumBounds(None, None)
            if found is None and next_engine.size:
                ends = {"lower": problem.lower_wanted, "upper": problem.upper_wanted}
                rest = bounds_of(next_engine, delta, 1.0, **ends)
            return Complete(pool if found is None else pool.joined(found), conclusive, rest)
        pool, engine = pool.joined(found), next_engine
    return Complete(pool, True, SpectrumBounds(math.inf, -math.inf))


def _round(problem: Problem, engine: ThickRestart, pool: Pool, allowed: int, delta: float) -> tuple[Pool | None, bool]:
    low, high = _thresholds(problem, pool, engine)
    stop_at = problem.A.matvec_count + allowed
    engine.begin()
    while True:
        if problem.spent:
            return None, False
        engine.step()
        ritz = engine.ritz()
        problem.report("verify", ritz, problem.target)
        new = np.flatnonzero((ritz.values > high) | (ritz.values < low))
        settled = ritz.residuals <= problem.enough(ritz.values, engine)
        if len(new) and (engine.exhausted or bool(settled[new].all())):
            return pool_of(engine, ritz, new), True
        conclusive = not len(new) and _conclusive(engine, settled, (low, high), delta)
        if conclusive and _narrow(problem, engine, (low, high), delta):
            return None, True
        if problem.spent or (not len(new) and problem.A.matvec_count >= stop_at):
            return (pool_of(engine, ritz, new) if len(new) else None), conclusive
        if engine.full:
            order = np.concatenate([new, np.setdiff1d(problem.ranking(ritz.values), new, assume_unique=True)])
            engine.restart(ritz, kept(order, len(new), engine.capacity))


def _thresholds(problem: Problem, pool: Pool, engine: ThickRestart) -> tuple[float, float]:
    """Return (low, high): an eigenvalue of the complement outside of them belongs among the wanted ones."""
    chosen = np.sort(problem.ranking(pool.values)[: problem.target])
    values = pool.values[chosen]
    if problem.which == "magnitude":
        high = float(np.abs(values).min())
        low = -high
    else:
        high = float(values[problem.k - 1]) if problem.which != "smallest" else math.inf
        low = float(values[-problem.k]) if problem.which != "largest" else -math.inf
    margins = problem.enough(np.nan_to_num(np.array([low, high]), posinf=0.0, neginf=0.0), engine)
    return low - float(margins[0]), high + float(margins[1])


def _conclusive(engine: ThickRestart, settled: NDArray[Any], ends: tuple[float, float], delta: float) -> bool:
    if engine.exhausted:
        return True
    below, above = excluded(engine, *ends, log_start_quantile(engine.space, delta))
    return (above or bool(settled[0])) and (below or bool(settled[-1]))


def _narrow(problem: Problem, engine: ThickRestart, ends: tuple[float, float], delta: float) -> bool:
    """Return whether what may be missing in the complement leaves the intervals as narrow as asked."""
    if problem.rtol is None or engine.exhausted:
        return True
    low, high = (
        end + sign * _NARROW * problem.allowed(end, engine.scale) for end, sign in zip(ends, (-1, 1), strict=True)
    )
    low, high = (end if math.isfinite(own) else own for end, own in zip((low, high), ends, strict=True))
    return excluded(engine, low, high, log_start_quantile(engine.space, delta)) == (True, True)


def excluded(engine: ThickRestart, low: float, high: float, log_c: float | None) -> tuple[bool, bool]:
    """Return whether the polynomial bounds exclude eigenvalues below ``low``, and above ``high``."""
    below, above = low == -math.inf, high == math.inf
    if log_c is not None:
        betas = engine.bounding_betas
        mirror = mirrored(engine.restarts)
        below = below or excludes_above([-alpha for alpha in engine.alphas], betas, -low, log_c, mirror)
        above = above or excludes_above(engine.alphas, betas, high, log_c, engine.restarts)
    return below, above
