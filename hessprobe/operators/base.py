"""The interface of a symmetric matrix that is known by its products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hessprobe.vectors import row_dots

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


@dataclass(frozen=True)
class SampledTrace:
    """A trace estimated by other means than products with probes.

    Attributes:
        value: the estimate, unbiased.
        std_error: its standard error.
        df: degrees of freedom of ``std_error``.
        cost: in products.
    """

    value: float
    std_error: float
    df: float
    cost: float


class LinearOperator(ABC):
    """A symmetric matrix A of size d x d, known by its products with vectors.

    Subclasses set ``dim``, ``dtype``, ``device`` and define ``_matvecs``; everything else has a default. Probes are
    rows: ``matvecs`` maps (k, d) to (k, d).

    Attributes:
        dim: d >= 1.
        dtype, device: of the products.
        psd: True where A is known to be positive semidefinite (no eigenvalue below 0 beyond rounding).
        n_terms: number of pairs that ``terms`` yields.
        surrogate: a near operator whose diagonal is known exactly or cheaply (the Gauss-Newton matrix for the
            Hessian), or None. Its terms match those of this operator one to one, with the same weights.
        blocks: named contiguous slices of 0..d-1 (a network's parameter tensors), empty where there are none.
        cheap_forms: True where ``quadratic_forms`` costs clearly less than products do.
        is_exact: False where products carry more than rounding error (finite differences).
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    psd: bool = False
    n_terms: int = 1
    is_exact: bool = True
    cheap_forms: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, dtype={self.dtype}, device={self.device})"

    @abstractmethod
    def _matvecs(self, V: Tensor) -> Tensor:
        """Return A v for every row v of ``V`` (k, d), already checked."""

    @property
    def surrogate(self) -> LinearOperator | None:
        """See the class attributes."""
        return None

    @property
    def blocks(self) -> dict[str, slice]:
        """See the class attributes."""
        return {}

    def matvecs(self, V: Tensor) -> Tensor:
        """Return the products A v for every row v of ``V``.

        Args:
            V: (k, d), of the operator's dtype and device, k >= 0.

        Raises:
            TypeError: ``V`` is not a tensor of the operator's dtype.
            ValueError: wrong shape or device.
        """
        if not isinstance(V, Tensor) or V.dtype != self.dtype:
            got = V.dtype if isinstance(V, Tensor) else type(V).__name__
            raise TypeError(f"V must be a tensor of dtype {self.dtype}; got {got}. Convert it with V.to(A.dtype).")
        if V.ndim != 2 or V.shape[1] != self.dim:
            raise ValueError(
                f"V must have shape (k, {self.dim}), one vector a row; got {tuple(V.shape)}. "
                "Pass a single vector v as v[None, :]."
            )
        if V.device.type != self.device.type:
            raise ValueError(f"V must be on {self.device}; got {V.device}. Move it with V.to(A.device).")
        if V.shape[0] == 0:
            return V.clone()
        return self._matvecs(V)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v for every row of ``V`` (k, d), as fp64 (k,)."""
        return row_dots(V, self.matvecs(V))

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield ``(weight, operator)`` pairs whose weighted sum is A; by default A itself once."""
        yield 1.0, self

    def grouped(self, count: int) -> LinearOperator:
        """Return the same matrix as a sum over ``count`` groups of examples or somewhat more, for the data error.

        Products are made as before; ``terms`` yields the groups, whose products are made anew at every call and may be
        slower. The operator itself where it has as many terms, or where its terms cannot be cut.

        Args:
            count: groups >= 2.
        """
        return self

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the exact diagonal, fp64 (d,), and its cost in products, where it is cheap to know; else None."""
        return None

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return weights (G,) and exact traces (G,) of groups of examples, fp64, where they are known at no cost."""
        return None

    def exact_diagonal_cost(self) -> float:
        """Return what ``exact_diagonal`` is about to cost in products; inf where it is known to give nothing."""
        return 0.0

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return tr A from random directions elsewhere than in parameter space; None where there is no such way.

        Args:
            draws: indices of the random directions, at least two; estimates from disjoint ranges are independent of
                each other and of every stream of probes.
            seed: integer >= 0.
        """
        return None

    def dense(self) -> Tensor:
        """Return A as a (d, d) matrix, made of d products; for tests and small d only."""
        return self.matvecs(torch.eye(self.dim, dtype=self.dtype, device=self.device)).T.contiguous()

    def as_scipy(self) -> ScipyOperator:
        """Return the operator as a ``scipy.sparse.linalg.LinearOperator`` (products go through NumPy)."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def matmat(columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            rows = torch.as_tensor(np.ascontiguousarray(columns.T), dtype=self.dtype, device=self.device)
            return self.matvecs(rows).T.cpu().numpy()

        def matvec(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return matmat(vector.reshape(-1, 1))[:, 0]

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return ScipyOperator((self.dim, self.dim), matvec=matvec, matmat=matmat, rmatvec=matvec, dtype=dtype)
