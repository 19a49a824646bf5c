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
