"""Can a mean of these numbers, and the error of that mean, be trusted? Effective numbers of draws behind both."""

from __future__ import annotations

import torch
from torch import Tensor

# Below so many degrees of freedom an error is a matter of a few draws. Student intervals of third and fourth cumulants
# from 1000 draws covered 90 to 94 % at 8 and more (nominal 95 %), 76 % at 4.
FEW_DF = 5.0
# Where psi has one component it may be exp(-t), whose variance need not exist; then degrees of freedom are overrated:
# 64 % at 7, 81 % at 13, 93 % at 48.
FEW_DF_ONE = 10.0


def effective_size(weights: Tensor) -> float:
    """Return (sum_i w_i)^2 / sum_i w_i^2 of weights (n,) >= 0: n for equal ones, 1 where one carries all.

    References:
        Kish (1965), "Survey Sampling".
    """
    scaled = weights.double() / weights.double().max().clamp_min(torch.finfo(torch.float64).tiny)
    square = float(scaled.square().sum())
    return float(scaled.sum()) ** 2 / square if square > 0 else float(len(weights))


def spread_df(values: Tensor) -> float:
    """Return the degrees of freedom behind the sample variance of ``values`` (n,), n >= 2: at most n - 1.

    With the sample kurtosis k the variance of n numbers has relative variance (k - 1) / n, which is that of chi-square
    with 2 n / (k - 1) degrees of freedom. It is n for normal numbers, and stays near 2 however many are drawn where
    the law has no variance, as then one number carries the sum of squares.

    References:
        Satterthwaite (1946), "An approximate distribution of estimates of variance components"; Box (1953),
        "Non-normality and tests on variances".
    """
    n = len(values)
    deviations = values.double() - values.double().mean()
    size = deviations.abs().max()
    if not float(size) > 0:
        return n - 1.0
    squares = (deviations / size).square()
    excess = float(n * squares.square().sum() / squares.sum() ** 2) - 1.0
    return min(2 * n / excess, n - 1.0) if excess > 0 else n - 1.0
