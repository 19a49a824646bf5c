"""The log-determinant of a damped or smoothed operator."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch

from hessprobe import checks
from hessprobe.errors import NumericalWarning, about
from hessprobe.estimate import Estimate
from hessprobe.estimators import budget
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.sweep import Target, spectral_sketch
from hessprobe.operators import settled

_REFUSAL = (
    "log|det A| of an operator that may be indefinite or singular is ruled by its smallest eigenvalues and is not a "
    "stable number. Use logdet of the Gauss-Newton matrix with shift=, or eps= for 1/2 logdet(A^2 + eps^2 I)."
)


def logdet(
    A: Any,
    *,
    shift: float | None = None,
    eps: float | None = None,
    lower: float | None = None,
    n_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    steps: int | None = None,
    seed: int | torch.Generator = 0,
    law: str = "sphere",
    deflate: Any = None,
    method: str = "auto",
    confidence: float = 0.95,
    max_probes: int = 1024,
    callback: budget.Callback | None = None,
) -> Estimate:
    """Return log det(A + shift I), or 1/2 log det(A^2 + eps^2 I) for an indefinite A, by Lanczos quadrature.

    With ``shift`` and a known lower bound of the spectrum (0 for a positive semidefinite operator) the quadrature error
    is bracketed by Gauss (above) and Gauss-Radau (below) rules. With ``eps`` it is bracketed by the same rules for A^2,
    which the chains of A hold (``krylov.quadrature.squared_chain``); it decays like r^{-2m}, r = e + sqrt(1 + e^2),
    e = eps / spectral radius. Both are theorems and hold for any number of steps. With ``shift`` and no lower bound it
    is estimated from shorter rules, under the assumption that the spectrum lies above -shift.

    Args:
        A: symmetric operator, or what ``aslinearoperator`` takes.
        shift: damping in units of the eigenvalues, > -lower. For an operator whose definiteness is unknown it must
            exceed the largest negative eigenvalue: a Ritz value at or below -shift is refused, and the result carries
            the flag ``"definiteness-assumed"``.
        eps: smoothing > 0 in units of the eigenvalues; exactly one of ``shift`` and ``eps``.
        lower: a lower bound of the spectrum (> 0 for a positive definite operator, which then needs no damping:
            ``shift=0``).
        n_probes: number of chains, see ``spectral_sketch``.
        rtol: relative tolerance, see ``spectral_sketch``.
        atol: absolute tolerance in nats.
        steps: Lanczos steps; by default until the quadrature error is a tenth of the rest, or the rate is reached.
        seed: integer or generator.
        law: of the probes, see ``spectral_sketch``.
        deflate: directions to treat exactly, see ``spectral_sketch``.
        method: ``"auto"``, ``"slq"`` or ``"exact"``, see ``spectral_sketch``.
        confidence: level of the interval that the tolerances speak of.
        max_probes: cap on the chains a tolerance may ask for.
        callback: see ``spectral_sketch``.

    Returns:
        Estimate in nats. ``details["quadrature"]`` is ``"bracket"`` where the solver error is a bound.

    Raises:
        ValueError: neither or both of ``shift`` and ``eps``; a shift too small for the spectrum.

    Warns:
        NumericalWarning: the quadrature error outweighs the probe error, or the shift is near rounding.

    References:
        Ubaru, Chen, Saad (2017); Golub, Meurant (2010), chapter 6.

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)))
        >>> found = hp.logdet(A, shift=1.0, seed=0)
        >>> round(found.value, 6) == round(float(torch.tensor([5.0, 3.0, 2.0]).log().sum()), 6)
        True
    """
    began = time.perf_counter()
    operator = settled(A)
    target = _target(shift, eps, lower, operator.psd)
    sketch = spectral_sketch(
        operator,
        n_probes=n_probes,
        steps=steps,
        deflate=deflate,
        seed=seed,
        law=law,
        method=method,
        target=target,
        rtol=rtol,
        atol=atol,
        confidence=confidence,
        max_probes=max_probes,
        lower=lower,
        callback=callback,
    )
    estimate = target(sketch)
    _warn_of_weaknesses(estimate, met=not (rtol is None and atol is None) and "tolerance-missed" not in sketch.flags)
    flags = (*estimate.flags, *sketch.flags)
    return estimate.with_(flags=flags, seconds=time.perf_counter() - began)


def _target(shift: float | None, eps: float | None, lower: float | None, psd: bool) -> Target:
    if shift is not None and eps is not None:
        raise ValueError(
            about("eps", f"must be None where shift is given; got shift={shift!r} and eps={eps!r}. Choose one.")
        )
    if eps is not None:
        width = checks.real("eps", eps, low=0, low_open=True)
        return lambda sketch: sketch.smoothed_logdet(eps=width)
    floor = 0.0 if lower is None else checks.real("lower", lower)
    damping = 0.0 if shift is None else checks.real("shift", shift)
    if not damping > -floor:
        known = psd or lower is not None
        hint = "A may be singular: give the damping, e.g. shift=1e-3, or a known lower= bound." if known else _REFUSAL
        raise ValueError(about("shift", f"must be > {0.0 - floor:g}; got {shift!r}. {hint}"))

    def damped(sketch: SpectralSketch) -> Estimate:
        return sketch.logdet(shift=damping)

    return damped


def _warn_of_weaknesses(estimate: Estimate, *, met: bool) -> None:
    if "shift-below-rounding" in estimate.flags:
        _warn(
            "shift is near the rounding of the products, which blurs the small eigenvalues. Use float64 or raise shift."
        )
    # An interval as narrow as was asked for is no worse for what it is made of.
    if "solver-limited" in estimate.flags and not met:
        _warn(
            f"the solver error {estimate.errors.solver:.3g} outweighs the probe error {estimate.errors.probe:.3g} "
            f"after {estimate.details['steps']} Lanczos steps. Raise steps=, shift= or eps=, or deflate better vectors."
        )


def _warn(message: str) -> None:
    warnings.warn(message, NumericalWarning, stacklevel=4)
