"""The spectral density of an operator, from a sketch made for it: of a fixed size, or as long as a band asks for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NumericalWarning, about
from hessprobe.estimators import budget
from hessprobe.estimators.density import NEAR_ZERO, Density, density_of
from hessprobe.estimators.distribution import points_outside, sharp_cdf_at_points, uniform_half_width, unresolved
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.operators import settled

HALF_WIDTH = 0.02
# Of the half-width, the most that the probes may take: a chain's bounds close faster than 1/m, a probe costs a chain.
_PROBE_SHARE = 0.8


def spectral_density(
    A: Any,
    *,
    atol: float | None = None,
    n_probes: int | None = None,
    steps: int | None = None,
    deflate: Any = None,
    seed: int | torch.Generator = 0,
    law: str = "sphere",
    method: str = "auto",
    grid: Tensor | int = 512,
    width: float | None = None,
    zero: float | None = None,
    confidence: float = 0.95,
    callback: budget.Callback | None = None,
) -> Density:
    """Return the spectral density of A by Lanczos quadrature, with bands for its distribution function.

    Its size follows from ``atol``: the half-width, outside the near-zero bin [-zero, zero], of the band that holds
    everywhere at once with probability ``confidence``. What a chain leaves open of its own probe's distribution is a
    theorem; what probes are off by has a law that depends on nothing but d, so that their number is known before the
    first product (one from d = 14,400 on, for 0.02) and chains may go on until the band is reached at no loss of
    confidence, see ``estimators.distribution``. The smoothed density itself is a picture without an error.

    Args:
        A: symmetric operator, or what ``aslinearoperator`` takes.
        atol: half-width of the band, a share in (0, 1); 0.02 where neither this, ``n_probes`` nor ``steps`` is given.
        n_probes: fixed number of chains instead.
        steps: fixed number of Lanczos steps instead, on which the resolution rests.
        deflate: directions to treat exactly, see ``spectral_sketch``.
        seed: integer or generator.
        law: of the probes, see ``spectral_sketch``.
        method: ``"auto"``, ``"slq"`` or ``"exact"``, see ``spectral_sketch``.
        grid: see ``density_of``.
        width: see ``density_of``.
        zero: threshold of the near-zero bin, > 0 where ``atol`` rules; by default 1e-3 of the spectral radius. Halving
            it takes about 1.4 times the steps at an end of the spectrum, and twice the steps in its middle.
        confidence: of the band, in (0, 1).
        callback: see ``spectral_sketch``.

    Raises:
        TypeError, ValueError: bad arguments.

    Warns:
        NumericalWarning: 256 steps, or what memory holds, leave the band wider than ``atol``.

    References:
        Chen, Trogdon, Ubaru (2021), "Analysis of stochastic Lanczos quadrature for spectrum approximation".

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0], dtype=torch.float64)))
        >>> density = hp.spectral_density(A, seed=0)
        >>> type(density).__name__, density.half_width()
        ('Density', 0.0)
    """
    if atol is not None and not (n_probes is None and steps is None):
        given = f"n_probes={n_probes!r} and steps={steps!r}"
        raise ValueError(
            about("atol", f"must be None where n_probes or steps are given; got {atol!r} with {given}. Choose one.")
        )
    confidence = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    A, size, enough = settled(A), n_probes, None
    if n_probes is None and steps is None:
        atol = HALF_WIDTH if atol is None else checks.real("atol", atol, low=0, high=1, low_open=True, high_open=True)
        size = chains_for(A.dim, atol, confidence)
        enough = resolves(atol, size, confidence, zero)
    sketch = spectral_sketch(
        A,
        n_probes=size,
        steps=steps,
        deflate=deflate,
        seed=seed,
        law=law,
        method=method,
        enough=enough,
        data_error=False,
        callback=callback,
    )
    density = density_of(sketch, grid=grid, width=width, zero=zero)
    if atol is not None and (reached := density.half_width(confidence)) > atol:
        warnings.warn(
            f"atol must be larger, or zero, for what {sketch.alphas.shape[1]} steps resolve; got {atol:g} outside "
            f"{density.zero:.3g}, where the band has the half-width {reached:.2g}. Raise zero= or atol=, or give more "
            "steps= and n_probes=.",
            NumericalWarning,
            stacklevel=2,
        )
        return replace(density, flags=("tolerance-missed",))
    return density


def chains_for(dim: int, atol: float, confidence: float) -> int:
    """Return the fewest probes on the sphere of ``dim`` dimensions that take at most 0.8 of the half-width ``atol``."""
    return math.ceil((uniform_half_width(1, dim, confidence) / (_PROBE_SHARE * atol)) ** 2)


def resolves(atol: float, n_probes: int, confidence: float, zero: float | None) -> Callable[[SpectralSketch], bool]:
    """Return what says of a sketch whether its steps leave ``n_probes`` probes a band of half-width ``atol``.

    It asks for bounds, which hold at every step, and not for where they lie: no choice that biases the band.

    Args:
        atol: half-width outside the near-zero bin.
        n_probes: that the sketch will have; those so far stand for all.
        confidence: of the band.
        zero: threshold of the bin, > 0; None for 1e-3 of the spectral radius.

    Raises:
        ValueError: ``zero`` is not positive.
    """
    threshold = None if zero is None else checks.real("zero", zero, low=0, low_open=True)

    def enough(sketch: SpectralSketch) -> bool:
        free = sketch.dim - len(sketch.theta)
        room = 2 * (atol - free / sketch.dim * uniform_half_width(n_probes, free, confidence))
        bin_end = NEAR_ZERO * max(map(abs, sketch.ritz_range())) if threshold is None else threshold
        # Weights of Ritz values cost next to nothing; what they say is verified between them.
        if not unresolved(sketch, bin_end) <= room:
            return False
        points = points_outside(sketch, bin_end)
        if not len(points):
            return True
        bounds = sharp_cdf_at_points(sketch, points)
        return float((bounds.high - bounds.low).max()) <= room

    return enough
