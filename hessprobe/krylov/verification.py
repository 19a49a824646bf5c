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

from hessprobe.krylov.bounds import excludes_above, log_start_quantile
from hessprobe.krylov.eigenpairs import Progress
from hessprobe.krylov.restart import Floats, Ritz, ThickRestart
from hessprobe.operators import Counted

Indices = NDArray[np.intp]

# Eigenvalues below this share of the spectral norm are asked to the absolute precision of one at the share.
SMALL = 0.01

# A verification round that finds nothing is given this many products at least before it gives up.
_PATIENCE = 60

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
    limit: int
    capacity: int
    callback: Callable[[Progress], None] | None

    @property
    def delta_an_end(self) -> float:
        """Probability of failure left to the bound at one end."""
        return self.delta if self.which in ("largest", "smallest") else self.delta / 2

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
    """Eigenpairs found so far: orthonormal rows (p, d), values (p,) descending, estimated residuals (p,)."""

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


def rest_of(ritz: Ritz, chosen: Indices) -> tuple[Floats, Floats]:
    """Return values and residuals of the Ritz pairs that were not chosen."""
    return np.delete(ritz.values, chosen), np.delete(ritz.residuals, chosen)


def kept(order: Indices, needed: int, capacity: int) -> Indices:
    """Return which Ritz vectors survive a restart: those needed and a third of the remaining room."""
    count = min(needed + max(capacity - needed, 0) // 3, capacity - 2)
    return np.sort(order[: max(count, 1)])


def complete(problem: Problem, engine: ThickRestart, pool: Pool) -> tuple[Pool, bool, tuple[Floats, Floats] | None]:
    """Look for wanted eigenpairs orthogonal to those found, until none turns up.

    A Krylov space from one start holds one vector of every eigenspace. Each round locks what is known and starts from
    a random vector in its complement; by interlacing, an eigenvalue of A that was missed is at most the largest one of
    P A P, so that a bound on the complement is a bound on what was missed. A round with nothing new ends as soon as the
    polynomial bound puts the complement below the k-th value, or its extreme Ritz pair has converged there.

    Args:
        problem: what is wanted.
        engine: the one that filled the pool; gives the random stream and the scale.
        pool: converged pairs, at least ``problem.target``.

    Returns:
        The pool with what was found; whether the last round was conclusive; values and residuals of the Ritz pairs
        in the complement where something was found.
    """
    rest, allowed = None, max(_PATIENCE, math.ceil(problem.A.matvec_count))
    while len(pool.values) < problem.A.dim:
        room = problem.A.dim - len(pool.values)
        next_engine = ThickRestart(
            problem.A, min(problem.capacity, room), engine.stream, engine.next_index, pool.rows, engine.scale
        )
        found, conclusive, others = _round(problem, next_engine, pool, allowed)
        if found is None:
            return pool, conclusive, rest and others
        pool, engine, rest = pool.joined(found), next_engine, others
        if not conclusive:
            return pool, False, rest
    return pool, True, rest


def _round(
    problem: Problem, engine: ThickRestart, pool: Pool, allowed: int
) -> tuple[Pool | None, bool, tuple[Floats, Floats]]:
    low, high = _thresholds(problem, pool, engine)
    stop_at = problem.A.matvec_count + allowed
    engine.begin()
    while True:
        if problem.spent:
            return None, False, (np.empty(0), np.empty(0))
        engine.step()
        ritz = engine.ritz()
        problem.report("verify", ritz, problem.target)
        new = np.flatnonzero((ritz.values > high) | (ritz.values < low))
        settled = ritz.residuals <= problem.enough(ritz.values, engine)
        if len(new) and (engine.exhausted or bool(settled[new].all())):
            return pool_of(engine, ritz, new), True, rest_of(ritz, new)
        if not len(new) and _conclusive(problem, engine, settled, low, high):
            return None, True, rest_of(ritz, new)
        if problem.spent or (not len(new) and problem.A.matvec_count >= stop_at):
            found = pool_of(engine, ritz, new) if len(new) else None
            return found, False, rest_of(ritz, new)
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


def _conclusive(problem: Problem, engine: ThickRestart, settled: NDArray[Any], low: float, high: float) -> bool:
    if engine.exhausted:
        return True
    below, above = excluded(engine, low, high, log_start_quantile(engine.space, problem.delta_an_end))
    return (above or bool(settled[0])) and (below or bool(settled[-1]))


def excluded(engine: ThickRestart, low: float, high: float, log_c: float | None) -> tuple[bool, bool]:
    """Return whether the polynomial bounds exclude eigenvalues below ``low``, and above ``high``."""
    below, above = low == -math.inf, high == math.inf
    if log_c is not None:
        below = below or excludes_above([-alpha for alpha in engine.alphas], engine.betas, -low, log_c)
        above = above or excludes_above(engine.alphas, engine.betas, high, log_c)
    return below, above
