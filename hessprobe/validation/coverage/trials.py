"""The trials: what is estimated (linear functionals, norms, spectral functions, eigenvalues, data), and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch

from hessprobe.checks import nearest
from hessprobe.estimate import Estimate
from hessprobe.estimators import diagonal, effective_rank, frobenius_norm, logdet, spectral_sketch, trace
from hessprobe.estimators.difference import difference
from hessprobe.krylov import eigsh
from hessprobe.universal import catalogue, evaluate
from hessprobe.validation.coverage.problem import (
    Answer,
    Answers,
    Problem,
    Run,
    Trial,
    gapped,
    layer_estimates,
    one,
    several,
)
from hessprobe.validation.drawn import Drawn

GAPS = (0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5, 1e-6)
_BATCHES = (2, 4, 8, 16)


def _sketch(problem: Problem, size: int, seed: int) -> Answers:
    values, shift = problem.drawn.values, problem.shift
    how: dict[str, Any] = {"n_probes": size, "steps": problem.steps, "method": "slq", "seed": seed}
    positive, x = spectral_sketch(problem.absolute_operator, data_error=False, **how), np.abs(values)
    yield "logdet", one(positive.logdet(shift=shift), float(np.log(x + shift).sum()))
    whole = spectral_sketch(problem.plain, data_error=False, **how)
    yield "smoothed logdet", one(whole.smoothed_logdet(eps=shift), float(np.log(values**2 + shift**2).sum() / 2))
    yield "effective dimension", one(positive.effective_dimension(shift=shift), float((x / (x + shift)).sum()))
    density = whole.density(grid=torch.from_numpy(problem.points))
    low, high = density.band(0.95)
    share = (values[:, None] <= problem.points).mean(0)
    yield "density band", Answer(density.cdf.numpy(), low.numpy(), high.numpy(), share, False)


def _logdet_to_a_tolerance(problem: Problem, size: int, seed: int) -> Answers:
    x, shift = np.abs(problem.drawn.values), problem.shift
    found = logdet(problem.absolute_operator, shift=shift, rtol=1 / size, seed=seed)
    yield "logdet to a tolerance", one(found, float(np.log(x + shift).sum()))


def _universal(problem: Problem, size: int, seed: int) -> Answers:
    values = problem.drawn.values
    for name, entry, truth in (
        ("universal: tr3", catalogue.cumulant(3), float((values**3).sum())),
        ("universal: tr4", catalogue.cumulant(4), float((values**4).sum())),
        ("universal: frob", catalogue.frob(), problem.drawn.norm),
    ):
        found = evaluate(entry.measure, problem.plain, n_probes=size, seed=seed, correct_bias=True)
        yield name, one(found, truth)


def _ends(problem: Problem, size: int, seed: int) -> Answers:
    """Ask for as many eigenvalues an end as the size says, and for the largest magnitude alone."""
    values = problem.drawn.values
    pairs = eigsh(problem.plain, size, "both", seed=seed)
    truths = np.concatenate([values[::-1][:size], values[:size][::-1]])
    yield "eigenvalue, both ends", several([pairs.estimate(i) for i in range(2 * size)], truths, confidence=0.99)


def _end(question: str, which: str) -> Run:
    def run(problem: Problem, size: int, seed: int) -> Answers:
        del size  # one eigenvalue
        values = problem.drawn.values
        truth = {"largest": values[-1], "smallest": values[0]}[which]
        yield question, one(eigsh(problem.plain, 1, which, seed=seed).estimate(0), float(truth), confidence=0.99)

    return run


def _gap_problem(family: str, seed: int, *, bottom: bool) -> Problem:
    return gapped(float(family.removeprefix("gap ")), seed, bottom=bottom)


def _other_data(problem: Problem, size: int, seed: int) -> Answers:
    A, truth = problem.batches(size, seed), problem.drawn
    sampled: Estimate = trace(A, n_probes=16, method="hutchinson", seed=seed)
    yield "trace, other data", one(sampled, float(np.trace(truth.matrix)), include_data=True)
    exact: Estimate = frobenius_norm(A, n_probes=A.dim, seed=seed)
    yield "Frobenius norm, other data", one(exact, truth.norm, include_data=True)


SPECTRAL_TRIALS: tuple[Trial, ...] = (
    Trial("sketch", ("logdet", "smoothed logdet", "effective dimension", "density band"), _sketch, size="chains"),
    Trial("logdet-tolerance", ("logdet to a tolerance",), _logdet_to_a_tolerance, sizes=(10, 50), size="1 / rtol"),
    Trial("universal", ("universal: tr3", "universal: tr4", "universal: frob"), _universal, size="draws"),
    Trial(
        "eigenvalues",
        ("eigenvalue, both ends",),
        _ends,
        sizes=(1, 3),
        size="pairs an end",
        nominal=0.99,
        floor=0.98,
    ),
    Trial(
        "lambda-max",
        ("largest eigenvalue, gaps",),
        _end("largest eigenvalue, gaps", "largest"),
        sizes=(1,),
        size="pairs",
        families=tuple(f"gap {gap:g}" for gap in GAPS),
        make=partial(_gap_problem, bottom=False),
        nominal=0.99,
        floor=0.99,
    ),
    Trial(
        "lambda-min",
        ("smallest eigenvalue, gaps",),
        _end("smallest eigenvalue, gaps", "smallest"),
        sizes=(1,),
        size="pairs",
        families=tuple(f"gap {gap:g}" for gap in GAPS),
        make=partial(_gap_problem, bottom=True),
        nominal=0.99,
        floor=0.99,
    ),
    Trial(
        "data",
        ("trace, other data", "Frobenius norm, other data"),
        _other_data,
        sizes=_BATCHES,
        size="batches",
        make=Problem.small,
    ),
)


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


def _trace_to_a_tolerance(problem: Problem, size: int, seed: int) -> Answers:
    found = trace(problem.plain, rtol=1 / size, seed=seed)
    yield "trace to a tolerance", one(found, float(np.trace(problem.drawn.matrix)))


def _norm_to_a_tolerance(problem: Problem, size: int, seed: int) -> Answers:
    found = frobenius_norm(problem.plain, rtol=1 / size, seed=seed)
    yield "Frobenius norm to a tolerance", one(found, problem.drawn.norm)


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
    Trial("trace-tolerance", ("trace to a tolerance",), _trace_to_a_tolerance, sizes=(10, 50), size="1 / rtol"),
    Trial("norm-tolerance", ("Frobenius norm to a tolerance",), _norm_to_a_tolerance, sizes=(10, 50), size="1 / rtol"),
    *SPECTRAL_TRIALS,
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
