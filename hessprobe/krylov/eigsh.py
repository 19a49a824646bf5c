"""Extreme eigenpairs of a symmetric operator, with residuals, error bounds and cost."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NumericalWarning
from hessprobe.krylov.bounds import log_start_quantile, lower_bound, upper_bound
from hessprobe.krylov.eigenpairs import Eigenpairs, Progress, Refined, SpectrumBounds, refine, value_errors
from hessprobe.krylov.orthogonal import normalised, random_row
from hessprobe.krylov.restart import Floats, Ritz, ThickRestart
from hessprobe.krylov.verification import Problem, complete, excluded, kept, pool_of, rest_of
from hessprobe.operators import Counted, LinearOperator, aslinearoperator
from hessprobe.probes import ProbeStream
from hessprobe.vectors import combine, orthonormal_rows, row_dots

WHICH = ("both", "largest", "smallest", "magnitude")

# Share tau of fresh randomness in a warm start, which keeps the bounds rigorous.
_RANDOM_PART = 0.1
_EXTRA = 20

# Ritz pairs are looked at once for each of this share of the pairs wanted.
_LOOKS = 16


def eigsh(
    A: Any,
    k: int = 1,
    which: str = "both",
    *,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int | torch.Generator = 0,
    start: Tensor | None = None,
    margin: float = 0.05,
    delta: float = 0.01,
    verify: bool = True,
    basis_size: int | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> Eigenpairs:
    """Return the k largest and the k smallest eigenvalues of A (or one end) with their eigenvectors.

    Thick-restart Lanczos with full reorthogonalisation in fp64; both ends grow from one Krylov space. A pair (theta, y)
    has converged when

        ||A y - theta y|| <= max(tol * max(|theta|, 0.01 * s), f),    s about ||A||_2,

    so that some eigenvalue lies within tol * |theta| of theta; its error is usually far smaller, about the square of
    that (``Eigenpairs.errors``). Eigenvalues below 1 % of the spectral norm s get the absolute precision of one at 1 %;
    ask a smaller ``tol`` for more. The floor f = min(4 e + 4 eps s, 0.001 s) is the rounding of the products: eps that
    of the dtype, e the norm of the error of a product, measured during the run from coefficients that symmetry makes
    known. All residuals returned come from one true product a pair at the end.

    Two further answers are free: (1 - delta) bounds on lambda_max and lambda_min from the Lanczos polynomials
    (``krylov.bounds``; delta is split where both ends are asked for), and, where A is a sum over batches, the sampling
    error of every eigenvalue.

    Args:
        A: a ``LinearOperator`` (d, d), a symmetric matrix, or anything with ``shape`` and ``@``.
        k: pairs an end (in all for ``"magnitude"``), 1 <= k <= d; where 2k > d, ``"both"`` returns all d.
        which: ``"both"``, ``"largest"``, ``"smallest"`` (algebraically), or ``"magnitude"`` (largest |lambda|).
        tol: relative residual, in (0, 1).
        max_matvecs: most products, at least twice the number of pairs; by default 1000 + 50 a pair. What is left
            is returned unconverged, with a warning and a flag.
        seed: of the random start, a non-negative integer or a generator.
        start: (j, d) approximate eigenvectors, j >= 1, such as those of a neighbouring checkpoint. The run starts from
            their sum and a tenth of fresh noise.
        margin: > 0. A warm start may sit on an eigenvector that is no longer the extreme one, and converge there at
            once: it goes on until the bounds exclude eigenvalues this share of s beyond those found. At 5 % that
            takes about as many products as a cold start, at 50 % fewer.
        delta: probability that a bound fails, in (0, 1).
        verify: for k >= 2, look for further copies of multiple eigenvalues, of which one Krylov space shows only one.
            Costs about as many products again; without it copies can be missed.
        basis_size: vectors held, d entries each: more converge in fewer products. By default 20 more than pairs wanted
            (at least half as many again), always at most d.
        callback: called with a ``Progress`` after each product. What it raises, and KeyboardInterrupt, ends the run.

    Returns:
        ``Eigenpairs``, values descending.

    Raises:
        TypeError, ValueError: arguments outside their ranges.
        NonFiniteError: a product holds nan or inf.

    Warns:
        NumericalWarning: some pair has not converged.

    References:
        Wu, Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue problems"; van Dorsselaer,
        Hochstenbach, van der Vorst (2001), "Computing probabilistic bounds for extreme eigenvalues of symmetric
        matrices with the Lanczos method".
    """
    began = time.perf_counter()
    tol = checks.real("tol", tol, low=0, high=1, low_open=True, high_open=True)
    checks.real("margin", margin, low=0, low_open=True)
    problem = _problem(Counted(aslinearoperator(A)), k, which, tol, max_matvecs, delta, basis_size, callback)
    engine = _engine(problem, checks.resolve_seed(seed), start)
    random_part = 1.0 if start is None else _RANDOM_PART
    ritz, found = _search(problem, engine, random_part, margin)
    bounds = _bounds(problem, engine, ritz, random_part)
    chosen = problem.ranking(ritz.values)[: problem.target]
    pool, verified, rest = pool_of(engine, ritz, chosen), True, rest_of(ritz, chosen)
    if verify and k >= 2 and found:
        pool, verified, after = complete(problem, engine, pool)
        rest = rest if after is None else after
    pool = pool.taken(problem.ranking(pool.values)[: problem.target])
    refined = refine(problem.A, pool.rows)
    flags = [] if verified else ["multiplicity-unverified"]
    flags += ["warm-start"] if start is not None else []
    return _result(problem, engine, refined, rest, bounds, tuple(flags), began)


def _problem(
    A: Counted,
    k: int,
    which: str,
    tol: float,
    max_matvecs: int | None,
    delta: float,
    basis_size: int | None,
    callback: Callable[[Progress], None] | None,
) -> Problem:
    which = checks.one_of("which", which, WHICH)
    k = checks.positive_int("k", k)
    if k > A.dim:
        raise ValueError(f"k must be an integer <= {A.dim}; got {k}. The operator has only {A.dim} eigenvalues.")
    delta = checks.real("delta", delta, low=0, high=1, low_open=True, high_open=True)
    target = min(2 * k, A.dim) if which == "both" else k
    budget = 1000 + 50 * target
    if max_matvecs is not None:
        hint = f"{target} pairs need a product each to be found and another for their residuals."
        budget = checks.positive_int("max_matvecs", max_matvecs, minimum=2 * target, hint=hint)
    capacity = target + max(_EXTRA, target // 2)
    if basis_size is not None:
        hint = "The basis holds the pairs wanted and room to grow."
        capacity = checks.positive_int("basis_size", basis_size, minimum=min(target + 4, A.dim), hint=hint)
    return Problem(
        A=A,
        k=k,
        which=which,
        target=target,
        tol=tol,
        delta=delta,
        limit=budget - target,
        capacity=min(capacity, A.dim),
        callback=callback,
    )


def _engine(problem: Problem, seed: int, start: Tensor | None) -> ThickRestart:
    A = problem.A
    stream = ProbeStream(A.dim, seed, "gaussian", A.dtype, A.device, "start")
    nothing = torch.empty(0, A.dim, dtype=A.dtype, device=A.device)
    engine = ThickRestart(A, problem.capacity, stream, 0, nothing)
    if start is None:
        engine.begin()
        return engine
    guess = orthonormal_rows(_checked_start(A, start))
    ones = torch.full((1, len(guess)), 1 / math.sqrt(len(guess)), dtype=torch.float64, device=A.device)
    guess = combine(ones, guess)
    # The guess may be a result of this very seed, and the bounds need randomness that it does not depend on: which
    # probe is used follows from the guess itself.
    digest = hashlib.sha256(f"{float(row_dots(guess, stream.probe(0)[None])[0]):.6e}".encode()).digest()
    index = 2**32 + int.from_bytes(digest[:4], "big")
    mixed = math.sqrt(1 - _RANDOM_PART**2) * guess + _RANDOM_PART * random_row(stream, index)
    engine.next_index = index + 1
    engine.begin(normalised(mixed))
    return engine


def _checked_start(A: LinearOperator, start: Tensor) -> Tensor:
    if not isinstance(start, Tensor) or start.ndim != 2 or start.shape[1] != A.dim or not 1 <= len(start) <= A.dim:
        got = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(
            f"start must be a tensor of shape (j, {A.dim}) with 1 <= j <= {A.dim}; got {got}. One vector a row."
        )
    rows = start.detach().to(device=A.device, dtype=A.dtype)
    norms = row_dots(rows, rows)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise ValueError("start must be finite with no zero row; got nan, inf or a zero row. Leave such rows out.")
    return rows


def _search(problem: Problem, engine: ThickRestart, random_part: float, margin: float) -> tuple[Ritz, bool]:
    """Step until the wanted Ritz pairs have converged; return them all, and whether they have."""
    unseen = 0
    while True:
        engine.step()
        unseen += 1
        if problem.callback is None and not _due(problem, engine, unseen):
            continue
        unseen = 0
        ritz = engine.ritz()
        order = problem.ranking(ritz.values)
        wanted = order[: problem.target]
        done = ritz.residuals[wanted] <= problem.enough(ritz.values[wanted], engine)
        problem.report("search", ritz, int(done.sum()))
        if engine.exhausted or (
            len(wanted) == problem.target and bool(done.all()) and _trusted(problem, engine, ritz, random_part, margin)
        ):
            return ritz, True
        if problem.spent:
            return ritz, False
        if engine.full:
            engine.restart(ritz, kept(order, problem.target, engine.capacity))


def _due(problem: Problem, engine: ThickRestart, unseen: int) -> bool:
    """Return whether to look at the Ritz pairs: at every step for few of them, else when a sixteenth has come new.

    Solving for the pairs of many hundreds of steps one by one would cost more than the products.
    """
    if engine.exhausted or engine.full or problem.spent:
        return True
    return engine.size >= problem.target and unseen >= problem.target / _LOOKS


def _trusted(problem: Problem, engine: ThickRestart, ritz: Ritz, random_part: float, margin: float) -> bool:
    if random_part == 1.0 or not engine.pristine:
        return True
    beyond = margin * engine.scale
    high = math.inf if problem.which == "smallest" else float(ritz.values[0]) + beyond
    low = -math.inf if problem.which == "largest" else float(ritz.values[-1]) - beyond
    return excluded(engine, low, high, log_start_quantile(problem.A.dim, problem.delta_an_end, random_part)) == (
        True,
        True,
    )


def _bounds(problem: Problem, engine: ThickRestart, ritz: Ritz, random_part: float) -> SpectrumBounds:
    upper_wanted, lower_wanted = problem.which != "smallest", problem.which != "largest"
    slack = 2 * engine.noise + 4 * torch.finfo(engine.A.dtype).eps * engine.scale
    if engine.exhausted:
        lower, upper = float(ritz.values[-1]), float(ritz.values[0])
    else:
        log_c = log_start_quantile(problem.A.dim, problem.delta_an_end, random_part)
        if log_c is None:
            return SpectrumBounds(None, None)
        size = len(engine.alphas)
        off = engine.betas[: size - 1]
        T = np.diag(engine.alphas) + np.diag(off, 1) + np.diag(off, -1)
        ends = torch.linalg.eigvalsh(torch.from_numpy(T))
        lower = lower_bound(engine.alphas, engine.betas, float(ends[0]), log_c)
        upper = upper_bound(engine.alphas, engine.betas, float(ends[-1]), log_c)
    return SpectrumBounds(lower - slack if lower_wanted else None, upper + slack if upper_wanted else None)


def _warn(problem: Problem, converged: Tensor, residuals: Tensor) -> None:
    warnings.warn(
        f"{int((~converged).sum())} of {len(converged)} eigenpairs did not converge to tol={problem.tol:g} in "
        f"{problem.A.matvec_count:g} products (largest residual {float(residuals.max()):.3g}). "
        "Raise max_matvecs or tol.",
        NumericalWarning,
        stacklevel=4,
    )


def _result(
    problem: Problem,
    engine: ThickRestart,
    refined: Refined,
    rest: tuple[Floats, Floats],
    bounds: SpectrumBounds,
    flags: tuple[str, ...],
    began: float,
) -> Eigenpairs:
    values, residuals = refined.values, refined.residuals
    asked = torch.from_numpy(problem.asked(values.numpy(), engine.scale))
    converged = residuals <= torch.clamp(asked, min=engine.floor)
    if bool((converged & (residuals > asked)).any()):
        flags += ("rounding-limited",)
    if not bool(converged.all()):
        flags += ("not-converged",)
        _warn(problem, converged, residuals)
    lower, upper = bounds
    rounding = engine.noise + 4 * torch.finfo(engine.A.dtype).eps * engine.scale
    return Eigenpairs(
        values=values,
        vectors=refined.vectors,
        residuals=residuals,
        converged=converged,
        errors=value_errors(values, residuals, torch.from_numpy(rest[0]), torch.from_numpy(rest[1]), rounding),
        data_error=refined.data_error,
        bounds=SpectrumBounds(
            None if lower is None else min(lower, float(values[-1])),
            None if upper is None else max(upper, float(values[0])),
        ),
        confidence=1 - problem.delta,
        which=problem.which,
        matvecs=problem.A.matvec_count,
        method="thick-restart-lanczos",
        seconds=time.perf_counter() - began,
        flags=flags,
        terms=refined.terms,
    )
