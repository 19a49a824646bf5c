"""The largest eigenvalue as one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hessprobe.estimate import Estimate
from hessprobe.krylov.eigenpairs import Progress
from hessprobe.krylov.eigsh import eigsh


def lambda_max(
    A: Any,
    *,
    rtol: float = 0.01,
    seed: int | torch.Generator = 0,
    confidence: float = 0.995,
    max_matvecs: int | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> Estimate:
    """Return the largest eigenvalue of A in a bracket that holds it.

    The value is a Ritz value, which no theorem lets exceed lambda_max; the upper end holds with probability
    ``confidence`` over the random start. For eigenvectors and further eigenvalues see ``eigsh``, which does the work.

    Args:
        A: a ``LinearOperator`` (d, d), a symmetric matrix, or anything with ``shape`` and ``@``.
        rtol: relative width of the bracket, in (0, 1).
        seed: of the random start, a non-negative integer or a generator.
        confidence: probability that the bracket holds, in (0, 1).
        max_matvecs: most products, see ``eigsh``.
        callback: called with a ``Progress`` after each product.

    Raises:
        TypeError, ValueError: arguments outside their ranges.
        NonFiniteError: a product holds nan or inf.

    Warns:
        NumericalWarning: the bracket is wider than ``rtol`` asks.

    Examples:
        >>> import torch, hessprobe as hp
        >>> print(hp.lambda_max(torch.diag(torch.tensor([3.0, 1.0, -2.0]).double())))
        3 (exact, 4 products, lanczos)
    """
    options: dict[str, Any] = {"rtol": rtol, "seed": seed, "confidence": confidence, "max_matvecs": max_matvecs}
    return eigsh(A, 1, "largest", callback=callback, **options).estimate(0)
