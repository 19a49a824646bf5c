"""Trials of spectral functions, measures of random directions, eigenvalues, and the error from the data."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from hessprobe.estimate import Estimate
from hessprobe.estimators import frobenius_norm, spectral_sketch, trace
from hessprobe.krylov import eigsh
from hessprobe.universal import catalogue, evaluate
from hessprobe.validation.coverage.answers import Answer, Answers, Run, Trial, one, several
from hessprobe.validation.coverage.problem import Problem, gapped

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


TRIALS: tuple[Trial, ...] = (
    Trial("sketch", ("logdet", "smoothed logdet", "effective dimension", "density band"), _sketch, size="chains"),
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
