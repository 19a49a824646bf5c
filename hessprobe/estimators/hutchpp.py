"""Hutch++: deflate a sketch of the range, give the other probes to its complement.

Q = orth(A S) for a random S (k, d); tr A = tr(Q A Q^T) + tr(P A P), the first term by k products and the second by
Hutchinson with probes independent of S. Unbiased for any k. The complement is sampled with fresh probes for every
term, as in ``linear``.

References:
    Meyer, Musco, Musco, Woodruff (2021), "Hutch++: Optimal Stochastic Trace Estimation".
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from hessprobe.errors import about
from hessprobe.estimate import Estimate
from hessprobe.estimators.hutchinson import hutchinson
from hessprobe.estimators.task import Task
from hessprobe.estimators.xtrace import multiply
from hessprobe.operators import LinearOperator
from hessprobe.probes import ProbeStream
from hessprobe.vectors import orthonormal_rows

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
