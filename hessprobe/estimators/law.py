r"""The variance of quadratic forms by the law of their probes, from squared numbers that the products give.

The law of the probes gives the variance of w^T A w as 2 E h, where every product brings one number h >= 0 (see
``linear``): ||A w||^2 for Gaussian probes, ||A w - (w^T A w / d) w||^2 on the sphere, and for Rademacher probes the
squared norms of the n - 1 orthonormal contrasts between the rows w_i * (A w_i).
"""

from __future__ import annotations

import torch
from torch import Tensor


def contrasts(rows: Tensor) -> Tensor:
    """Return n - 1 orthonormal contrasts (n - 1, C) between rows (n, C) (Helmert), exactly 0 where all rows are equal.

    The j-th is sqrt(j / (j + 1)) times the distance of row j, counted from 0, from the mean of those before it. The
    squared norms add up to (n - 1) times the sum of the sample variances of the columns.
    """
    offset = rows[1:] - rows[:1]
    counts = torch.arange(1, len(rows), dtype=rows.dtype, device=rows.device)[:, None]
    before = (offset.cumsum(0) - offset) / counts
    return (offset - before) * (counts / (counts + 1)).sqrt()


def with_prior(variances: Tensor, count: int) -> Tensor:
    """Return variances of entries (d,), each from ``count`` samples, with one degree of freedom from their average.

    An entry with few couplings may show no spread in few probes without being exact. None is called exact unless all
    of them show none, and the average over entries stays as it is.
    """
    return ((count - 1) * variances + variances.mean()) / count
