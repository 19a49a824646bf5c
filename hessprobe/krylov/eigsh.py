"""Extreme eigenpairs of a symmetric operator, with residuals, error bounds and cost.

The largest eigenvalue as one number.
"""

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
from hessprobe.errors import NumericalWarning, about
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.krylov.certificates import Ends, SpectrumBounds, bounds_of, intervals, log_start_quantile
from hessprobe.krylov.eigenpairs import Eigenpairs, Progress, Refined, refine
from hessprobe.krylov.lanczos import normalised, random_row
from hessprobe.krylov.restart import Ritz, ThickRestart
from hessprobe.krylov.verification import Complete, Problem, complete, excluded, kept, pool_of
from hessprobe.operators import Counted, LinearOperator, settled
from hessprobe.vectors import ProbeStream, Slice, combine, orthonormal_rows, room_for_vectors, row_dots, rows_within

WHICH = ("both", "largest", "smallest", "magnitude")

# Share tau of fresh randomness in a warm start, without which no bound holds with a known probability.
_RANDOM_PART = 0.1
_EXTRA = 20
# Entries of a basis that may be held for the sake of the bounds, and its longest for large d; rows beside the pairs
# wanted that it has at least, and that it may be cut to where memory is short.
_BASIS, _LONGEST = 1 << 26, 512
_FEW, _FEWEST = 6, 4
# Confidence that a look, which has no bracket, is set up with, and the residual that its part is taken to.
_CONFIDENCE, _COARSE = 0.995, 0.1
# Products that a run whose basis is full goes on for at least to narrow the intervals.
_WAITED = 192

# Ritz pairs are looked at once for each of this share of the pairs wanted.
_LOOKS = 16


def eigsh(
    A: Any,
    k: int = 1,
    which: str = "both",
    *,
    tol: float = 1e-3,
    rtol: float | None = 0.01,
    max_matvecs: int | None = None,
    seed: int | torch.Generator = 0,
    start: Tensor | None = None,
    confidence: float = 0.995,
    verify: bool = True,
    basis_size: int | None = None,
    data_error: bool = True,
    callback: Callable[[Progress], None] | None = None,
) -> Eigenpairs:
    """Return the k largest and the k smallest eigenvalues of A (or one end) with their eigenvectors.

    Thick-restart Lanczos with full reorthogonalisation in fp64; both ends grow from one Krylov space. A pair (theta, y)
    has converged when

        ||A y - theta y|| <= max(tol * max(|theta|, 0.01 * s), f),    s about ||A||_2,

    so that *some* eigenvalue lies within tol * |theta| of theta (a theorem). That theta belongs to the extreme one is
    not seen from residuals: where lambda_2 is close to lambda_1 and the start favours it, a run converges to lambda_2
    first. The run therefore goes on until the interval of each end asked for,

        theta <= lambda_max (a theorem)    and    lambda_max <= U (with probability 1 - delta over the start),

    is no wider than rtol * max(|theta|, 0.01 * s); U comes from the Lanczos polynomials (``krylov.certificates``) and
    costs nothing. It needs no gap: about ln(1.6 sqrt(d) / delta) / (2 sqrt(w)) products for a width of w times the
    spread of the spectrum, whatever the matrix, and few where eigenvalues stand apart. For further pairs see
    ``krylov.certificates``. All intervals are in ``Eigenpairs.intervals``.

    Eigenvalues below 1 % of the spectral norm s get the absolute precision of one at 1 %; ask a smaller ``tol`` for
    more. The floor f = min(4 e + 4 eps s, 0.001 s) is the rounding of the products: eps that of the dtype, e the norm
    of the error of a product, measured during the run from coefficients that symmetry makes known. All residuals
    returned come from one true product a pair at the end. Where A is a sum over examples, this product is made by
    groups of them, which tells the sampling error of every eigenvalue (asymptotically: that of its first derivative).

    Args:
        A: a ``LinearOperator`` (d, d), a symmetric matrix, or anything with ``shape`` and ``@``.
        k: pairs an end (in all for ``"magnitude"``), 1 <= k <= d; where 2k > d, ``"both"`` returns all d.
        which: ``"both"``, ``"largest"``, ``"smallest"`` (algebraically), or ``"magnitude"`` (largest |lambda|).
        tol: relative residual, in (0, 1).
        rtol: relative width of the intervals at the ends asked for, in (0, 1); None takes them as they come.
        max_matvecs: most products, at least twice the number of pairs; by default 1000 + 50 a pair. What is left
            is returned unconverged, with a warning and a flag.
        seed: of the random start, a non-negative integer or a generator.
        start: (j, d) approximate eigenvectors, j >= 1, such as those of a neighbouring checkpoint. The run starts from
            their sum and a tenth of fresh noise, with which the bounds hold with the same probability; the price is
            in their constant.
        confidence: probability 1 - delta that an interval holds its eigenvalue, in (0, 1); delta is shared out between
            ends and rounds.
        verify: for k >= 2, look for further copies of multiple eigenvalues, of which one Krylov space shows only one.
            Costs about as many products again; without it copies can be missed.
        basis_size: vectors held, d entries each: more converge in fewer products, and bounds improve more slowly once
            the basis has been full. By default as many as 512 MB of fp64 hold, up to 512, or up to d where the whole
            matrix is no larger than that; at least 6 more than pairs wanted, or half as many. Where it grows to d the
            answer is exact.
        data_error: tell the sampling error of the eigenvalues.
        callback: called with a ``Progress`` after each product. What it raises, and KeyboardInterrupt, ends the run.

    Returns:
        ``Eigenpairs``, values descending.

    Raises:
        TypeError, ValueError: arguments outside their ranges.
        NonFiniteError: a product holds nan or inf.

    Warns:
        NumericalWarning: some pair has not converged, or an interval is wider than ``rtol`` asks.

    References:
        Wu, Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue problems"; van Dorsselaer,
        Hochstenbach, van der Vorst (2001), "Computing probabilistic bounds for extreme eigenvalues of symmetric
        matrices with the Lanczos method".

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0], dtype=torch.float64)))
        >>> pairs = hp.eigsh(A, k=1, which="both", seed=0)
        >>> pairs.values.round(decimals=6)
        tensor([ 4., -1.], dtype=torch.float64)
    """
    began = time.perf_counter()
    tol = checks.real("tol", tol, low=0, high=1, low_open=True, high_open=True)
    if rtol is not None:
        rtol = checks.real("rtol", rtol, low=0, high=1, low_open=True, high_open=True)
    problem = _problem(
        Counted(settled(A)), k, which, (tol, rtol), (max_matvecs, basis_size), confidence, verify, callback
    )
    engine = _engine(problem, checks.resolve_seed(seed), start)
    random_part = 1.0 if start is None else _RANDOM_PART
    ritz, found = _search(problem, engine, random_part)
    ends = {"lower": problem.lower_wanted, "upper": problem.upper_wanted}
    whole = bounds_of(engine, problem.delta_an_end, random_part, **ends)
    chosen = problem.ranking(ritz.values)[: problem.target]
    done = Complete(pool_of(engine, ritz, chosen), True, SpectrumBounds(None, None))
    exact = engine.exhausted
    engine.release()
    if problem.verify and k >= 2 and found and not exact:
        done = complete(problem, engine, done.pool)
    taken = problem.ranking(done.pool.values)[: problem.target]
    extra = float(np.linalg.norm(np.delete(done.pool.residuals, taken)))
    refined = refine(problem.A, done.pool.taken(taken).rows, by_terms=data_error)
    flags = [] if done.verified else ["multiplicity-unverified"]
    flags += ["warm-start"] if start is not None else []
    return _result(problem, engine, refined, (whole, done.rest, extra), tuple(flags), began)


def _problem(
    A: Counted,
    k: int,
    which: str,
    tolerances: tuple[float, float | None],
    sizes: tuple[int | None, int | None],
    confidence: float,
    verify: bool,
    callback: Callable[[Progress], None] | None,
) -> Problem:
    max_matvecs, basis_size = sizes
    which = checks.one_of("which", which, WHICH)
    k = checks.positive_int("k", k)
    if k > A.dim:
        raise ValueError(
            about("k", f"must be an integer <= {A.dim}; got {k}. The operator has only {A.dim} eigenvalues.")
        )
    confidence = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    target = min(2 * k, A.dim) if which == "both" else k
    budget = 1000 + 50 * target
    if max_matvecs is not None:
        hint = f"{target} pairs need a product each to be found and another for their residuals."
        budget = checks.positive_int("max_matvecs", max_matvecs, minimum=2 * target, hint=hint)
    held = Slice(A.dim, A.ranks)
    fill = min(_BASIS // held.width, A.dim if A.dim * held.width <= _BASIS else _LONGEST)
    capacity = max(target + max(_FEW, target // 2), fill)
    if basis_size is not None:
        hint = "The basis holds the pairs wanted and room to grow."
        capacity = checks.positive_int("basis_size", basis_size, minimum=min(target + 4, A.dim), hint=hint)
    # The rows, the next one, and what is made of the pairs at the end: where the rows are parts, whole pairs and their
    # products are more than the one row that is whole before.
    size, beside = A.dtype.itemsize, held.beside * A.dtype.itemsize
    if beside:
        rows_within(A.dim, size, 2 * target, least=2 * target)
    rows = rows_within(
        held.width, size, min(capacity, A.dim) + 1, least=min(target + _FEWEST, A.dim) + 1, beside=beside
    )
    if room_for_vectors() is not None:
        # Pairs beyond the first are put together, and multiplied, beside the basis.
        rows = max(rows - 2 * (target - 1), min(target + _FEWEST, A.dim) + 1)
    return Problem(
        A=A,
        k=k,
        which=which,
        target=target,
        tol=tolerances[0],
        rtol=tolerances[1],
        delta=1 - confidence,
        limit=budget - target,
        capacity=rows - 1,
        callback=callback,
        verify=verify,
    )


def _engine(problem: Problem, seed: int, start: Tensor | None) -> ThickRestart:
    A = problem.A
    stream = ProbeStream(A.dim, seed, "gaussian", A.dtype, A.device, "start")
    nothing = Slice(A.dim, A.ranks).of(torch.empty(0, A.dim, dtype=A.dtype, device=A.device))
    engine = ThickRestart(A, problem.capacity, stream, 0, nothing)
    if start is None:
        engine.begin()
        return engine
    guess = orthonormal_rows(_checked_start(A, start))
    ones = torch.full((1, len(guess)), 1 / math.sqrt(len(guess)), dtype=torch.float64, device=A.device)
    guess = combine(ones, guess)
    # The guess may be a result of this very seed, and the bounds need randomness that it does not depend on: which
    # probe is used follows from the guess itself.
    shadow = float(engine.held.first(row_dots(guess, stream.probe(0)[None]), A.device))
    digest = hashlib.sha256(f"{shadow:.6e}".encode()).digest()
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


def _search(problem: Problem, engine: ThickRestart, random_part: float) -> tuple[Ritz, bool]:
    """Step until the wanted Ritz pairs have converged and the ends are known; return all pairs, and whether they have.

    Bounds improve more slowly once the basis has been restarted, and are not waited for without end (``_late``).
    """
    unseen = 0
    log_c = log_start_quantile(problem.A.dim, problem.delta_an_end, random_part)
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
        converged = len(wanted) == problem.target and bool(done.all())
        if engine.exhausted or (converged and (_late(problem, engine) or _ends_known(problem, engine, ritz, log_c))):
            return ritz, True
        if problem.spent:
            return ritz, False
        if engine.full:
            engine.restart(ritz, kept(order, problem.target, engine.capacity))


def _late(problem: Problem, engine: ThickRestart) -> bool:
    """Return whether a restarted run has made so many products that the pairs alone decide when it ends."""
    if engine.pristine:
        return False
    return not engine.restarts or problem.A.matvec_count >= max(2 * min(engine.restarts), _WAITED)


def _ends_known(problem: Problem, engine: ThickRestart, ritz: Ritz, log_c: float | None) -> bool:
    """Return whether the polynomial bounds leave the extreme eigenvalues as little room as ``rtol`` asks."""
    if problem.rtol is None:
        return True
    if log_c is None:
        return False
    low, high = float(ritz.values[-1]), float(ritz.values[0])
    if problem.which == "magnitude":
        room = problem.allowed(max(abs(low), abs(high)), engine.scale)
        low, high = -max(abs(low), abs(high)) - room, max(abs(low), abs(high)) + room
    else:
        low, high = low - problem.allowed(low, engine.scale), high + problem.allowed(high, engine.scale)
    low = low if problem.lower_wanted else -math.inf
    high = high if problem.upper_wanted else math.inf
    return excluded(engine, low, high, log_c) == (True, True)


def _due(problem: Problem, engine: ThickRestart, unseen: int) -> bool:
    """Return whether to look at the Ritz pairs: at every step of a short run, else when a sixteenth has come new.

    Solving for the pairs of many hundreds of steps one by one would cost more than the products.
    """
    if engine.exhausted or engine.full or problem.spent:
        return True
    return engine.size >= problem.target and unseen >= max(problem.target, engine.size - _EXTRA) / _LOOKS


def _warn(problem: Problem, converged: Tensor, residuals: Tensor) -> None:
    warnings.warn(
        f"{int((~converged).sum())} of {len(converged)} eigenpairs did not converge to tol={problem.tol:g} in "
        f"{problem.A.matvec_count:g} products (largest residual {float(residuals.max()):.3g}). "
        "Raise max_matvecs or tol.",
        NumericalWarning,
        stacklevel=4,
    )


def _tops(problem: Problem, values: Tensor) -> Tensor:
    """Return which of the reported eigenvalues are counted from the largest."""
    if problem.which == "magnitude":
        return values > 0
    if problem.which == "both":
        return 2 * torch.arange(len(values)) < len(values)
    return torch.full((len(values),), problem.which == "largest")


def _too_wide(problem: Problem, values: Tensor, found: Ends, scale: float, rounding: float) -> tuple[str, ...]:
    """Return the flag of intervals that miss the width asked for, and warn of them."""
    if problem.rtol is None:
        return ()
    allowed = torch.tensor([problem.allowed(float(value), scale) for value in values], dtype=torch.float64)
    arms = torch.maximum(found.high - values, values - found.low)
    wide = arms > 1.001 * allowed + 4 * rounding
    if not problem.verify:  # nothing was done for the others
        wide[1:-1] = False
        wide[-1] &= problem.which in ("both", "smallest") or len(values) == 1
        wide[0] &= problem.which in ("both", "largest") or len(values) == 1
    if not bool(wide.any()):
        return ()
    worst = int((arms / allowed).argmax())
    warnings.warn(
        f"the interval of {int(wide.sum())} of {len(values)} eigenvalues is wider than rtol={problem.rtol:g} asks "
        f"after {problem.A.matvec_count:g} products (eigenvalue {float(values[worst]):.4g} lies between "
        f"{float(found.low[worst]):.4g} and {float(found.high[worst]):.4g}). Raise max_matvecs or basis_size, or rtol.",
        NumericalWarning,
        stacklevel=4,
    )
    return ("wide-bracket",)


def _result(
    problem: Problem,
    engine: ThickRestart,
    refined: Refined,
    known: tuple[SpectrumBounds, SpectrumBounds, float],
    flags: tuple[str, ...],
    began: float,
) -> Eigenpairs:
    values, residuals = refined.values, refined.residuals
    whole, rest, extra = known
    exact = engine.exhausted
    asked = torch.from_numpy(problem.asked(values.numpy(), engine.scale))
    converged = residuals <= torch.clamp(asked, min=engine.floor)
    if bool((converged & (residuals > asked)).any()):
        flags += ("rounding-limited",)
    if not bool(converged.all()):
        flags += ("not-converged",)
        _warn(problem, converged, residuals)
    rounding = engine.noise + 4 * torch.finfo(engine.A.dtype).eps * engine.scale
    if exact:
        found = Ends(values - residuals - rounding, values + residuals + rounding)
    else:
        # Off the diagonal of A in the basis (found, rest) stands at most the norm of all residuals; the pairs that are
        # not reported were not multiplied again, and theirs is an estimate that may err by its own size.
        coupling = math.sqrt(2.0 if extra else 1.0) * math.hypot(float(residuals.norm()), extra)
        found = intervals(values, _tops(problem, values), whole, rest, coupling, rounding)
        flags += _too_wide(problem, values, found, engine.scale, rounding)
    return Eigenpairs(
        values=values,
        vectors=refined.vectors,
        residuals=residuals,
        converged=converged,
        intervals=found,
        exact=exact,
        bounds=SpectrumBounds(
            None if whole.lower is None else min(whole.lower, float(values[-1])),
            None if whole.upper is None else max(whole.upper, float(values[0])),
        ),
        confidence=1 - problem.delta,
        which=problem.which,
        matvecs=problem.A.matvec_count,
        method="lanczos" if engine.pristine else "thick-restart-lanczos",
        seconds=time.perf_counter() - began,
        flags=flags,
        terms=refined.terms,
    )


def lambda_max(
    A: Any,
    *,
    rtol: float = 0.01,
    certified: bool = True,
    seed: int | torch.Generator = 0,
    confidence: float = 0.995,
    max_matvecs: int | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> Estimate:
    """Return the largest eigenvalue of A in a bracket that holds it, or a first look at it.

    The value is a Ritz value, which no theorem lets exceed lambda_max; the upper end holds with probability
    ``confidence`` over the random start. For eigenvectors and further eigenvalues see ``eigsh``, which does the work.

    Args:
        A: a ``LinearOperator`` (d, d), a symmetric matrix, or anything with ``shape`` and ``@``.
        rtol: relative width of the bracket, in (0, 1).
        certified: False stops as soon as the residual ||A y - theta y|| is below ``rtol`` |theta|, in a third to a
            half of the products. *Some* eigenvalue then lies within the residual of the value, usually the largest; it
            is a lower bound, flagged ``"uncertified"``. Where A has eight terms or more the run starts from the
            leading Ritz vector of an eighth of them, and a tenth of noise.
        seed: of the random start, a non-negative integer or a generator.
        confidence: probability that the bracket holds, in (0, 1).
        max_matvecs: most products, see ``eigsh``.
        callback: called with a ``Progress`` after each product.

    Raises:
        TypeError, ValueError: arguments outside their ranges.
        NonFiniteError: a product holds nan or inf.

    Warns:
        NumericalWarning: the bracket is wider than ``rtol`` asks, or the residual larger.

    Examples:
        >>> import torch, hessprobe as hp
        >>> print(hp.lambda_max(torch.diag(torch.tensor([3.0, 1.0, -2.0]).double())))
        3 (exact, 4 products, lanczos)
    """
    if not certified:
        return _look(A, rtol, checks.resolve_seed(seed), max_matvecs, callback)
    options: dict[str, Any] = {"rtol": rtol, "seed": seed, "confidence": confidence, "max_matvecs": max_matvecs}
    return eigsh(A, 1, "largest", callback=callback, **options).estimate(0)


def _look(
    A: Any, rtol: float, seed: int, max_matvecs: int | None, callback: Callable[[Progress], None] | None
) -> Estimate:
    from hessprobe.krylov.leading import leading  # no other question asks for it

    began = time.perf_counter()
    tol = checks.real("rtol", rtol, low=0, high=1, low_open=True, high_open=True)
    problem = _problem(
        Counted(settled(A)), 1, "largest", (tol, None), (max_matvecs, None), _CONFIDENCE, False, callback
    )
    part = leading(problem.A)
    # What lies between the part and the whole is larger than a coarse residual.
    near = None if part is None else eigsh(part, 1, "largest", tol=_COARSE, rtol=None, seed=seed).vectors
    engine = _engine(problem, seed, near)
    ritz, found = _search(problem, engine, _RANDOM_PART)
    value, residual = float(ritz.values[0]), float(ritz.residuals[0])
    flags = ("uncertified",) if found else ("uncertified", "not-converged")
    if not found:
        _warn(problem, torch.tensor([False]), torch.tensor([residual]))
    return Estimate(
        value=value,
        errors=ErrorParts(solver=0.0 if engine.exhausted else residual),
        matvecs=problem.A.matvec_count,
        method="lanczos" if part is None else "lanczos from a part",
        kind="exact" if engine.exhausted else "lower bound",
        flags=() if engine.exhausted else flags,
        seconds=time.perf_counter() - began,
        details={"residual": residual},
    )
