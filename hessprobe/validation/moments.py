"""A Gauss rule from the moments of its measure."""

from __future__ import annotations

import torch
from torch import Tensor


def gauss_from_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the n nodes, ascending, and weights of the Gauss rule with moments mu_0, ..., mu_{2n-1}.

    With H_0 = (mu_{i+j}) = L L^T and H_1 = (mu_{i+j+1}), the Jacobi matrix is L^{-1} H_1 L^{-T}; a weight is mu_0
    times the squared first component of an eigenvector. Differentiable in the moments where the nodes differ. Errors
    of the moments grow exponentially with n.

    Args:
        moments: (2n,) fp64, of a measure with at least n points.

    Raises:
        torch.linalg.LinAlgError: the measure has fewer points, to rounding.

    References:
        Golub, Welsch (1969), "Calculation of Gauss quadrature rules".
    """
    n = len(moments) // 2
    index = torch.arange(n)
    where = index[:, None] + index
    factor = torch.linalg.cholesky(moments[where])
    half = torch.linalg.solve_triangular(factor, moments[where + 1], upper=False)
    jacobi = torch.linalg.solve_triangular(factor, half.T, upper=False)
    nodes, vectors = torch.linalg.eigh((jacobi + jacobi.T) / 2)
    return nodes, moments[0] * vectors[0] ** 2
