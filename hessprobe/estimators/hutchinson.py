"""Hutchinson's estimator with fresh probes for every term, control variate and deflation; see ``linear``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators import budget
from hessprobe.estimators.linear import LinearSamples, Sampling, data_error, sample_linear
from hessprobe.estimators.task import Known, Task, known_parts
from hessprobe.operators import BlockDiagonal

# A quadratic form with the surrogate is charged like one with the operator when the pilot weighs its use.
_CONTROL_COST = 2.0
# Fewer samples than this with a larger skewness make the t-interval cover less than it says.
_FEW = 40
_SKEWED = 1.2


# Units of rounding, relative, that sums over parameters and examples in the dtype of the products may be off by.
ROUNDING = 64


@dataclass(frozen=True)
class Plan:
    """What the pilot decided.

    Attributes:
        wanted: passes the tolerance asks for.
        cost: products a pass costs.
        task: the request this is a plan for.
        known: what is known before sampling, bought already.
        details: what was measured, for the record.
    """

    wanted: int
    cost: float
    task: Task
    known: Known
    details: dict[str, Any]


def hutchinson(task: Task, plan: Plan | None = None) -> Estimate:
    """Return the estimate of tr A for a fixed number of passes, or for the number that a pilot asks for."""
    if task.goal.n_probes is not None:
        return _run(task, known_parts(task, controlled=task.control is not False), task.goal.n_probes, {})
    plan = plan or pilot(task)
    used = min(plan.wanted, task.goal.max_probes)
    estimate = _run(plan.task, plan.known, used, {"pilot": plan.details})
    return budget.settled(estimate, task.goal, plan.wanted, used)


def planned_passes(task: Task) -> int:
    """Return the fewest passes of a final run."""
    return budget.minimum_passes(task.operator.n_terms)


def pilot(task: Task) -> Plan:
    """Measure the variance of a pass, with and without the surrogate, and return the cheaper plan."""
    A = task.operator
    surrogate = A.surrogate if task.control is not False else None
    n = budget.pilot_passes(A.n_terms)
    price = float(len(A.groups)) if isinstance(A, BlockDiagonal) else 1.0
    samples = sample_linear(A, Sampling(n, task.seed, task.law, "pilot", task.basis), surrogate=surrogate)
    known = known_parts(task, controlled=False)
    plain, control = samples.pooled(False), samples.pooled(True)
    value = plain[0] + known.trace
    details = {"passes": n, "value": value, "std_error": plain[1]}
    passes = _wanted(task, plain, n, value)
    if surrogate is None and not task.control:
        return Plan(passes, price, task, known, details)
    details["std_error_controlled"] = control[1]
    fewer = _wanted(task, control, n, value)
    if task.control or fewer * _CONTROL_COST <= passes:
        with_twin = known_parts(task, controlled=True, deflated=known.deflated)
        if with_twin.surrogate is not None:
            return Plan(fewer, _CONTROL_COST * price, task, with_twin, details)
    return Plan(passes, price, task, known, details)


def _wanted(task: Task, measured: tuple[float, float, float], passes: int, value: float) -> int:
    _, error, df = measured
    one_pass = budget.upper_std(error, df) * math.sqrt(passes)
    return budget.smallest_count(
        lambda n: one_pass / math.sqrt(n),
        lambda n: n - 1.0 if math.isinf(df) else max(df * (n - 1) / (passes - 1), 1.0),
        task.goal.target(value),
        task.goal.confidence,
        minimum=planned_passes(task),
        maximum=task.goal.max_probes,
    )


def _run(task: Task, known: Known, passes: int, details: dict[str, Any]) -> Estimate:
    A = task.operator
    how = Sampling(passes, task.seed, task.law, "probe", task.basis, vectors=bool(A.blocks), paired=task.per_block)
    samples = sample_linear(A, how, surrogate=known.surrogate, offset=known.trace, callback=task.callback)
    value, error, df = samples.pooled(True)
    between = _between(samples, known)
    more = dict(details, blocks=_blocks(task, samples, known))
    # What is known was summed in the dtype of the products: where nothing is left to sample, its rounding is.
    rounding = ROUNDING * torch.finfo(A.dtype).eps * abs(known.trace) if known.surrogate is not None else 0.0
    if known.surrogate_diagonal is not None:
        more["surrogate_trace"] = float(known.surrogate_diagonal.sum())
    if task.basis is not None:
        more["deflated_trace"] = known.trace
    flags = ("heavy-tailed",) if samples.raw.numel() < _FEW and abs(samples.skewness(True)) > _SKEWED else ()
    if between is None and A.n_terms > 1:
        flags = (*flags, "data-error-unresolved")
    method = "hutchinson" + ("+blocks" if isinstance(A, BlockDiagonal) else "")
    method += "+surrogate" if known.surrogate is not None else ""
    return Estimate(
        value=value + known.trace,
        errors=ErrorParts(probe=error, data=between, solver=rounding),
        df=df,
        samples=passes * len(samples.weights),
        method=method + ("+deflation" if task.basis is not None else ""),
        flags=flags,
        details=more,
    )


def _between(samples: LinearSamples, known: Known) -> float | None:
    """Return the data error; per-term traces of the surrogate are not known, so its samples stay out."""
    means = samples.raw.mean(1)
    if known.deflated is not None:
        means = means + known.deflated.term_traces
    return data_error(samples.weights, means, samples.raw.var(1) / samples.count)


def _blocks(task: Task, samples: LinearSamples, known: Known) -> dict[str, dict[str, float]]:
    """Return the block traces with their own errors, from the products of the trace."""
    A = task.operator
    if not samples.names:
        return {}
    paired = task.per_block and known.surrogate is not None
    offsets = torch.zeros(A.dim, dtype=torch.float64, device=A.device)
    if known.deflated is not None or paired:
        offsets = known.diagonal(A, paired=paired)
    fields = zip(samples.blocks.mean, samples.blocks.std_error, samples.blocks.df, strict=True)
    return {
        name: {"value": float(mean + offsets[where].sum()), "std_error": float(error), "df": float(df)}
        for (name, where), (mean, error, df) in zip(A.blocks.items(), fields, strict=True)
    }
