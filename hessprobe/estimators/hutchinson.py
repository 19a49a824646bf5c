"""Hutchinson's estimator with fresh probes for every term, control variate and deflation; see ``linear``.

Hutch++: deflate a sketch of the range, give the other probes to its complement.

Q = orth(A S) for a random S (k, d); tr A = tr(Q A Q^T) + tr(P A P), the first term by k products and the second by
Hutchinson with probes independent of S. Unbiased for any k. The complement is sampled with fresh probes for every
term, as in ``linear``.

References:
    Meyer, Musco, Musco, Woodruff (2021), "Hutch++: Optimal Stochastic Trace Estimation".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hessprobe.errors import about
from hessprobe.estimate import Batches, DataError, ErrorParts, Estimate, Influence, own_probes_error
from hessprobe.estimators import budget
from hessprobe.estimators.linear import LinearSamples, Sampling, sample_linear
from hessprobe.estimators.task import Known, Task, known_parts
from hessprobe.estimators.xtrace import multiply
from hessprobe.operators import BlockDiagonal, LinearOperator
from hessprobe.vectors import ProbeStream, orthonormal_rows

# Samples of a pilot: of products alone, of products with operator and surrogate, and of these inside blocks.
_PILOT, _PILOT_PAIRED, _PILOT_IN_BLOCKS = 8, 4, 2
# Draws of the surrogate's sampled trace in a pilot, and what an exact diagonal may cost, in products, without that a
# sampled trace is tried in its place.
_PILOT_DRAWS, _CHEAP = 2, 4.0
_MAX_DRAWS = 1 << 14
# The fewest passes with an error bar, and the share of the tolerance that counts as far inside it.
_FEWEST, _FAR_INSIDE = 2, 0.02
# Fewer samples than this say little of their own error.
FEWEST_SAMPLES = 5
# Fewer samples than this do not tell their own variance where few eigenvalues rule, and products with the surrogate,
# not only quadratic forms, are made for the variance that the law of the probes gives. Where its trace is sampled there
# are forms only, and strongly skewed samples are flagged.
_FEW = 64
_SKEWED = 1.2


# Units of rounding, relative, that sums over parameters and examples in the dtype of the products may be off by.
ROUNDING = 64


@dataclass(frozen=True)
class _Prices:
    """What a plan is charged, in products with A, from what the operators say of their costs.

    Attributes:
        alone: a pass with A, or inside its blocks.
        paired: the same with the surrogate's quadratic forms beside it.
        draw: a draw of the surrogate's trace.
    """

    alone: float
    paired: float
    draw: float

    @classmethod
    def of(cls, A: LinearOperator, surrogate: LinearOperator | None) -> _Prices:
        alone = float(len(A.groups)) if isinstance(A, BlockDiagonal) else 1.0
        if surrogate is None:
            return cls(alone, 2 * alone, math.inf)
        product = A.cost_of("product") / alone
        return cls(alone, alone + surrogate.cost_of("form") / product, surrogate.cost_of("draw") / product)


@dataclass(frozen=True)
class Plan:
    """What the pilot decided.

    Attributes:
        wanted: passes the tolerance asks for.
        cost: products a pass costs.
        task: the request this is a plan for.
        known: what is known before sampling, bought already.
        details: what was measured, for the record.
        draws: of the surrogate's trace, bought when the plan is carried out; None where it is not sampled.
        draw_cost: products that each of them costs.
        kept: probes and products (m, d) of the pilot, where it made them with all of A.
    """

    wanted: int
    cost: float
    task: Task
    known: Known
    details: dict[str, Any]
    draws: range | None = None
    draw_cost: float = 0.0
    kept: tuple[Tensor, Tensor] | None = None

    @property
    def products(self) -> float:
        """Products it still takes."""
        return self.wanted * self.cost + len(self.draws or ()) * self.draw_cost


def hutchinson(task: Task, plan: Plan | None = None) -> Estimate:
    """Return the estimate of tr A for a fixed number of passes, or for the number that a pilot asks for."""
    if task.goal.n_probes is not None:
        draws = _draws(max(task.goal.n_probes, budget.DEFAULT_PROBES)) if task.control == "sampled" else None
        known = known_parts(task, controlled=task.control is not False, draws=draws)
        return _run(task, known, task.goal.n_probes, {})
    plan = plan or pilot(task)
    used, known = min(plan.wanted, task.goal.max_probes), plan.known
    if plan.draws is not None:
        known = known_parts(plan.task, controlled=True, deflated=known.deflated, draws=plan.draws)
    estimate = _run(plan.task, known, used, {"pilot": plan.details})
    return budget.settled(estimate, task.goal, plan.wanted, used)


def planned_passes(task: Task) -> int:
    """Return the fewest passes of a final run."""
    return budget.minimum_passes(task.operator.n_terms)


def pilot(task: Task) -> Plan:
    """Measure the variance of a pass, with and without the surrogate, and return the cheapest plan.

    The surrogate's trace comes from its exact diagonal or, where that is dear, from draws in output space; either is
    charged to the plan that uses it.
    """
    A = task.operator
    surrogate = A.surrogate if task.control is not False else None
    n = budget.pilot_passes(A.n_terms, _samples(A, surrogate))
    prices = _Prices.of(A, surrogate)
    how = Sampling(n, task.seed, task.law, "pilot", task.basis, paired=n * A.n_terms < _FEW, keep=True)
    samples = sample_linear(A, how, surrogate=surrogate)
    known = known_parts(task, controlled=False)
    plain, control = samples.pooled(False), samples.pooled(True)
    value = plain[0] + known.trace
    details = {"passes": n, "value": value, "std_error": plain[1]}
    passes = passes_wanted(task, plain, n, value)
    simple = Plan(passes, prices.alone, task, known, details, kept=samples.kept)
    if surrogate is None and not task.control:
        return simple
    details["std_error_controlled"] = control[1]
    fewer = passes_wanted(task, control, n, value)
    exact = fewer * prices.paired + (0.0 if surrogate is None else surrogate.exact_diagonal_cost())
    rival = min(exact, math.inf if task.control else passes * prices.alone)
    draws, wanted = _sampled(task, control, n, value, fewer, rival, prices) if surrogate is not None else (None, fewer)
    if draws is not None:
        return Plan(wanted, prices.paired, task, known, {**details, "draws": len(draws)}, draws, prices.draw)
    if task.control or exact <= passes * prices.alone:
        with_twin = known_parts(task, controlled=True, deflated=known.deflated)
        if with_twin.surrogate is not None:
            return Plan(fewer, prices.paired, task, with_twin, details)
    return simple


def _samples(A: LinearOperator, surrogate: LinearOperator | None) -> int:
    """Return the samples of a pilot: fewer where each costs several products, as inside blocks."""
    if isinstance(A, BlockDiagonal):
        return _PILOT_IN_BLOCKS
    return _PILOT_PAIRED if surrogate is not None else _PILOT


def _draws(count: int) -> range:
    return range(_PILOT_DRAWS, _PILOT_DRAWS + count)


def _sampled(
    task: Task,
    control: tuple[float, float, float],
    passes: int,
    value: float,
    fewer: int,
    rival: float,
    prices: _Prices,
) -> tuple[range | None, int]:
    """Return the draws of the surrogate's trace and the passes that together meet the tolerance at the least cost.

    No draws where that is not less than the ``rival`` cost, or where ``fewer`` passes and a pilot would reach it.
    """
    insisted = task.control == "sampled"
    surrogate = task.operator.surrogate
    floor = fewer * prices.paired
    if task.control is True or task.per_block or surrogate is None:
        return None, fewer
    if not insisted and (surrogate.exact_diagonal_cost() <= _CHEAP or floor + _CHEAP >= rival):
        return None, fewer
    first = surrogate.sampled_trace(range(_PILOT_DRAWS), task.seed)
    if first is None:
        return (_draws(_PILOT_DRAWS) if insisted else None), fewer
    one_draw = budget.upper_std(first.std_error, first.df) * math.sqrt(_PILOT_DRAWS)
    best, chosen = (math.inf if insisted else rival), (_draws(_MAX_DRAWS) if insisted else None)
    wanted, count = fewer, _PILOT_DRAWS
    while count <= _MAX_DRAWS:
        error = one_draw / math.sqrt(count)
        beside = error, first.df * (count - 1) / (_PILOT_DRAWS - 1)
        needed = passes_wanted(task, control, passes, value, beside)
        cost = needed * prices.paired + count * prices.draw
        if needed < task.goal.max_probes and cost < best:
            best, chosen, wanted = cost, _draws(count), needed
        count *= 2
    return chosen, wanted


def passes_wanted(
    task: Task,
    measured: tuple[float, float, float],
    passes: int,
    value: float,
    beside: tuple[float, float] = (0.0, math.inf),
) -> int:
    """Return the passes that meet the tolerance ``beside`` an independent standard error with its own df."""
    _, error, df = measured
    one_pass = budget.upper_std(error, df) * math.sqrt(passes)

    def freedom(n: int) -> float:
        # As many terms as the pilot's degrees of freedom tell of, see ``welch_df``.
        return n - 1.0 if math.isinf(df) else max((df + 2) * (n + 1) / (passes + 1) - 2, 1.0)

    def count(target: float, minimum: int) -> int:
        return budget.smallest_count(
            lambda n: math.hypot(one_pass / math.sqrt(n), beside[0]),
            lambda n: budget.joint_df(
                (
                    one_pass / math.sqrt(n),
                    n - 1.0 if math.isinf(df) else max((df + 2) * (n + 1) / (passes + 1) - 2, 1.0),
                ),
                beside,
            ),
            target,
            task.goal.confidence,
            minimum=minimum,
            maximum=task.goal.max_probes,
        )

    target = task.goal.target(value)
    # Where two passes are far inside the tolerance, a third would only sharpen an error bar that nobody looks at.
    return _FEWEST if count(_FAR_INSIDE * target, _FEWEST) == _FEWEST else count(target, planned_passes(task))


def _run(task: Task, known: Known, passes: int, details: dict[str, Any]) -> Estimate:
    A = task.operator
    paired = task.per_block or (known.surrogate_diagonal is not None and passes * A.n_terms < _FEW)
    how = Sampling(passes, task.seed, task.law, "probe", task.basis, vectors=bool(A.blocks), paired=paired)
    samples = sample_linear(A, how, surrogate=known.surrogate, offset=known.trace, callback=task.callback)
    value, error, df = samples.pooled(True)
    twin = known.surrogate_sampled
    if twin is not None:
        error, df = math.hypot(error, twin.std_error), budget.joint_df((error, df), (twin.std_error, twin.df))
    between = _between(samples, known)
    more = dict(details, blocks=_blocks(task, samples, known, paired=paired))
    # What is known was summed in the dtype of the products: where nothing is left to sample, its rounding is.
    rounding = ROUNDING * torch.finfo(A.dtype).eps * abs(known.trace) if known.surrogate is not None else 0.0
    if known.surrogate_diagonal is not None:
        more["surrogate_trace"] = float(known.surrogate_diagonal.sum())
    if twin is not None:
        more["surrogate_trace"], more["surrogate_trace_std_error"] = twin.value, twin.std_error
    if task.basis is not None:
        more["deflated_trace"] = known.trace
    unknown = not samples.knows_law(True) and samples.raw.numel() < _FEW
    flags = ("heavy-tailed",) if unknown and abs(samples.skewness(True)) > _SKEWED else ()
    if task.goal.n_probes is not None and samples.raw.numel() < FEWEST_SAMPLES:
        flags = (*flags, "few-probes")
    if between is None and A.n_terms > 1:
        flags = (*flags, "data-error-unresolved")
    method = "hutchinson" + ("+blocks" if isinstance(A, BlockDiagonal) else "")
    method += "+surrogate" if known.surrogate is not None else ""
    method += "-sampled" if twin is not None else ""
    return Estimate(
        value=value + known.trace,
        errors=ErrorParts(probe=error, solver=rounding).with_data(between),
        df=df,
        samples=passes * len(samples.weights),
        method=method + ("+deflation" if task.basis is not None else ""),
        flags=flags,
        details=more,
        influence=None if twin is not None else _influence(samples, known),
    )


def _between(samples: LinearSamples, known: Known) -> DataError | None:
    """Return the data error; per-term traces of the surrogate are not known, so its samples stay out."""
    return own_probes_error(samples.weights, _per_term(samples, known).mean(0), samples.raw.var(1) / samples.count)


def _per_term(samples: LinearSamples, known: Known) -> Tensor:
    """Return estimates of the traces of all terms, (n, B); without the deflated part where other terms have it."""
    deflated = None if known.deflated is None else known.deflated.term_traces
    return samples.raw.T + (deflated if deflated is not None and len(deflated) == len(samples.raw) else 0.0)


def _influence(samples: LinearSamples, known: Known) -> Influence:
    rows, folded = samples.weights[:, None] * samples.values(True), samples.entries(True)
    entries = {} if folded is None else {"probe": samples.weights[:, None, None] * folded}
    return Influence(
        {"probe": rows}, entries=entries, batches=Batches(samples.weights, _per_term(samples, known), shared=False)
    )


def _blocks(task: Task, samples: LinearSamples, known: Known, *, paired: bool) -> dict[str, dict[str, float]]:
    """Return the block traces with their own errors, from the products of the trace."""
    A = task.operator
    if not samples.names:
        return {}
    paired = paired and known.surrogate is not None
    offsets = torch.zeros(A.dim, dtype=torch.float64, device=A.device)
    if known.deflated is not None or paired:
        offsets = known.diagonal(A, paired=paired)
    fields = zip(samples.blocks.mean, samples.blocks.std_error, samples.blocks.df, strict=True)
    return {
        name: {"value": float(mean + offsets[where].sum()), "std_error": float(error), "df": float(df)}
        for (name, where), (mean, error, df) in zip(A.blocks.items(), fields, strict=True)
    }


# Sketched directions where a tolerance, not a number of probes, is given.
_SKETCH = 16


def hutchpp(task: Task) -> Estimate:
    """Return the estimate of tr A: k = N // 2 sketched directions (2k products) and N - k probes on the complement.

    Raises:
        ValueError: ``deflate`` is given, or fewer than 4 probes.
    """
    if task.basis is not None:
        raise ValueError(
            "deflate must be None for method 'hutch++', which makes its own; got vectors. Use method='hutchinson'."
        )
    goal, size = task.goal, min(_SKETCH, task.operator.dim)
    if goal.n_probes is not None:
        if goal.n_probes < 4:
            raise ValueError(
                about("n_probes", f"must be at least 4 for method 'hutch++'; got {goal.n_probes}. Give more.")
            )
        size = min(goal.n_probes // 2, task.operator.dim)
        goal = replace(goal, n_probes=goal.n_probes - size)
    basis = sketched_basis(task.operator, size, task.seed, task.law)
    control = False if task.control is None else task.control
    estimate = hutchinson(replace(task, goal=goal, basis=basis, given=None, control=control))
    return estimate.with_(method="hutch++" + ("+surrogate" if "surrogate_trace" in estimate.details else ""))


def sketched_basis(A: LinearOperator, size: int, seed: int, law: str) -> Tensor:
    """Return orthonormal rows (size, d) spanning A S for a random S of the stream ``"sketch"``; ``size`` products."""
    probes = ProbeStream(A.dim, seed, law, A.dtype, A.device, "sketch").block(0, size)
    return orthonormal_rows(multiply(A, probes))
