"""An operator as a matrix in memory, and as an operator of SciPy.

What may stand beside an operator in ``A @ x`` and ``x @ A``: tensors, NumPy arrays, tensors like the parameters.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.vectors import ParameterLayout

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


class Operand(NamedTuple):
    """Vectors as rows, and the way back.

    Attributes:
        rows: (k, d).
        restore: from products as rows (k, d) to the form in which the vectors were given.
        single: True for one vector, False for a matrix of them.
    """

    rows: Tensor
    restore: Callable[[Tensor], Any]
    single: bool


def operand(
    x: Any, dim: int, dtype: torch.dtype, device: torch.device, layout: ParameterLayout | None, *, columns: bool = True
) -> Operand:
    """Return the vectors that ``x`` holds.

    Args:
        x: a tensor or NumPy array (d,), or a matrix of vectors: (d, k) if ``columns``, else (k, d); or one vector as
            a mapping from parameter names to tensors, or as a list or tuple of tensors in the parameters' order.
        dim: d.
        dtype: of the operator. An array is converted, a tensor is not.
        device: likewise.
        layout: of the parameters, None where the operator has none.
        columns: how a matrix holds its vectors.

    Raises:
        TypeError: none of these, or named tensors for an operator without parameters.
        ValueError: another shape.
    """
    if isinstance(x, np.ndarray):
        # A copy: NumPy arrays may be read-only, and products may be views of what they multiply.
        taken = operand(torch.tensor(x, dtype=dtype, device=device), dim, dtype, device, layout, columns=columns)
        return taken._replace(restore=lambda products: taken.restore(products).cpu().numpy())
    if isinstance(x, Mapping | list | tuple):
        if layout is None:
            raise TypeError(
                f"x must be a tensor ({dim},) for an operator that is not over a network's parameters; got "
                f"{type(x).__name__}. Join the parts into one vector."
            )
        return Operand(layout.flatten(x)[None], lambda products: layout.unflatten(products[0], like=x), True)
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x must be a vector or a matrix of vectors beside @; got {type(x).__name__}. Pass a tensor, an array, or "
            "tensors shaped like the parameters; a product of two operators is not symmetric."
        )
    if x.shape == (dim,):
        return Operand(x[None], lambda products: products[0], True)
    if x.ndim == 2 and x.shape[0 if columns else 1] == dim:
        if columns:
            return Operand(x.T.contiguous(), lambda products: products.T, False)
        return Operand(x, lambda products: products, False)
    wanted = f"({dim}, k), one vector a column" if columns else f"(k, {dim}), one vector a row"
    hint = "Vectors as rows go to A.matvecs." if columns else "Vectors as columns go after @."
    raise ValueError(f"x must have shape ({dim},) or {wanted}; got {tuple(x.shape)}. {hint}")


def require_rows(V: Tensor, dim: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse what is not a matrix (k, d) of vectors as rows.

    Raises:
        TypeError: not a tensor of the operator's dtype.
        ValueError: another shape or device.
    """
    if not isinstance(V, Tensor) or V.dtype != dtype:
        got = V.dtype if isinstance(V, Tensor) else type(V).__name__
        raise TypeError(f"V must be a tensor of dtype {dtype}; got {got}. Convert it with V.to(A.dtype).")
    if V.ndim != 2 or V.shape[1] != dim:
        raise ValueError(
            f"V must have shape (k, {dim}), one vector a row; got {tuple(V.shape)}. "
            "Pass a single vector v as v[None, :]."
        )
    if V.device.type != device.type:
        raise ValueError(f"V must be on {device}; got {V.device}. Move it with V.to(A.device).")


def factor_of(value: Any) -> float:
    """Return the number that an operator is to be multiplied by: a real one, or a tensor or array that holds one.

    Raises:
        TypeError: something else.
        ValueError: nan or infinite.
    """
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise TypeError(f"factor must be a number; got {type(value).__name__}. Products with vectors are A @ v.")
    return checks.real("factor", value)
