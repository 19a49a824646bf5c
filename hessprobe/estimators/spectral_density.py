"""The spectral density of an operator, from a sketch made for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hessprobe.estimators import budget
from hessprobe.estimators.density import Density, density_of
from hessprobe.estimators.sweep import spectral_sketch


def spectral_density(
    A: Any,
    *,
    n_probes: int | None = None,
    steps: int | None = None,
    deflate: Any = None,
    seed: int | torch.Generator = 0,
    law: str = "sphere",
    method: str = "auto",
    grid: Tensor | int = 512,
    width: float | None = None,
    zero: float | None = None,
    callback: budget.Callback | None = None,
) -> Density:
    """Return the spectral density of A by Lanczos quadrature, with a band for its distribution function.

    What a chain leaves open of its own probe's distribution is a theorem; the level of the band, over the probes, is
    exact for one probe without deflation and an approximation for more, see ``estimators.distribution``. The smoothed
    density itself is a picture without an error.

    Args:
        A: symmetric operator, or what ``aslinearoperator`` takes.
        n_probes: number of chains; for large d two already give the mean, more are needed for the error bars.
        steps: Lanczos steps, on which the resolution rests.
        deflate: directions to treat exactly, see ``spectral_sketch``.
        seed: integer or generator.
        law: of the probes, see ``spectral_sketch``.
        method: ``"auto"``, ``"slq"`` or ``"exact"``, see ``spectral_sketch``.
        grid: see ``density_of``.
        width: see ``density_of``.
        zero: see ``density_of``.
        callback: see ``spectral_sketch``.

    Raises:
        TypeError, ValueError: bad arguments.

    References:
        Chen, Trogdon, Ubaru (2021), "Analysis of stochastic Lanczos quadrature for spectrum approximation".

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0], dtype=torch.float64)))
        >>> density = hp.spectral_density(A, seed=0)
        >>> type(density).__name__
        'Density'
    """
    sketch = spectral_sketch(
        A,
        n_probes=n_probes,
        steps=steps,
        deflate=deflate,
        seed=seed,
        law=law,
        method=method,
        callback=callback,
    )
    return density_of(sketch, grid=grid, width=width, zero=zero)
