"""The first terms of an operator that is a sum over data: an eighth of the products, for a start that is near."""

from __future__ import annotations

import torch
from torch import Tensor

from hessprobe.operators import LinearOperator

# Terms from which on a part of them is looked at first, and one over that share of them.
_PART = 8


class Leading(LinearOperator):
    """The mean of the first terms, by their weights.

    Args:
        A: the operator; what it counts for products of terms is counted.
        count: of its terms, 1 <= count <= n_terms.
    """

    def __init__(self, A: LinearOperator, count: int) -> None:
        self._A, self._count = A, count
        self.dim, self.dtype, self.device, self.psd = A.dim, A.dtype, A.device, A.psd
        self.is_exact = A.is_exact

    def _matvecs(self, V: Tensor) -> Tensor:
        total, weights = torch.zeros_like(V), 0.0
        for index, (weight, term) in enumerate(self._A.terms(), start=1):
            total.add_(term.matvecs(V), alpha=weight)
            weights += weight
            if index == self._count:
                break
        return total / weights if weights else total


def leading(A: LinearOperator) -> Leading | None:
    """Return an eighth of the terms; None where they are fewer than eight, or made by several ranks together."""
    return Leading(A, A.n_terms // _PART) if A.n_terms >= _PART and A.ranks is None else None
