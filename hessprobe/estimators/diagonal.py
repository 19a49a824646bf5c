"""The diagonal of an operator, entry by entry with errors: Hutchinson (Bekas) or XDiag.

Whether an answer says anything: an interval as wide as what the quantity can be at all says nothing.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy import special
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NumericalWarning, about
from hessprobe.estimate import Estimate, student_quantile
from hessprobe.estimators import budget
from hessprobe.estimators.budget import Callback
from hessprobe.estimators.linear import Sampling, sample_linear
from hessprobe.estimators.task import Known, Task, block_diagonal, exact_diagonal, known_parts
from hessprobe.estimators.xtrace import basis_of, exchange, exchange_diagonal
from hessprobe.operators import BlockDiagonal, Counted, LinearOperator, settled
from hessprobe.vectors import LAWS

METHODS = ("auto", "hutchinson", "xdiag", "exact")


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal with an error for every entry.

    Attributes:
        values: (d,) fp64, in the unit of the operator.
        std_error: (d,) fp64, from random probes; 0 where exact.
        df: (d,) degrees of freedom of ``std_error``; inf where exact.
        matvecs: products counted.
        samples: independent samples behind each entry; 0 for an exact path.
        method: the algorithm that ran.
        seconds: wall-clock time.
        details: ``surrogate`` True where the control variate was used; ``pilot`` where a tolerance was given.
        flags: ``"tolerance-missed"``, and ``"budget-exhausted"`` where ``max_probes`` was the reason.
    """

    values: Tensor
    std_error: Tensor
    df: Tensor
    matvecs: float
    samples: int
    method: str
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def norm_error(self) -> float:
        """Root mean square of ||values - diag A||_2: (sum_i s_i^2)^(1/2)."""
        return float(self.std_error.norm())

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return lower and upper ends, (d,) each, of the interval of every entry by itself.

        Raises:
            ValueError: ``confidence`` outside (0, 1).
        """
        level = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        quantile = torch.from_numpy(special.stdtrit(self.df.cpu().numpy(), 0.5 + level / 2)).to(self.values.device)
        half = torch.where(self.std_error > 0, quantile * self.std_error, 0.0)
        return self.values - half, self.values + half


def diagonal(
    A: Any,
    *,
    n_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int | torch.Generator = 0,
    method: str = "auto",
    law: str = "rademacher",
    deflate: Any = None,
    control_variate: str | bool = "auto",
    blockwise: bool = False,
    confidence: float = 0.95,
    max_probes: int = budget.MAX_PROBES,
    callback: Callback | None = None,
) -> DiagonalEstimate:
    r"""Estimate diag A.

    A tolerance speaks of the whole vector in the Euclidean norm. With s_i the standard error of entry i, the root mean
    square of ||estimate - diag A||_2 is r = (sum_i s_i^2)^(1/2); asked for is z r <= max(atol, rtol ||diag A||_2), z
    the two-sided normal quantile of ``confidence`` (1.96 at 95 %). A norm of many entries lies close to its root mean
    square, so that z r is on the safe side; single small entries may be relatively far worse, see ``std_error``.

    * ``"hutchinson"``: mean of w * (A w) with probes of their own for every term; N products. The variance at entry i
      is ||a_i||^2 - a_ii^2 for Rademacher probes, which makes diagonal matrices exact. A surrogate with known diagonal
      is used as control variate, deflated directions are exact.
    * ``"xdiag"``: every probe sketches and estimates; 2N products; for decaying spectra.
    * ``"exact"``: the diagonal that the operator knows, or d products.
    * ``"auto"``: exact where that costs no more, else Hutchinson.

    Args:
        A: symmetric operator, or what ``aslinearoperator`` takes.
        n_probes: number of probes N >= 2; 16 where no tolerance is given either.
        rtol: relative tolerance of the whole vector, > 0; a pilot of other probes decides N.
        atol: the same, absolute; the larger of the two counts.
        seed: integer >= 0, or a generator to draw one from.
        method: see above.
        law: of the probes: ``"rademacher"``, ``"gaussian"`` or ``"sphere"``.
        deflate: directions independent of the probes, as for ``trace``.
        control_variate: ``"auto"``, True or False, as for ``trace``.
        blockwise: probe the blocks of single modules one by one: as many products a probe as there are modules (at most
            8), without the noise from between them. With the control variate a piecewise linear network is then exact.
        confidence: level the tolerances speak of.
        max_probes: cap on what a tolerance may ask for.
        callback: called with a ``Progress`` of the trace after each block of products.

    Returns:
        The estimate; memory is about six fp64 vectors of length d.

    Raises:
        ValueError: an argument outside its range, or an option the method cannot honour.
        TypeError: an argument of the wrong type.
        NonFiniteError: a product is nan or infinite.

    References:
        Bekas, Kokiopoulou, Saad (2007), "An estimator for the diagonal of a matrix"; Epperly, Tropp, Webber (2024),
        "XTrace: Making the most of every sample in stochastic trace estimation" (XDiag).

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0], dtype=torch.float64)))
        >>> hp.diagonal(A, n_probes=4, seed=0).values.round(decimals=6)
        tensor([ 4.,  2.,  1., -1.], dtype=torch.float64)
    """
    started = time.perf_counter()
    operator = Counted(settled(A))
    if not isinstance(control_variate, bool):
        checks.one_of("control_variate", control_variate, ("auto",))
    task = Task(
        operator=(block_diagonal(operator) if blockwise else None) or operator,
        parts=operator,
        goal=budget.goal(rtol, atol, n_probes, confidence, max_probes),
        seed=checks.resolve_seed(seed),
        law=checks.one_of("law", law, LAWS),
        basis=basis_of(deflate, operator),
        given=deflate,
        control=control_variate if isinstance(control_variate, bool) else None,
        per_block=True,
        callback=callback,
    )
    result = _run(task, checks.one_of("method", method, METHODS))
    return replace(result, matvecs=operator.matvec_count, seconds=time.perf_counter() - started)


def _run(task: Task, method: str) -> DiagonalEstimate:
    A, count = task.operator, task.goal.n_probes
    if method == "xdiag":
        if task.basis is not None or task.control:
            raise ValueError(
                "method must be 'hutchinson' or 'auto' for deflate or control_variate=True; got 'xdiag'. "
                "XDiag makes its own deflation; leave both out."
            )
        if count is None:
            raise ValueError(
                about(
                    "n_probes",
                    "must be given for method 'xdiag'; got a tolerance. Fix the size, or use method='hutchinson'.",
                )
            )
        return _exact(A, "xdiag:exact") if 2 * count >= A.dim else _xdiag(task, count)
    if method == "exact" or (method == "auto" and count is not None and count >= A.dim):
        return _exact(A, "exact")
    if method == "auto":
        known = A.exact_diagonal()
        if known is not None:
            return without_error(known[0].double(), "exact")
    known_part = known_parts(task, controlled=task.control is not False)
    if count is not None:
        return _hutchinson(task, known_part, count)
    return _planned(task, known_part, method)


def _planned(task: Task, known: Known, method: str) -> DiagonalEstimate:
    """Pilot, then one run of the size it asks for with probes of its own; exact where that costs no more."""
    A, asked = task.operator, task.goal
    n = budget.pilot_passes(A.n_terms)
    price = (len(A.groups) if isinstance(A, BlockDiagonal) else 1) * (1 if known.surrogate is None else 2)
    fewest = max(2, budget.minimum_passes(A.n_terms) // 2)
    if method == "auto" and budget.exact_pays(A.dim, (n + fewest) * price):
        return _exact(A, "exact")
    pilot = _hutchinson(replace(task, callback=None), known, n, stream="pilot")
    spread = budget.upper_std(pilot.norm_error, (n - 1.0) * A.n_terms) * math.sqrt(n)
    target = asked.target(float(pilot.values.norm()))
    wanted = budget.smallest_count(
        lambda count: spread / math.sqrt(count),
        lambda count: math.inf,
        target,
        asked.confidence,
        minimum=fewest,
        maximum=asked.max_probes,
    )

    def run() -> DiagonalEstimate:
        result = _hutchinson(task, known, wanted)
        details = {**result.details, "pilot": {"passes": n, "norm_error": pilot.norm_error, "wanted": wanted}}
        return replace(result, details=details, flags=_flags(asked, result, wanted))

    exact = (lambda sampled: _exact(A, "exact")) if method == "auto" else None
    return budget.carried_out(A.dim, [budget.Way(wanted * price, run)], exact)[0]


def _flags(asked: budget.Goal, result: DiagonalEstimate, wanted: int) -> tuple[str, ...]:
    half = student_quantile(0.5 + asked.confidence / 2, math.inf) * result.norm_error
    target = asked.target(float(result.values.norm()))
    if half <= target:
        return ()
    if wanted < asked.max_probes:
        return ("tolerance-missed",)
    warnings.warn(
        f"max_probes must be larger for this tolerance; got {asked.max_probes}, which leaves an error of {half:.3g} "
        f"where {target:.3g} was asked. Loosen the tolerance, or raise max_probes.",
        NumericalWarning,
        stacklevel=5,
    )
    return ("tolerance-missed", "budget-exhausted")


def _hutchinson(task: Task, known: Known, count: int, *, stream: str = "probe") -> DiagonalEstimate:
    how = Sampling(count, task.seed, task.law, stream, task.basis, diagonal=True, paired=True)
    samples = sample_linear(task.operator, how, surrogate=known.surrogate, offset=known.trace, callback=task.callback)
    if samples.diagonal is None:
        raise ValueError("samples must hold diagonal sums; got none. Ask for them in Sampling.")
    entries = samples.diagonal
    used = known.surrogate is not None
    return DiagonalEstimate(
        values=entries.mean + known.diagonal(task.operator, paired=True),
        std_error=entries.std_error,
        df=entries.df,
        matvecs=0.0,
        samples=count * len(samples.weights),
        method="hutchinson" + ("+surrogate" if used else "") + ("+deflation" if task.basis is not None else ""),
        details={"surrogate": used},
    )


def _xdiag(task: Task, count: int) -> DiagonalEstimate:
    sketch = exchange(task.operator, count, task.seed, task.law)
    values, errors = exchange_diagonal(sketch)
    if sketch.factor is None:
        return without_error(values, "xdiag")
    df = torch.full_like(values, float(count))
    return DiagonalEstimate(values, errors, df, 0.0, count, "xdiag")


def _exact(A: LinearOperator, method: str) -> DiagonalEstimate:
    return without_error(exact_diagonal(A), method)


def without_error(values: Tensor, method: str) -> DiagonalEstimate:
    """Return a diagonal that is known, fp64 (d,), without a product."""
    return DiagonalEstimate(values, torch.zeros_like(values), torch.full_like(values, math.inf), 0.0, 0, method)


FLAG = "uninformative"
# Where nobody asked for another level.
_CONFIDENCE = 0.95
# An error below this share of the numbers involved is rounding, which a variance of its own makes a root of.
_ROUNDING = 1e-6


def is_uninformative(estimate: Estimate, *, share: bool = False) -> bool:
    """True where the 95 % interval covers all that is possible, or the relative error is above 100 %.

    The relative error is that of the distance from the end of ``support``: from 0 for a norm or an effective dimension,
    from d log(shift) for log det(A + shift I) of a positive semidefinite A. A quantity that may be of either sign and
    any size has no such scale and is never called uninformative.

    Args:
        estimate: with the range its quantity can lie in.
        share: of a part of a whole, whose errors are judged by the whole: only an interval from 0 to 1 says nothing.
    """
    half, (low, high) = estimate.half_width(_CONFIDENCE), estimate.support
    ends = [abs(end) for end in (low, high) if math.isfinite(end)]
    if not ends or not half > _ROUNDING * max(abs(estimate.value), min(ends)):
        return False
    below, above = estimate.value - half <= low, estimate.value + half >= high
    if share:
        return below and above
    return below if math.isfinite(low) else above


def judged(estimate: Estimate, *, share: bool = False) -> Estimate:
    """Return ``estimate`` with the flag ``"uninformative"`` where that is so.

    Args:
        estimate: of a spectral sketch.
        share: see ``is_uninformative``.

    Warns:
        NumericalWarning: with the flag; says what would help. Not of a share, which comes with a density unasked.
    """
    if not is_uninformative(estimate, share=share):
        return estimate
    if share:
        return estimate.with_(flags=(*estimate.flags, FLAG))
    solver = estimate.errors.solver
    by_solver = solver > estimate.half_width(_CONFIDENCE) - solver
    fix = "Raise steps= or shift=" if by_solver else "Raise n_probes=, or give a tolerance (rtol=)"
    (low, high), name = estimate.interval(_CONFIDENCE), estimate.method.split("/")[0]
    warnings.warn(
        f"{name} is not known from {estimate.samples} chains: its 95 % interval, {low:.4g} to {high:.4g}, is as wide "
        f"as all that it can be. {fix}.",
        NumericalWarning,
        stacklevel=4,
    )
    return estimate.with_(flags=(*estimate.flags, FLAG))
