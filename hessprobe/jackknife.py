"""The infinitesimal jackknife: the sampling error of a number that is a weighted sum over batches of data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def infinitesimal_jackknife(weights: Sequence[float] | Tensor, values: Sequence[float] | Tensor) -> float | None:
    """Return the standard error of sum_b w_b x_b, the B batches being a random sample of all batches.

    With the weighted mean m = (sum_b w_b x_b) / (sum_b w_b) the influence of batch b on the sum is w_b (x_b - m), and

        se^2 = B / (B - 1) * sum_b w_b^2 (x_b - m)^2.

    For equal weights 1/B this is the textbook s^2 / B. For weights n_b / N it is the linearised variance of a ratio
    of two sums, which allows for batches of different sizes. It serves every functional F of an operator
    A = sum_b w_b A_b to first order, with x_b the derivative of F along A_b: v^T A_b v for a simple eigenvalue with
    unit eigenvector v.

    Args:
        weights: (B,) finite; the share of each batch, summing to 1 for a mean over the data.
        values: (B,) finite; x_b.

    Returns:
        The standard error in the unit of ``values``, or None for fewer than two batches (or weights that sum to 0),
        where nothing can be said.

    Raises:
        ValueError: different lengths, or entries that are not finite.

    References:
        Efron (1982), "The Jackknife, the Bootstrap and Other Resampling Plans"; Cochran (1977), "Sampling Techniques",
        on ratio estimators.
    """
    w, x = _vector("weights", weights), _vector("values", values)
    if w.shape != x.shape:
        raise ValueError(
            f"values must be as many as weights; got {x.size} and {w.size}. Give one value for each batch."
        )
    total = float(w.sum())
    if w.size < 2 or total == 0.0:
        return None
    influence = w * (x - float(w @ x) / total)
    # Scaled before squaring, so that values near the smallest or largest floats neither vanish nor overflow.
    largest = float(np.abs(influence).max())
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(w.size / (w.size - 1) * float(np.square(influence / largest).sum()))


def _vector(name: str, given: Sequence[float] | Tensor) -> NDArray[Any]:
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    vector = np.asarray(values, dtype=np.float64).reshape(-1)
    if not bool(np.isfinite(vector).all()):
        raise ValueError(f"{name} must be finite; got nan or inf. Check the batch that produced it.")
    return vector
