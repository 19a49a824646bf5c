"""Counting products where they happen.

Operators made from something that already multiplies: a matrix, or a foreign operator with ``shape`` and ``@``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError, about
from hessprobe.operators.base import ExactTrace, LinearOperator, SampledTrace, Wrapper
from hessprobe.vectors import ParameterLayout, Sharing

# Asymmetry of a foreign operator that its rounding, or that of differences of gradients, explains.
_ASYMMETRY = {torch.float64: 1e-4, torch.float32: 3e-2}

# Dtypes of NumPy whose products torch holds as they are; others become float64.
_TORCH = {np.dtype(np.float64): torch.float64, np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16}


class DenseOperator(LinearOperator):
    """A symmetric matrix held in memory.

    Args:
        matrix: (d, d), symmetric to rounding, floating point.
        psd: claim that it is positive semidefinite.
        blocks: named slices of its rows.
        layout: names and shapes of the parameters that its entries are, in their order, in place of ``blocks``.

    Raises:
        ValueError: not square, not symmetric, or with nan or infinite entries.
    """

    def __init__(
        self,
        matrix: Tensor,
        *,
        psd: bool = False,
        blocks: dict[str, slice] | None = None,
        layout: ParameterLayout | None = None,
    ) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
            raise ValueError(f"matrix must be square and not empty; got shape {tuple(matrix.shape)}. Pass (d, d).")
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("matrix must be finite; got nan or inf. Check how it was made.")
        scale = float(matrix.abs().max())
        asymmetry = float((matrix - matrix.T).abs().max())
        if asymmetry > 100 * torch.finfo(matrix.dtype).eps * scale:
            raise ValueError(f"matrix must be symmetric; got |A - A^T| up to {asymmetry:g}. Use (A + A.T) / 2.")
        self.matrix = matrix
        self.dim, self.dtype, self.device = matrix.shape[0], matrix.dtype, matrix.device
        self.psd = psd
        self._layout = _fitting(layout, self.dim)
        self._blocks = dict((layout.slices if layout is not None else blocks) or {})

    @property
    def blocks(self) -> dict[str, slice]:
        """Named slices given at construction, or the parameter tensors of the layout."""
        return self._blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """The layout given at construction."""
        return self._layout

    def _matvecs(self, V: Tensor) -> Tensor:
        return V @ self.matrix

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the diagonal at no cost."""
        return self.matrix.diagonal().double(), 0.0


class WrappedOperator(LinearOperator):
    """A foreign symmetric operator with ``shape`` and ``@`` (SciPy, curvlinops, NumPy, torch), columns as vectors.

    Its products are taken to be as exact as its own ``dtype`` allows. The first two vectors are used to check the
    symmetry u . (A v) = v . (A u), which costs no further product.

    Args:
        operator: square, symmetric; ``operator @ X`` takes (d, k) and returns (d, k), as tensor or NumPy array: as a
            tensor where its ``dtype`` is torch's. One that names no dtype is tried once, on zeros.
        dtype, device: of the products to hand out; by default those of ``operator``, else float64 on the CPU.
        psd: claim that it is positive semidefinite.
        layout: names and shapes of the parameters that its entries are, in their order.

    Raises:
        TypeError: no ``shape`` or no ``@``, complex, or a product with neither arrays nor tensors.
        ValueError: not square; (at the second vector) not symmetric.
    """

    def __init__(
        self,
        operator: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        psd: bool = False,
        layout: ParameterLayout | None = None,
    ) -> None:
        if not (hasattr(operator, "shape") and hasattr(operator, "__matmul__")):
            raise TypeError(
                about("operator", f"must have shape and @; got {type(operator).__name__}. {_mend(operator)}")
            )
        shape = tuple(operator.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(
                about("operator", f"must be square; got shape {shape}. Only symmetric matrices have a spectrum here.")
            )
        own = getattr(operator, "device", None)
        self._operator = operator
        self.dim, self.psd = int(shape[0]), psd
        self._layout = _fitting(layout, self.dim)
        self.device = torch.device(device or (own if isinstance(own, torch.device | str) else "cpu"))
        self.dtype, self._takes_tensors = _manner(operator, self.dim, dtype, self.device)
        self._first: tuple[Tensor, Tensor] | None = None
        self._symmetric = False

    @property
    def blocks(self) -> dict[str, slice]:
        """The parameter tensors of the layout given at construction."""
        return {} if self._layout is None else self._layout.slices

    @property
    def layout(self) -> ParameterLayout | None:
        """The layout given at construction."""
        return self._layout

    def _matvecs(self, V: Tensor) -> Tensor:
        product = _columns(self._operator, V, self._takes_tensors)
        result = torch.as_tensor(product, dtype=self.dtype, device=self.device).T.contiguous()
        if not self._symmetric:
            self._check_symmetry(V, result)
        return result

    def _check_symmetry(self, V: Tensor, products: Tensor) -> None:
        for v, Av in zip(V[:2].double(), products[:2].double(), strict=True):
            if self._first is None or not bool(self._first[0].any()):
                self._first = v.clone(), Av.clone()
                continue
            u, Au = self._first
            gap = abs(float(u @ Av) - float(v @ Au))
            # Rounding of relative size e makes u . (A v) uncertain by about e ||u|| ||A v|| / sqrt(d).
            scale = (float(u.norm() * Av.norm()) + float(v.norm() * Au.norm())) / self.dim**0.5
            if gap > _ASYMMETRY.get(self.dtype, 0.5) * scale:
                raise ValueError(
                    about(
                        "operator",
                        f"must be symmetric; got u.(Av) = {float(u @ Av):.6g} and v.(Au) = {float(v @ Au):.6g}. "
                        "Use (A + A.T) / 2.",
                    )
                )
            self._first, self._symmetric = None, True
            return


def _columns(operator: Any, V: Tensor, as_tensors: bool) -> Any:
    return operator @ (V.T if as_tensors else np.ascontiguousarray(V.T.cpu().numpy()))


def _manner(operator: Any, dim: int, dtype: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, bool]:
    """Return the dtype of a foreign operator's products and whether it multiplies tensors (else NumPy arrays)."""
    own = getattr(operator, "dtype", None)
    if isinstance(own, torch.dtype):
        if not own.is_floating_point:
            own = _real(own.is_complex, own)
        return dtype or own, True
    if own is not None:
        kind = np.dtype(own)
        known = _TORCH.get(kind) or _real(kind.kind == "c", kind)
        return dtype or known, False
    reason: Exception | None = None
    for trial in (dtype,) if dtype else (torch.float64, torch.float32):
        for as_tensors in (True,) if _multiplies_tensors(operator) else (False, True):
            try:
                torch.as_tensor(_columns(operator, torch.zeros(1, dim, dtype=trial, device=device), as_tensors))
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = error
            else:
                return trial, as_tensors
    raise TypeError(
        about(
            "operator",
            f"must multiply arrays or tensors of shape (d, k); got {type(operator).__name__}, which fails on "
            f"zeros: {(str(reason).strip().splitlines() or [type(reason).__name__])[0]}. Give it a dtype and a device.",
        )
    ) from reason


def _multiplies_tensors(operator: Any) -> bool:
    return any(kind.__module__.split(".")[0] in ("torch", "curvlinops") for kind in type(operator).__mro__)


def _real(is_complex: bool, dtype: object) -> torch.dtype:
    if is_complex:
        raise TypeError(
            about("operator", f"must be real; got dtype {dtype}. Only real symmetric matrices are measured here.")
        )
    return torch.float64


def _mend(value: Any) -> str:
    # A risk and a model are what users hold; the rooms where they live are not to be imported here.
    if isinstance(value, torch.nn.Module):
        return "Pass Hessian(EmpiricalRisk(model, loss, data)) in its place."
    if hasattr(value, "theta") and hasattr(value, "terms"):
        return "Pass Hessian(risk), or GaussNewton(risk), in its place."
    return "Wrap it in a class that has."


def settled(A: Any) -> LinearOperator:
    """Return ``aslinearoperator(A)`` for a number that is no sum over what was drawn at random to make ``A``.

    Raises:
        UnsupportedError: A is a random matrix: the number is biased, and no interval of it holds what others would
            give.
        TypeError, ValueError: see ``aslinearoperator``.
    """
    operator = aslinearoperator(A)
    if operator.draws:
        raise UnsupportedError(
            "This number of a matrix made of drawn labels would be that of these labels alone, biased, and without "
            "the error that other labels show. Use Fisher(risk), which is exact and costs the same; a trace can be "
            "taken of Fisher(risk, kind='mc', n_draws=8)."
        )
    return operator


def _fitting(layout: ParameterLayout | None, dim: int) -> ParameterLayout | None:
    if layout is not None and not isinstance(layout, ParameterLayout):
        raise TypeError(about("layout", f"must be a ParameterLayout; got {type(layout).__name__}. Pass risk.layout."))
    if layout is not None and layout.dim != dim:
        raise ValueError(
            about(
                "layout", f"must have {dim} entries, as the operator has; got {layout.dim}. Use that of its parameters."
            )
        )
    return layout


def aslinearoperator(A: Any, *, psd: bool = False, layout: ParameterLayout | None = None) -> LinearOperator:
    """Return ``A`` as a ``LinearOperator``: itself, a dense matrix held, or a foreign operator wrapped.

    Args:
        A: a ``LinearOperator``, a symmetric (d, d) tensor or NumPy array, or anything with ``shape`` and ``@``, such as
            SciPy's and curvlinops' (``KFACLinearOperator``, ``EKFACLinearOperator``, ...).
        psd: claim that it is positive semidefinite, as those two are. A ``LinearOperator`` knows it itself.
        layout: names and shapes of the parameters that its entries are, ``risk.layout``: for ``block``, and for vectors
            as dicts.

    Raises:
        TypeError, ValueError: complex entries, or none that are numbers; a claim about what is a ``LinearOperator``
            already; or see ``DenseOperator`` and ``WrappedOperator``.

    Examples:
        >>> import numpy as np, hessprobe as hp
        >>> A = hp.aslinearoperator(np.diag([3.0, 2.0, 1.0]))
        >>> A.shape, A @ np.array([1.0, 1.0, 0.0])
        ((3, 3), array([3., 2., 0.]))
    """
    if isinstance(A, LinearOperator):
        if psd or layout is not None:
            raise TypeError(
                about("A", f"must be no operator of hessprobe for psd= or layout=; got {type(A).__name__}.")
            )
        return A
    if isinstance(A, np.ndarray):
        if A.dtype.kind not in "biufc":
            raise TypeError(about("A", f"must hold numbers; got dtype {A.dtype}. Pass A.astype(float)."))
        _real(A.dtype.kind == "c", A.dtype)
        A = torch.from_numpy(np.ascontiguousarray(A if A.dtype in _TORCH else A.astype(np.float64)))
    if isinstance(A, Tensor):
        _real(A.is_complex(), A.dtype)
        return DenseOperator(A if A.is_floating_point() else A.double(), psd=psd, layout=layout)
    return WrappedOperator(A, psd=psd, layout=layout)


@dataclass
class Tally:
    """A running number of products; ``products`` may be fractional after passes over part of the terms."""

    products: float = 0.0


@dataclass
class Counted(LinearOperator):
    """An operator that counts: one for each vector multiplied by all of A, 1/n_terms for each by one term.

    Products with the surrogate and the cost of its exact diagonal go to the same tally.

    Attributes:
        inner: the operator that does the work.
        tally: where products are counted; shared with everything derived from this operator.
        share: what one product counts.
    """

    inner: LinearOperator
    tally: Tally = field(default_factory=Tally)
    share: float = 1.0

    def __post_init__(self) -> None:
        self.dim, self.dtype, self.device = self.inner.dim, self.inner.dtype, self.inner.device
        self.psd, self.n_terms, self.is_exact = self.inner.psd, self.inner.n_terms, self.inner.is_exact
        self.cheap_forms = self.inner.cheap_forms

    @property
    def matvec_count(self) -> float:
        """Products so far."""
        return self.tally.products

    @property
    def ranks(self) -> Sharing | None:
        """Those of the inner operator."""
        return self.inner.ranks

    @property
    def surrogate(self) -> LinearOperator | None:
        """The inner surrogate, counted in the same tally."""
        surrogate = self.inner.surrogate
        return None if surrogate is None else Counted(surrogate, self.tally, self.share)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator."""
        return self.inner.blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the inner operator."""
        return self.inner.layout

    def _matvecs(self, V: Tensor) -> Tensor:
        self.tally.products += self.share * V.shape[0]
        return self.inner.matvecs(V)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v a row; each counts as one product."""
        self.tally.products += self.share * V.shape[0]
        return self.inner.quadratic_forms(V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the inner terms, counted in the same tally."""
        for weight, term in self.inner.terms():
            counted = Counted(term, self.tally, self.share / self.n_terms)
            # Whoever asks lets go of it before the next one is made.
            del term
            yield weight, counted
            del counted

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, counted in the same tally."""
        inner = self.inner.grouped(count)
        return self if inner is self.inner else Counted(inner, self.tally, self.share)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the inner exact diagonal; its cost goes to the tally."""
        known = self.inner.exact_diagonal()
        if known is not None:
            self.tally.products += known[1] * self.share
        return known

    def exact_trace(self) -> ExactTrace | None:
        """Return the inner exact trace; its cost goes to the tally."""
        known = self.inner.exact_trace()
        if known is not None:
            self.tally.products += known.cost * self.share
        return known

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return those of the inner operator."""
        return self.inner.group_traces()

    def exact_diagonal_cost(self) -> float:
        """Return the inner cost, in the products counted here."""
        return self.inner.exact_diagonal_cost() * self.share

    def cost_of(self, work: str) -> float:
        """Return that of the inner operator."""
        return self.inner.cost_of(work)

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return the inner estimate; its cost goes to the tally."""
        found = self.inner.sampled_trace(draws, seed)
        if found is not None:
            self.tally.products += found.cost * self.share
        return found


class SomeTerms(Wrapper):
    """The mean of some terms of a sum, by their weights: a look at the whole for a part of its cost.

    Args:
        A: the operator; what it counts for products of terms is counted.
        chosen: indices of the terms, rising, at least one, all below n_terms.
    """

    def __init__(self, A: LinearOperator, chosen: range) -> None:
        self._inner, self._chosen = A, chosen
        self.dim, self.dtype, self.device, self.psd = A.dim, A.dtype, A.device, A.psd

    def _matvecs(self, V: Tensor) -> Tensor:
        total, weights = torch.zeros_like(V), 0.0
        for index, (weight, term) in enumerate(self._inner.terms()):
            if index in self._chosen:
                total.add_(term.matvecs(V), alpha=weight)
                weights += weight
            if index == self._chosen[-1]:
                break
        return total / weights if weights else total
