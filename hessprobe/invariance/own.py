"""Measures made for invariance: adaptive curvature diag|w| H diag|w|, and the pseudo-determinant of small networks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable

import torch

from hessprobe import estimators, krylov
from hessprobe.errors import NumericalWarning, UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.invariance.names import DENSE_LIMIT
from hessprobe.jackknife import GROUPS
from hessprobe.measures.session import make_operator
from hessprobe.measures.settings import Event, MeasureSettings
from hessprobe.objective import EmpiricalRisk
from hessprobe.operators import Congruence, LinearOperator

_EIGEN_TOL = 1e-3
_ROUGH_TOL = 0.05
_DEFLATED = 16
# Eigenvalues below so many units of rounding of the largest count as zero; those near it are known so badly.
_ZERO = 30.0


def measure_own(
    names: Iterable[str],
    risk: EmpiricalRisk,
    settings: MeasureSettings,
    report: Callable[[Event], None] = lambda event: None,
    *,
    operator: LinearOperator | None = None,
) -> dict[str, Estimate | UnsupportedError]:
    """Return the measures of ``OWN`` by name; one that does not exist here comes as the error that says why.

    Args:
        names: of ``OWN``.
        risk: what is measured.
        settings: operator, tolerance or probes, seed, confidence, engine and memory.
        report: told of progress.
        operator: that of these settings, where it is made already.
    """
    wanted = tuple(names)
    if not wanted:
        return {}
    A = make_operator(risk, settings) if operator is None else operator
    C = Congruence(A, risk.theta.abs())

    def progress(state: krylov.Progress) -> None:
        report(Event("adaptive eigenvalue", state.matvecs, None, state.largest, state.largest_residual))

    work: dict[str, Callable[[], Estimate]] = {
        "adaptive-lambda-max": lambda: krylov.eigsh(
            C,
            1,
            "largest",
            tol=_EIGEN_TOL,
            rtol=settings.bracket_rtol,
            confidence=1 - settings.bracket_delta,
            seed=settings.seed,
            data_error=settings.data_error,
            callback=progress,
        ).estimate(0),
        "adaptive-trace": lambda: estimators.trace(
            C,
            n_probes=settings.n_probes,
            rtol=_rtol(settings),
            seed=settings.seed,
            confidence=settings.confidence,
            data_error=settings.data_error,
        ),
        "adaptive-frob": lambda: _frobenius(C, settings),
        "pseudo-logdet": lambda: pseudo_logdet(A),
    }
    found: dict[str, Estimate | UnsupportedError] = {}
    for name in wanted:
        try:
            with warnings.catch_warnings():
                # What is weak about a number stands in its flags.
                warnings.simplefilter("ignore", NumericalWarning)
                estimate = work[name]()
            found[name] = estimate if settings.data_error else estimate.without_data()
        except UnsupportedError as error:
            found[name] = error
    return found


def pseudo_logdet(A: LinearOperator) -> Estimate:
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


def _frobenius(C: LinearOperator, settings: MeasureSettings) -> Estimate:
    """Return ||C||_F; rough leading eigenvectors, which carry most of the variance, are deflated."""
    directions, count = None, min(_DEFLATED, C.dim // 8)
    spent = 0.0
    if count:
        pairs = krylov.eigsh(
            C,
            count,
            "magnitude",
            tol=_ROUGH_TOL,
            rtol=None,
            seed=settings.seed,
            verify=False,
            max_matvecs=10 * count,
            data_error=False,
        )
        parts = C.grouped(GROUPS) if settings.data_error else C
        directions = estimators.deflation(C, pairs.vectors, seed=settings.seed, parts=parts)
        spent = directions.matvecs + pairs.matvecs
    estimate = estimators.frobenius_norm(
        C,
        n_probes=settings.n_probes,
        rtol=_rtol(settings),
        seed=settings.seed,
        confidence=settings.confidence,
        deflate=directions,
        data_error=settings.data_error,
    )
    return estimate.with_(matvecs=estimate.matvecs + spent)


def _rtol(settings: MeasureSettings) -> float | None:
    return settings.rtol if settings.n_probes is None else None
