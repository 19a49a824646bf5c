"""The trials: linear functionals and norms here, spectral functions, eigenvalues and data in ``trials_spectral``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from hessprobe.checks import nearest
from hessprobe.estimators import diagonal, effective_rank, frobenius_norm, trace
from hessprobe.estimators.difference import difference
from hessprobe.validation.coverage import trials_spectral
from hessprobe.validation.coverage.answers import Answer, Answers, Run, Trial, layer_estimates, one, several
from hessprobe.validation.coverage.problem import Problem
from hessprobe.validation.drawn import Drawn


def _layer_truths(drawn: Drawn) -> list[float]:
    entries = np.diagonal(drawn.matrix)
    return [float(entries[where].sum()) for where in drawn.blocks.values()]


def _trace(problem: Problem, size: int, seed: int) -> Answers:
    found = trace(problem.plain, n_probes=size, method="hutchinson", seed=seed)
    yield "trace", one(found, float(np.trace(problem.drawn.matrix)))
    names = list(problem.drawn.blocks)
    yield "trace of a layer", several(layer_estimates(found, names), _layer_truths(problem.drawn))


def _trace_of_terms(problem: Problem, size: int, seed: int) -> Answers:
    found = trace(problem.terms, n_probes=size, method="hutchinson", control_variate=False, seed=seed)
    yield "trace, batches", one(found, float(np.trace(problem.drawn.matrix)))
    names = list(problem.drawn.blocks)
    yield "trace of a layer, batches", several(layer_estimates(found, names), _layer_truths(problem.drawn))


def _trace_by(question: str, **how: Any) -> Run:
    def run(problem: Problem, size: int, seed: int) -> Answers:
        found = trace(problem.plain, n_probes=size, seed=seed, **how)
        yield question, one(found, float(np.trace(problem.drawn.matrix)))

    return run


def _trace_with_surrogate(problem: Problem, size: int, seed: int) -> Answers:
    found = trace(problem.with_surrogate, n_probes=size, method="hutchinson", control_variate=True, seed=seed)
    yield "trace, surrogate", one(found, float(np.trace(problem.drawn.matrix)))


def _trace_deflated(problem: Problem, size: int, seed: int) -> Answers:
    found = trace(problem.plain, n_probes=size, method="hutchinson", deflate=problem.directions, seed=seed)
    yield "trace, deflated", one(found, float(np.trace(problem.drawn.matrix)))


def _diagonal_by(question: str, method: str, *, terms: bool = False) -> Run:
    def run(problem: Problem, size: int, seed: int) -> Answers:
        A = problem.terms if terms else problem.plain
        found = diagonal(A, n_probes=size, method=method, seed=seed)
        low, high = found.interval()
        truth = np.diagonal(problem.drawn.matrix)
        flagged = bool(set(getattr(found, "flags", ())))
        yield question, Answer(found.values.numpy(), low.numpy(), high.numpy(), truth, flagged)

    return run


def _norm(problem: Problem, size: int, seed: int) -> Answers:
    found = frobenius_norm(problem.plain, n_probes=size, seed=seed)
    total, norm = float(np.trace(problem.drawn.matrix)), problem.drawn.norm
    yield "Frobenius norm", one(found, norm)
    summed = trace(problem.plain, n_probes=size, method="hutchinson", seed=seed)
    yield "effective rank", one(effective_rank(summed, found), (total / norm) ** 2)


def _norm_deflated(problem: Problem, size: int, seed: int) -> Answers:
    found = frobenius_norm(problem.plain, n_probes=size, deflate=problem.directions, seed=seed)
    yield "Frobenius norm, deflated", one(found, problem.drawn.norm)


def _differences(problem: Problem, size: int, seed: int) -> Answers:
    pair = (problem.plain, problem.neighbour_operator)
    before, after = (trace(A, n_probes=size, method="hutchinson", seed=seed) for A in pair)
    truth = float(np.trace(problem.neighbour.matrix) - np.trace(problem.drawn.matrix))
    yield "difference of traces", one(difference(before, after).estimate, truth)
    before, after = (frobenius_norm(A, n_probes=size, seed=seed) for A in pair)
    yield "difference of norms", one(difference(before, after).estimate, problem.neighbour.norm - problem.drawn.norm)


TRIALS: tuple[Trial, ...] = (
    Trial("trace", ("trace", "trace of a layer"), _trace),
    Trial("trace-batches", ("trace, batches", "trace of a layer, batches"), _trace_of_terms, size="passes"),
    Trial("trace-surrogate", ("trace, surrogate",), _trace_with_surrogate, size="passes"),
    Trial("trace-deflated", ("trace, deflated",), _trace_deflated),
    Trial("trace-gaussian", ("trace, Gaussian",), _trace_by("trace, Gaussian", method="hutchinson", law="gaussian")),
    Trial("trace-sphere", ("trace, sphere",), _trace_by("trace, sphere", method="hutchinson", law="sphere")),
    Trial("xtrace", ("trace, XTrace",), _trace_by("trace, XTrace", method="xtrace")),
    Trial("hutch++", ("trace, Hutch++",), _trace_by("trace, Hutch++", method="hutch++")),
    Trial("diagonal", ("entry of the diagonal",), _diagonal_by("entry of the diagonal", "hutchinson")),
    Trial(
        "diagonal-batches",
        ("entry of the diagonal, batches",),
        _diagonal_by("entry of the diagonal, batches", "hutchinson", terms=True),
        size="passes",
    ),
    Trial("xdiag", ("entry of the diagonal, XDiag",), _diagonal_by("entry of the diagonal, XDiag", "xdiag")),
    Trial("norm", ("Frobenius norm", "effective rank"), _norm),
    Trial("norm-deflated", ("Frobenius norm, deflated",), _norm_deflated),
    Trial("differences", ("difference of traces", "difference of norms"), _differences),
    *trials_spectral.TRIALS,
)


def questions(trials: Sequence[Trial] = TRIALS) -> tuple[str, ...]:
    """Return the names of all questions, in the order of the table."""
    return tuple(name for trial in trials for name in trial.questions)


def select(pattern: str | None) -> tuple[Trial, ...]:
    """Return the trials whose name matches a pattern with ``*`` and ``?``; all of them where None.

    Raises:
        ValueError: nothing matches; the message names the nearest.
    """
    chosen = tuple(trial for trial in TRIALS if pattern is None or fnmatchcase(trial.name, pattern))
    if not chosen:
        names = [trial.name for trial in TRIALS]
        raise ValueError(
            f"pattern must match an estimator of the coverage study; got {pattern!r}."
            f"{nearest(str(pattern), names)} --list names them all."
        )
    return chosen
