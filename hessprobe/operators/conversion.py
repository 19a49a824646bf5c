"""An operator as a matrix in memory, and as an operator of SciPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

# Rows of a dense matrix that are made at a time.
_ROWS = 256

Matvecs = Callable[[Tensor], Tensor]


def dense_matrix(matvecs: Matvecs, dim: int, dtype: torch.dtype, device: torch.device, max_dim: int) -> Tensor:
    """Return the (d, d) matrix of products with unit vectors; see ``LinearOperator.to_dense``."""
    if dim > checks.positive_int("max_dim", max_dim):
        size = dim**2 * torch.finfo(dtype).bits / 2**33
        raise ValueError(
            f"dimension must be at most max_dim = {max_dim:,} for a dense matrix; got {dim:,}, which takes {dim:,} "
            f"products and {size:,.3g} GiB. Raise max_dim, or use estimators, which need few products."
        )
    dense = torch.empty(dim, dim, dtype=dtype, device=device)
    for start in range(0, dim, _ROWS):
        rows = dense[start : start + _ROWS]
        units = torch.zeros_like(rows)
        units[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = 1
        rows.copy_(matvecs(units))
    return dense


def scipy_operator(matvecs: Matvecs, dim: int, dtype: torch.dtype, device: torch.device) -> ScipyOperator:
    """Return the operator as one of ``scipy.sparse.linalg``, whose vectors are columns."""
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    def matmat(columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rows = torch.as_tensor(np.ascontiguousarray(columns.T), dtype=dtype, device=device)
        return matvecs(rows).T.cpu().numpy()

    def matvec(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return matmat(vector.reshape(-1, 1))[:, 0]

    kind = torch.empty(0, dtype=dtype).numpy().dtype
    ways = {"matvec": matvec, "matmat": matmat, "rmatvec": matvec, "rmatmat": matmat}
    return ScipyOperator((dim, dim), dtype=kind, **ways)
