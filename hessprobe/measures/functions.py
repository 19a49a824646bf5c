"""The functions of the measures: what each asks of a context."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hessprobe import estimators
from hessprobe.errors import UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.density import fine_grid
from hessprobe.estimators.hutchinson import ROUNDING
from hessprobe.measures import distribution
from hessprobe.measures.context import Context
from hessprobe.measures.entry import DENSE_LIMIT
from hessprobe.measures.settings import Answer
from hessprobe.operators import Congruence, LinearOperator


def lambda_max(context: Context) -> Answer:
    """lambda_1."""
    pairs = context.eigenpairs
    layers = context.layer_eigenvalues if context.settings.per_layer else None
    return Answer(pairs.estimate(0), layers=layers, arrays=_spectrum(context))


def lambda_min(context: Context) -> Answer:
    """lambda_d."""
    return Answer(context.smallest, arrays={} if context.A.psd else _spectrum(context))


def _spectrum(context: Context) -> dict[str, Tensor]:
    pairs = context.eigenpairs
    errors = torch.maximum(pairs.errors, ROUNDING * torch.finfo(context.A.dtype).eps * pairs.values.abs())
    return {"eigenvalues": pairs.values, "residuals": pairs.residuals, "eigenvalue_errors": errors}


def spectral_norm(context: Context) -> Answer:
    """Largest |lambda_i|."""
    top = context.eigenpairs.estimate(0)
    if context.A.psd:
        return Answer(top, arrays=_spectrum(context))
    bottom = context.eigenpairs.estimate(-1).scaled(-1.0)
    first, second = (top, bottom) if top.value >= bottom.value else (bottom, top)
    # The larger of two numbers lies between the larger of their lower and the larger of their upper ends.
    ends = [one.bracket for one in (first, second) if one.bracket is not None]
    bracket = (max(low for low, _ in ends), max(high for _, high in ends)) if len(ends) == 2 else None
    arm = first.errors.solver if bracket is None else max(first.value - bracket[0], bracket[1] - first.value)
    larger = first.with_(bracket=bracket, errors=replace(first.errors, solver=arm), support=(0.0, float("inf")))
    return Answer(larger, arrays=_spectrum(context))


def trace(context: Context) -> Answer:
    """Tr A."""
    return Answer(context.trace, layers=_layers(context, context.trace))


def frob(context: Context) -> Answer:
    """||A||_F, with the shares of layers in its square."""
    squares = _layers(context, context.frobenius)
    if squares is None or context.frobenius.value == 0:
        return Answer(context.frobenius, layers=squares)
    square = context.frobenius.value**2
    shares = {name: one.scaled(1 / square) for name, one in squares.items()}
    return Answer(context.frobenius, layers=shares, notes=("layers: share of the squared norm, ||A[layer, :]||^2",))


def logdet(context: Context) -> Answer:
    """The log-determinant of A + s I, or the smoothed one of an indefinite matrix."""
    shift = context.settings.damping
    form = f"log det(A + {shift:g} I)" if context.A.psd else f"1/2 log det(A^2 + {shift:g}^2 I)"
    return Answer(_from_sketch(context, "logdet", context.logdet(context.sketch)), notes=(form,))


def effective_dimension(context: Context) -> Answer:
    """Sum of l / (l + s), or of l^2 / (l^2 + s^2) of an indefinite matrix."""
    shift = context.settings.damping
    estimate = context.sketch.effective_dimension(shift=shift)
    return Answer(_from_sketch(context, "effective-dimension", estimate), notes=(f"damping {shift:g}",))


def density(context: Context) -> Answer:
    """The median eigenvalue, with the distribution."""
    density = context.sketch.density(grid=fine_grid(context.sketch))
    level, sure = context.settings.confidence, 1 - context.settings.bracket_delta
    arrays = distribution.curve(density, level)
    arrays |= distribution.quantiles(density, level) | distribution.shares(density, level)
    median = _from_sketch(context, "density", distribution.median(density, sure))
    return Answer(median, arrays=arrays, notes=distribution.sentences(arrays, level))


def diagonal(context: Context) -> Answer:
    """Tr A / d, with every entry."""
    entries = context.diagonal()
    mean = context.trace.scaled(1 / context.A.dim)
    mean = mean.with_(matvecs=mean.matvecs + entries.matvecs, seconds=mean.seconds + entries.seconds)
    return Answer(mean, arrays={"diagonal": entries.values, "diagonal_std_error": entries.std_error})


def effective_rank(context: Context) -> Answer:
    """(Tr A)^2 / ||A||_F^2."""
    return Answer(estimators.effective_rank(context.trace, context.frobenius))


def adaptive_lambda_max(context: Context) -> Answer:
    """lambda_1(C A C) with C = diag|w|."""
    return lambda_max(context.shared(_adaptive))


def adaptive_trace(context: Context) -> Answer:
    """Tr C A C."""
    return trace(context.shared(_adaptive))


def adaptive_frob(context: Context) -> Answer:
    """||C A C||_F."""
    return frob(context.shared(_adaptive))


def _adaptive(context: Context) -> Context:
    return context.beside(Congruence(context.A, context.risk.theta.abs()), "adaptive")


def pseudo_logdet(context: Context) -> Answer:
    """Sum of log |lambda_i| over the eigenvalues that are not zero."""
    return Answer(context.shared(_log_pseudo_determinant))


def _log_pseudo_determinant(context: Context) -> Estimate:
    return log_pseudo_determinant(context.A)


def _from_sketch(context: Context, name: str, estimate: Estimate) -> Estimate:
    # That a tolerance was missed is said of the one measure for which the size of the sweep was chosen.
    judged = next(each for each in _JUDGED if each in context.names) == name
    flags = tuple(dict.fromkeys((*estimate.flags, *(context.sketch.flags if judged else ()))))
    return estimate.with_(matvecs=context.sketch.matvecs, seconds=context.sketch.seconds, flags=flags)


# What shares the sweep; the first of them that is wanted decides its size.
_JUDGED = ("effective-dimension", "logdet", "density")
# Eigenvalues below so many units of rounding of the largest count as zero; those near it are known so badly.
_ZERO = 30.0
# What is said of the probes, and with it of every layer.
_OF_THE_PROBES = ("few-probes", "heavy-tailed")


def _layers(context: Context, estimate: Estimate) -> dict[str, Estimate] | None:
    if not context.settings.per_layer:
        return None
    blocks: dict[str, dict[str, Any]] = estimate.details.get("blocks", {})
    return {
        name: Estimate(
            block["value"],
            ErrorParts(probe=block["std_error"]),
            df=block.get("df", estimate.df),
            samples=estimate.samples,
            method=estimate.method,
            flags=tuple(flag for flag in estimate.flags if flag in _OF_THE_PROBES),
        )
        for name, block in blocks.items()
    }


def log_pseudo_determinant(A: LinearOperator) -> Estimate:
    """Return sum_i log |lambda_i| over the eigenvalues that are not zero to rounding, from the whole matrix.

    For D diagonal and H' = D^-1 H D^-1 with range basis U (d, r) of H:
    pdet H' = pdet H * det(U^T D^-2 U), which is det D^-2 where H has full rank. A network's Hessian rarely has: inputs
    that are always zero and the shift of all logits are null directions. ``details`` holds ``"rank"`` and ``"range"``,
    U as a tensor.

    Args:
        A: symmetric, of at most ``DENSE_LIMIT`` rows.

    Returns:
        Estimate in nats. The solver part is sum_i min(1, e / |lambda_i|), e the rounding of the products.

    Raises:
        UnsupportedError: A is larger, or zero.

    References:
        Horn, Johnson (2013), "Matrix analysis", section 0.8.4: complementary minors, behind det(U^T D^-2 U).
    """
    began = time.perf_counter()
    if A.dim > DENSE_LIMIT:
        raise UnsupportedError(
            f"pseudo-logdet needs the whole matrix, of at most {DENSE_LIMIT} parameters; got {A.dim}. "
            "Choose fewer with params=."
        )
    dense = A.to_dense().double()
    values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
    size = float(values.abs().max())
    if size == 0:
        raise UnsupportedError("pseudo-logdet needs an eigenvalue that is not zero; got the zero matrix.")
    rounding = _ZERO * torch.finfo(A.dtype).eps * size
    kept = values.abs() > rounding
    solver = float((rounding / _ZERO / values[kept].abs()).clamp_max(1.0).sum())
    return Estimate(
        float(values[kept].abs().log().sum()),
        ErrorParts(solver=solver),
        matvecs=float(A.dim),
        method="dense",
        seconds=time.perf_counter() - began,
        details={"rank": int(kept.sum()), "range": vectors[:, kept]},
    )
