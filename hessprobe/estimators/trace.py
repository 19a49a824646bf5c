"""The trace of an operator: exact, Hutchinson with fresh probes, Hutch++, XTrace, or what a pilot finds cheapest.

The trace of a matrix that is itself drawn at random: the mean over independent draws, with their spread as error.

The data error of a trace, told from groups of examples where the batches are too few.

A trace is measured over the batches as they are, each with probes of its own and with the fastest products there are.
Where these are fewer than 16, 16 probes are multiplied by the matrix of every group of examples afterwards, in one
pass over the data. Of group g they tell x_g = w^T A_g w, the trace of A_g up to noise that the groups share in part;
its share of the spread between groups is measured over the probes and taken off (``shared_probes_error``). Where the
traces of a near matrix (the Gauss-Newton matrix) are known group by group, only the rest is sampled; and where that
rest has vanished inside the blocks of modules, as in a piecewise linear network, two probes inside blocks show that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from hessprobe import checks
from hessprobe.errors import UnsupportedError
from hessprobe.estimate import (
    GROUPS,
    Batches,
    DataError,
    ErrorParts,
    Estimate,
    Influence,
    data_error,
    jackknife_df,
    shared_probes_error,
)
from hessprobe.estimators import budget
from hessprobe.estimators.budget import Callback, Way
from hessprobe.estimators.captured_trace import (
    SKETCH_PAYS,
    SKETCHED,
    captured_way,
    exchanged,
    grown_exchange,
    pilot_products,
)
from hessprobe.estimators.hutchinson import ROUNDING, Plan, hutchinson, hutchpp, pilot
from hessprobe.estimators.task import Task, block_diagonal, diagonal_by_terms, sums_of_blocks
from hessprobe.estimators.xtrace import basis_of, sketch_fits
from hessprobe.operators import BlockDiagonal, Counted, LinearOperator, aslinearoperator
from hessprobe.vectors import LAWS, ProbeStream


def mean_of_draws(
    draws: Sequence[LinearOperator], one: Callable[[LinearOperator, int], Estimate], seed: int
) -> Estimate:
    """Return the mean of a linear functional over draws of a matrix.

    With draws and probes of their own the K numbers are independent and alike, each unbiased, so that their spread over
    sqrt(K) is the standard error of the mean, draws and probes together, with K - 1 degrees of freedom.

    Args:
        draws: K >= 2 independent matrices of one law.
        one: the estimate for a matrix and a seed of probes.
        seed: the draws' seeds of probes are drawn from it.

    Raises:
        UnsupportedError: one draw, whose error cannot be known.
    """
    count = len(draws)
    if count < 2:
        raise UnsupportedError(
            "The trace of a matrix made of one draw of labels has an error that nothing tells. Pass n_draws of at "
            "least 2 (8 or more for an error that is known well), or use Fisher(risk), which is exact."
        )
    # Seeds that follow each other would share most of their probes with the next call's.
    source = torch.Generator().manual_seed(seed)
    found = [one(draw, checks.resolve_seed(source)) for draw in draws]
    value = math.fsum(estimate.value for estimate in found) / count
    variance = math.fsum((estimate.value - value) ** 2 for estimate in found) / (count - 1)
    told = [estimate.errors for estimate in found if estimate.errors.data is not None]
    # Of the same data: draws do not make it smaller.
    largest = max(told, key=lambda errors: errors.data or 0.0) if len(told) == count else ErrorParts()
    first = found[0]
    return replace(
        first,
        value=value,
        errors=ErrorParts(
            probe=math.sqrt(variance / count),
            data=largest.data,
            solver=max(estimate.errors.solver for estimate in found),
            data_df=largest.data_df,
        ),
        df=count - 1,
        kind="estimate",
        samples=count,
        method=f"{first.method}, {count} draws of labels",
        matvecs=math.fsum(estimate.matvecs for estimate in found),
        seconds=math.fsum(estimate.seconds for estimate in found),
        flags=tuple(dict.fromkeys(flag for estimate in found for flag in estimate.flags)),
        bracket=None,
        influence=None,
        details={},
    )


# Probes of the pass. Their number is fixed: where more were drawn only if the noise of a few came out large, what was
# kept was the spread of those runs whose noise was underestimated, three times too much.
_PROBES = 16
# Probe error, relative, of a trace that is the near matrix's to rounding; probes that confirm it group by group.
_VANISHED, _CONFIRMING = 1e-6, 2
# Share of the degrees of freedom that the noise must leave for anything to be said.
_LEFT = 1 / 16
_UNRESOLVED = "data-error-unresolved"


def trace_data(A: LinearOperator, estimate: Estimate, seed: int) -> Estimate:
    """Return an estimate of tr A with the data error of at least 16 groups of examples, where A has fewer terms.

    Left as it is where its terms are as many already or cannot be cut, and an exact one that knows its data error.

    Args:
        A: the operator, counted.
        estimate: of its trace; what it says of the data is replaced.
        seed: of the probes.
    """
    known = A.group_traces()
    if known is not None and len(known[0]) > 1:
        return _with(estimate, Batches(known[0], known[1][None], shared=True), data_error(*known))
    own = None if estimate.influence is None else estimate.influence.batches
    if own is not None and len(own.weights) >= GROUPS and estimate.errors.data is not None:
        return estimate
    finer = A.grouped(GROUPS)
    untold = estimate.errors.data is None and _UNRESOLVED not in estimate.flags
    if finer.n_terms == 1 or not (untold or (finer.n_terms > A.n_terms and estimate.kind != "exact")):
        return estimate
    vanished = "+blocks" in estimate.method and estimate.errors.probe <= _VANISHED * abs(estimate.value)
    batches = _sampled(finer, seed, vanished=vanished)
    found = shared_probes_error(batches.weights, batches.table)
    resolved = found is not None and found.df >= _LEFT * jackknife_df(batches.weights)
    return _with(estimate, batches, found if resolved else None)


def _with(estimate: Estimate, batches: Batches, found: DataError | None) -> Estimate:
    bare = estimate.without_data()
    return bare.with_(
        errors=bare.errors.with_data(found),
        influence=replace(bare.influence or Influence(), batches=batches),
        flags=(*bare.flags, *(() if found is not None else (_UNRESOLVED,))),
    )


def _sampled(A: LinearOperator, seed: int, *, vanished: bool) -> Batches:
    """Return w^T A_g w of every probe and group; where traces of a near matrix are known, only the rest is sampled.

    Args:
        A: a sum over groups of examples.
        seed: of the probes.
        vanished: the rest is nothing to rounding inside blocks.
    """
    twin = A.surrogate
    traces = None if twin is None else twin.group_traces()
    blocks = block_diagonal(A) if vanished and traces is not None else None
    if blocks is not None:
        A, twin = blocks, blocks.surrogate
    count = _PROBES if blocks is None else _CONFIRMING
    W = ProbeStream(A.dim, seed, "rademacher", A.dtype, A.device, "groups").block(0, count)
    weights, columns = zip(*((weight, term.quadratic_forms(W).cpu()) for weight, term in A.terms()), strict=True)
    table = torch.stack(columns, dim=1)
    if twin is not None and traces is not None:
        table = table - torch.stack([term.quadratic_forms(W).cpu() for _, term in twin.terms()], dim=1) + traces[1]
    return Batches(torch.tensor(weights, dtype=torch.float64), table, shared=True)


METHODS = ("auto", "hutchinson", "hutch++", "xtrace", "exact")

# Groups of examples that have probes of their own, where the plain plan takes more products than the second number; the
# most that a product by groups may cost, in products, and what is so little that they are taken at once.
_FINER, _GROUPS_PAY, _DEAREST, _HARDLY_DEARER = 32, 48, 2.5, 1.3
# Blocks are tried where the plain plan takes this many products for each of them: a pilot and a run inside blocks.
_BLOCKS_PAY = 16


def trace(
    A: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    n_probes: int | None = None,
    seed: int | torch.Generator = 0,
    method: str = "auto",
    law: str = "rademacher",
    deflate: Any = None,
    control_variate: str | bool = "auto",
    confidence: float = 0.95,
    max_probes: int = budget.MAX_PROBES,
    per_block: bool = False,
    data_error: bool = True,
    callback: Callback | None = None,
) -> Estimate:
    r"""Estimate tr A.

    Methods, with N = ``n_probes``:

    * ``"hutchinson"``: mean of w^T A w, N products; every term of a sum over batches has probes of its own, and the
      error pools the terms' variances. Per probe Var = 2 (||A||_F^2 - sum_i a_ii^2) for Rademacher probes.
    * ``"hutch++"``: N/2 products sketch the range, N/2 more make it exact, N/2 go to the complement; 3N/2 in all.
    * ``"xtrace"``: every probe sketches and estimates; 2N products. Far better on decaying spectra, worse on flat ones.
    * ``"exact"``: the diagonal the operator knows, or d products.
    * ``"auto"``: exact where that is as cheap, and where the norms of the examples' gradients give it (the Hessian of a
      network of linear layers, ReLU and the like, see ``Hessian.exact_trace``); else Hutchinson for a fixed N. With a
      tolerance, examples that come in few batches get probes of their own by groups where that costs little more, and
      a pilot measures the variance with and without the control variate and, where many products are needed, what
      probes inside the blocks of single modules reach and what deflating the pilot's own products leaves to sample, by
      Hutchinson's estimator or by XTrace (``captured_trace``); the cheapest runs. ``details["reason"]`` says why.

    Args:
        A: symmetric operator, or what ``aslinearoperator`` takes.
        rtol: half-width of the ``confidence`` interval at most rtol * |value|, > 0; see ``budget``.
        atol: the same, absolute; the larger of the two counts.
        n_probes: fixed number of probes instead, >= 2; 16 where neither is given.
        seed: integer >= 0, or a generator to draw one from.
        method: see above.
        law: of the probes: ``"rademacher"``, ``"gaussian"`` or ``"sphere"``.
        deflate: directions (k, d) independent of the probes, one a row, to be treated exactly at k products (k more
            with the surrogate where it is used); or anything with ``.vectors``, such as eigenpairs, or a
            ``Deflation``, whose products are then not repeated. Any orthonormalisable rows keep the estimate unbiased.
        control_variate: subtract the operator's surrogate inside the probes and add its trace, exact or sampled in
            output space with an error of its own; ``"auto"`` whichever pays, True to insist on the exact one,
            ``"sampled"`` on the other (with ``n_probes`` at least 16 draws), False never. Unbiased: its coefficient is
            fixed at one, and all streams are independent.
        confidence: level the tolerances speak of.
        max_probes: cap on what a tolerance may ask for.
        per_block: spend products with the surrogate, not only quadratic forms, so that block traces profit too; below
            64 samples over all terms, where the error needs them, that is always done.
        data_error: tell the error from the data being a sample; where there are fewer than 16 batches, in one pass more
            over the data, of at most 4 probes by groups of examples (``groupwise``).
        callback: called with a ``Progress`` after each block of products.

    Returns:
        The estimate. ``errors.data`` is the standard error from the data being a sample (jackknife over batches, or
        over 16 groups of examples where these are fewer; probe noise removed); None where there is nothing to tell
        apart, and where noise drowns it (flag ``"data-error-unresolved"``). Flags
        ``"few-probes"``: fewer than 5 samples in a sample of fixed size, an interval as wide as the theory asks for and
        hardly of use; ``"heavy-tailed"``: fewer than 64 strongly skewed samples of a control variate with a sampled
        trace, whose nominal 95 % intervals may cover 85 %: deflate, or take more probes. ``details`` holds
        ``blocks`` {name: {value, std_error, df}} from the same products, ``surrogate_trace``, ``reason``, ``pilot``,
        and of the sum of a diagonal that ``diagonal``, fp64 (d,). Of a matrix made of drawn labels it is the mean over
        the draws, and ``errors.probe`` their spread: labels and probes together (``details`` is empty).

    Raises:
        ValueError, TypeError: an argument outside its range, or an option the method cannot honour.
        NonFiniteError: a product is nan or infinite.
        UnsupportedError: a matrix made of one draw of labels.

    Warns:
        NumericalWarning: ``max_probes`` is too small for the tolerance; the result has the flag ``"budget-exhausted"``.

    References:
        Hutchinson (1990); Meyer, Musco, Musco, Woodruff (2021), "Hutch++"; Epperly, Tropp, Webber (2024), "XTrace".

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0], dtype=torch.float64)))
        >>> print(hp.trace(A, n_probes=2, seed=0))
        6 (exact, 0 products, exact)
        >>> import numpy as np
        >>> from scipy.sparse.linalg import aslinearoperator
        >>> G = np.random.default_rng(0).standard_normal((200, 200))
        >>> S = G @ G.T / 200
        >>> found = hp.trace(aslinearoperator(S), n_probes=32, seed=0)  # only products with S are seen
        >>> low, high = found.interval(0.999)
        >>> bool(low < np.trace(S) < high), found.std_error < 0.05 * found.value
        (True, True)
    """
    started = time.perf_counter()
    known = aslinearoperator(A)
    if known.draws:

        def one(draw: LinearOperator, seed: int) -> Estimate:
            return trace(
                draw,
                rtol=rtol,
                atol=atol,
                n_probes=n_probes,
                seed=seed,
                method=method,
                law=law,
                deflate=deflate,
                control_variate=control_variate,
                confidence=confidence,
                max_probes=max_probes,
                per_block=per_block,
                data_error=data_error,
                callback=callback,
            )

        return mean_of_draws(known.draws, one, checks.resolve_seed(seed))
    operator = Counted(known)
    task = Task(
        operator=operator,
        parts=operator.grouped(GROUPS) if data_error else operator,
        goal=budget.goal(rtol, atol, n_probes, confidence, max_probes),
        seed=checks.resolve_seed(seed),
        law=checks.one_of("law", law, LAWS),
        basis=basis_of(deflate, operator),
        given=deflate,
        control=_control(control_variate),
        per_block=per_block,
        callback=callback,
    )
    run = {"auto": _auto, "hutchinson": hutchinson, "hutch++": hutchpp, "xtrace": _xtrace, "exact": _exact}
    estimate = run[checks.one_of("method", method, METHODS)](task)
    estimate = trace_data(operator, estimate, task.seed) if data_error else estimate.without_data()
    return estimate.with_(matvecs=operator.matvec_count, seconds=time.perf_counter() - started)


def _control(value: str | bool) -> bool | str | None:
    if isinstance(value, bool):
        return value
    return None if checks.one_of("control_variate", value, ("auto", "sampled")) == "auto" else "sampled"


def _exact(task: Task) -> Estimate:
    known = task.operator.exact_diagonal()
    diagonal, weights, traces = diagonal_by_terms(task.parts) if known is None else (known[0].double(), None, None)
    exact = Estimate(
        value=float(diagonal.sum()),
        method="exact",
        kind="exact",
        details={"blocks": sums_of_blocks(task.operator, diagonal), "diagonal": diagonal},
    )
    if weights is None or traces is None or len(weights) < 2:
        return exact
    batches = Batches(weights, traces[None], shared=True)
    errors = exact.errors.with_data(data_error(weights, traces))
    return exact.with_(errors=errors, influence=Influence(batches=batches))


def _summed(task: Task) -> Estimate | None:
    """Return the trace as the operator knows it without its diagonal, or None."""
    known = task.operator.exact_trace() if task.basis is None and task.control is None else None
    if known is None:
        return None
    blocks = {name: {"value": value, "std_error": 0.0, "df": math.inf} for name, value in known.blocks.items()}
    if task.callback is not None:
        task.callback(budget.Progress(known.cost, known.cost, known.value, 0.0))
    return Estimate(
        value=known.value,
        errors=ErrorParts(solver=ROUNDING * torch.finfo(task.operator.dtype).eps * abs(known.value)),
        method="exact",
        kind="exact",
        details={"blocks": blocks},
    )


def _auto(task: Task) -> Estimate:
    A, asked = task.operator, task.goal
    summed = _summed(task)
    if summed is not None:
        return _because(summed, "the norms of every example's gradients give it exactly")
    known = A.exact_diagonal()
    least = max(asked.n_probes or 0, budget.DEFAULT_PROBES)
    if known is not None or A.dim <= least or (asked.n_probes is None and budget.exact_pays(A.dim, least)):
        why = "the operator knows its diagonal" if known is not None else f"{A.dim} products give it exactly"
        return _because(_exact(task), why)
    if asked.n_probes is not None:
        return _because(hutchinson(task), "a fixed number of probes leaves nothing for a pilot")
    first = _first_plan(task)
    plan = _cheaper_plan(task, first)
    used = "with" if plan.known.surrogate is not None or plan.draws is not None else "without"
    blocks = isinstance(plan.task.operator, BlockDiagonal)
    used = f"{'inside blocks' if blocks else 'by groups of examples'} {used}" if plan.task is not task else used
    kind = "sampled " if plan.draws is not None else ""
    why = f"Hutchinson {used} {kind}control variate needs about {plan.products:.0f} products"
    ways = [Way(plan.products, lambda: hutchinson(task, plan), why)]
    kept = first.kept if first.known.surrogate is None else None
    if kept is None and min(plan.products, A.dim) > 2 * SKETCH_PAYS and sketch_fits(A, SKETCHED):
        kept = pilot_products(task)
    captured = None if kept is None else captured_way(task, kept, first.details["value"], plan.products)
    if captured is not None:
        ways.append(captured)
    return _because(*budget.carried_out(A.dim, ways, lambda sampled: _exact(task)))


def _cheaper_plan(task: Task, plan: Plan) -> Plan:
    """Return ``plan`` or, where that takes fewer products, the same for the block diagonal, whose trace is tr A."""
    blocks = block_diagonal(task.operator) if task.basis is None else None
    if blocks is None or plan.products <= _BLOCKS_PAY * len(blocks.groups):
        return plan
    other = pilot(replace(task, operator=blocks))
    return other if other.products < plan.products else plan


def _first_plan(task: Task) -> Plan:
    """Return the plan of a pilot: with probes of their own for groups of examples where these cost little more.

    A pass with fresh probes for each of B groups has the variance 2 sum_b w_b^2 |offdiag H_b|_F^2, about 1/B of that of
    one group's matrix: less for more groups, until their matrices are those of single examples.
    """
    A = task.operator
    finer = A.grouped(_FINER) if task.basis is None and 2 * A.n_terms <= _FINER else A
    price = math.inf if finer.n_terms <= A.n_terms else finer.cost_of("product") / A.cost_of("product")
    if price <= _HARDLY_DEARER:
        return _priced(pilot(replace(task, operator=finer)), price)
    plan = pilot(task)
    if price > _DEAREST or plan.products <= _GROUPS_PAY:
        return plan
    other = _priced(pilot(replace(task, operator=finer)), price)
    return other if other.products < plan.products else plan


def _priced(plan: Plan, price: float) -> Plan:
    return replace(plan, cost=plan.cost * price, draw_cost=plan.draw_cost * price, kept=None)


def _because(estimate: Estimate, reason: str) -> Estimate:
    return estimate.with_(details={**estimate.details, "reason": reason})


def _xtrace(task: Task) -> Estimate:
    """Run XTrace for a fixed number of probes, or for the number a pilot of 8 asks for."""
    if task.control or task.basis is not None:
        raise ValueError(
            "method must be 'hutchinson' or 'auto' for deflate or control_variate=True; got 'xtrace'. "
            "XTrace makes its own deflation; leave both out."
        )
    fixed = task.goal.n_probes
    if fixed is not None:
        return _xtrace_run(task, fixed)
    if budget.exact_pays(task.operator.dim, 4 * SKETCHED):
        return _exact(task).with_(method="xtrace:exact")
    return grown_exchange(task)


def _xtrace_run(task: Task, count: int) -> Estimate:
    if 2 * count >= task.operator.dim:
        return _exact(task).with_(method="xtrace:exact")
    return exchanged(task, count)
