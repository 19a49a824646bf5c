"""The largest eigenvalue of every mini-batch, and how it is distributed over them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.measures.context import Context

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class PerBatch:
    """What was found of single batches; see ``per_batch``.

    Attributes:
        arrays: by name.
        sentence: on the distribution.
        matvecs: products, those of one batch counting as a share.
        seconds: wall-clock time.
    """

    arrays: dict[str, Tensor]
    sentence: str
    matvecs: float
    seconds: float


def per_batch(context: Context) -> PerBatch:
    """Return lambda_max(A_b) for every term A_b of A = sum_b w_b A_b, and how these are distributed.

    Steps on mini-batches meet the curvature of the batch: where E over batches is taken, E lambda_max(A_b) >=
    lambda_max(A), as the largest eigenvalue is convex (Jensen), the more so the smaller the batches.

    Args:
        context: whose operator has at least two terms.

    Returns:
        ``PerBatch`` with the arrays, fp64, in the order of the data: ``"batch_eigenvalues"`` (B,),
        ``"batch_eigenvalue_errors"`` (B,), the width of each bracket, ``"batch_weights"`` (B,), which sum to 1; and
        ``"batch_quantiles"`` (5,) at ``"batch_levels"`` (5,) of the values, each batch counting alike, by linear
        interpolation of order statistics.

    Raises:
        UnsupportedError: A is one batch.

    References:
        Jastrzebski et al. (2020), "The break-even point on optimization trajectories of deep neural networks".
    """
    A, began, spent = context.A, time.perf_counter(), 0.0
    if A.n_terms < 2:
        raise UnsupportedError("per_batch needs at least two batches; got one. Pass smaller ones (--batch-size).")
    values, errors, weights = [], [], []
    for weight, term in A.terms():
        pairs = context.bracketed(term, "largest")
        values.append(float(pairs.values[0]))
        errors.append(float(pairs.errors[0]))
        weights.append(weight)
        spent += pairs.matvecs / A.n_terms
    found, levels = torch.tensor(values, dtype=torch.float64), torch.tensor(LEVELS, dtype=torch.float64)
    quantiles = torch.quantile(found, levels)
    arrays = {
        "batch_eigenvalues": found,
        "batch_eigenvalue_errors": torch.tensor(errors, dtype=torch.float64),
        "batch_weights": torch.tensor(weights, dtype=torch.float64),
        "batch_levels": levels,
        "batch_quantiles": quantiles,
    }
    low, median, high = (float(quantiles[i]) for i in (0, 2, 4))
    mean, spread = float(found.mean()), float(found.std()) / math.sqrt(len(found))
    sentence = (
        f"largest eigenvalue of {len(found)} batches: median {median:.4g}, 5 % to 95 % {low:.4g} to {high:.4g}, "
        f"mean {mean:.4g} with standard error {spread:.2g}"
    )
    return PerBatch(arrays, sentence, spent, time.perf_counter() - began)
