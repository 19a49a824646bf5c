"""A symmetric matrix that is known by its products: the interface, its algebra, and its principal submatrices.

- as a matrix in memory, and as an operator of SciPy;
- what may stand beside an operator in ``A @ x`` and ``x @ A``: tensors, NumPy arrays, tensors like the parameters;
- a trace that was estimated without products with probes.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.operators.selection import select
from hessprobe.vectors import ParameterLayout, Sharing, row_dots

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


@dataclass(frozen=True)
class ExactTrace:
    """A trace known exactly by other means than the diagonal.

    Attributes:
        value: the trace.
        blocks: the part of every block of ``LinearOperator.blocks``.
        weights, traces: (G,) fp64, of groups of examples: value = sum_g weights[g] traces[g].
        cost: in products.
    """

    value: float
    blocks: dict[str, float]
    weights: Tensor
    traces: Tensor
    cost: float


X = TypeVar("X")


class LinearOperator(ABC):
    """A symmetric matrix A of size d x d, known by its products with vectors.

    It is used as a matrix of NumPy or SciPy is: ``A.shape``, ``A @ v`` for (d,), ``A @ V`` for columns (d, k),
    ``v @ A``, ``A + B``, ``A - B``, ``2 * A``, ``A / 2``, ``-A``, ``A.T``. A vector may also be a dict or a list of
    tensors shaped like the network's parameters; the product then comes in the same form. ``matvecs`` takes vectors
    as rows: (k, d) to (k, d). Products are detached: no gradient flows through them.

    Subclasses set ``dim``, ``dtype``, ``device`` and define ``_matvecs``; everything else has a default.

    Attributes:
        dim: d >= 1.
        dtype, device: of the products.
        psd: True where A is known to be positive semidefinite (no eigenvalue below 0 beyond rounding).
        n_terms: number of pairs that ``terms`` yields.
        surrogate: a near operator whose diagonal is known exactly or cheaply (the Gauss-Newton matrix for the
            Hessian), or None. Its terms match those of this operator one to one, with the same weights.
        blocks: named contiguous slices of 0..d-1 (a network's parameter tensors), empty where there are none.
        layout: names and shapes of the network's parameter tensors within 0..d-1, or None where there are none.
        cheap_forms: True where ``quadratic_forms`` costs clearly less than products do.
        is_exact: False where products carry more than rounding error (finite differences).
        ranks: who make its products together, so that each may hold its part of every vector of a basis; None where
            this process makes them alone.
        draws: independent random matrices whose mean this one is (Fisher matrices of drawn labels), each with the
            expectation that is meant; () where nothing was drawn at random. What is made of the operator keeps them.

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        >>> A.shape, A @ torch.tensor([1.0, 0.0])
        ((2, 2), tensor([2., 1.]))
        >>> (2 * A - A / 2).to_dense()
        tensor([[3.0000, 1.5000],
                [1.5000, 4.5000]])
        >>> A.quadratic(torch.tensor([1.0, 1.0]))
        tensor(7., dtype=torch.float64)
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    psd: bool = False
    n_terms: int = 1
    is_exact: bool = True
    cheap_forms: bool = False
    draws: tuple[LinearOperator, ...] = ()
    # NumPy leaves array @ A and number * A to the operator.
    __array_ufunc__ = None

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
    def ranks(self) -> Sharing | None:
        """See the class attributes."""
        return None

    @property
    def blocks(self) -> dict[str, slice]:
        """See the class attributes."""
        return {}

    @property
    def layout(self) -> ParameterLayout | None:
        """See the class attributes."""
        return None

    @property
    def shape(self) -> tuple[int, int]:
        """(d, d)."""
        return self.dim, self.dim

    @property
    def T(self) -> LinearOperator:
        """The operator itself: it is symmetric."""
        return self

    def matvecs(self, V: Tensor) -> Tensor:
        """Return the products A v for every row v of ``V``.

        Args:
            V: (k, d), of the operator's dtype and device, k >= 0.

        Raises:
            TypeError: ``V`` is not a tensor of the operator's dtype.
            ValueError: wrong shape or device.
        """
        require_rows(V, self.dim, self.dtype, self.device)
        return self._matvecs(V) if V.shape[0] else V.clone()

    def _operand(self, x: Any, columns: bool = True) -> Operand:
        return operand(x, self.dim, self.dtype, self.device, self.layout, columns=columns)

    def _beside(self, x: X, columns: bool) -> X:
        given = self._operand(x, columns)
        products: X = given.restore(self.matvecs(given.rows))
        return products

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

    def exact_trace(self) -> ExactTrace | None:
        """Return the exact trace where it is cheap to know without the diagonal; else None."""
        return None

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return tr A from random directions elsewhere than in parameter space; None where there is no such way.

        Args:
            draws: indices of the random directions, at least two; estimates from disjoint ranges are independent of
                each other and of every stream of probes.
            seed: integer >= 0.
        """
        return None

    def cost_of(self, work: str) -> float:
        """Return what a ``"product"``, a quadratic ``"form"`` or a ``"draw"`` of ``sampled_trace`` costs, for plans.

        In seconds, or any unit that this operator and its surrogate share: 1, 1 and 1/3 where nothing has been timed.
        """
        return 1 / 3 if work == "draw" else 1.0

    def __matmul__(self, x: X) -> X:
        """Return A x, in the form of ``x``: a tensor or array (d,) or (d, k), or tensors shaped like the parameters."""
        return self._beside(x, columns=True)

    def __rmatmul__(self, x: X) -> X:
        """Return x A, in the form of ``x``: a tensor or array (d,) or (k, d), or tensors shaped like the parameters."""
        return self._beside(x, columns=False)

    def __add__(self, other: Any) -> LinearOperator:
        return _sum(self, other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: Any) -> LinearOperator:
        return _sum(self, other, -1.0)

    def __rsub__(self, other: Any) -> LinearOperator:
        return _sum(-self, other, 1.0)

    def __mul__(self, factor: Any) -> LinearOperator:
        number = factor_of(factor)
        return Combination([part for part, _ in _parts(self)], [c * number for _, c in _parts(self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> LinearOperator:
        number = factor_of(divisor)
        if number == 0:
            raise ValueError("divisor must not be 0; got 0. Divide by another number.")
        return self * (1 / number)

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def quadratic(self, x: Any) -> Tensor:
        """Return x^T A x in fp64: a scalar of one vector, (k,) of the columns of a matrix (d, k).

        Args:
            x: as in ``A @ x``. Vectors as rows go to ``quadratic_forms``.

        Raises:
            TypeError, ValueError: as ``A @ x``.
        """
        given = self._operand(x)
        require_rows(given.rows, self.dim, self.dtype, self.device)
        forms = self.quadratic_forms(given.rows).double()
        return forms[0] if given.single else forms

    def block(self, where: str | slice | Sequence[str | slice]) -> Block:
        """Return a principal submatrix: rows and columns of some of the network's parameters.

        Args:
            where: a pattern of names in ``blocks`` (``"layer1.*"``, ``"*.weight"``, case-sensitive), a contiguous
                slice, or several of them. The submatrix keeps the order of A.

        Raises:
            ValueError: a pattern that fits no name, or slices that are empty or overlap.
        """
        return Block(self, where)

    def diagonal(self, **options: Any) -> Any:
        """Return the diagonal with its error, as ``hessprobe.diagonal(A, **options)`` does."""
        # Operators lie below the estimators and import none of them.
        return import_module("hessprobe.estimators").diagonal(self, **options)

    def to_dense(self, *, max_dim: int = 20_000) -> Tensor:
        """Return A as a (d, d) tensor, made of d products.

        Args:
            max_dim: largest d to do this for, >= 1.

        Raises:
            ValueError: d exceeds ``max_dim``; the message says what the matrix would take.
        """
        return dense_matrix(self.matvecs, self.dim, self.dtype, self.device, max_dim)

    def to_scipy(self) -> ScipyOperator:
        """Return the operator as a ``scipy.sparse.linalg.LinearOperator`` (products go through NumPy)."""
        return scipy_operator(self.matvecs, self.dim, self.dtype, self.device)


class Wrapper(LinearOperator):
    """An operator whose products are made of those of another one, ``_inner``: by its engine, and by its ranks."""

    _inner: LinearOperator

    @property
    def is_exact(self) -> bool:  # type: ignore[override]  # known once the engine is
        """That of the inner operator."""
        return self._inner.is_exact

    @property
    def ranks(self) -> Sharing | None:
        """Those of the inner operator."""
        return self._inner.ranks


class Combination(LinearOperator):
    """sum_i c_i A_i, what ``A + B`` and ``2 * A`` make.

    When all A_i are sums over the same terms (the Hessian and the Gauss-Newton matrix of one risk), so is the result.
    It is known to be positive semidefinite where every A_i is that has a part in it, with c_i > 0. Its surrogate is
    the same combination of theirs; an A_i without one stands for itself.

    Args:
        operators: at least one, all of the same dimension, dtype and device.
        coefficients: one finite number an operator.

    Raises:
        ValueError: different sizes, dtypes or devices, or not one coefficient an operator.
    """

    def __init__(self, operators: Sequence[LinearOperator], coefficients: Sequence[float]) -> None:
        if not operators or len(operators) != len(coefficients):
            raise ValueError(
                f"operators must be as many as coefficients and at least one; got {len(operators)} and "
                f"{len(coefficients)}. Give one coefficient for each operator."
            )
        first = operators[0]
        for other in operators[1:]:
            if (other.dim, other.dtype, other.device) != (first.dim, first.dtype, first.device):
                raise ValueError(
                    f"operators must share dimension, dtype and device; got ({first.dim}, {first.dtype}, "
                    f"{first.device}) and ({other.dim}, {other.dtype}, {other.device}). Make them from the same risk."
                )
        self._operators = tuple(operators)
        self._coefficients = tuple(checks.real("coefficient", c) for c in coefficients)
        self.dim, self.dtype, self.device = first.dim, first.dtype, first.device
        self.psd = all(c == 0 or (A.psd and c > 0) for A, c in self.parts)
        self.cheap_forms = all(A.cheap_forms for A in operators)
        self.n_terms = first.n_terms if all(A.n_terms == first.n_terms for A in operators) else 1
        drawn = min((len(A.draws) for A in operators if A.draws), default=0)
        self.draws = tuple(
            Combination([A.draws[i] if A.draws else A for A in operators], coefficients) for i in range(drawn)
        )

    @property
    def parts(self) -> list[tuple[LinearOperator, float]]:
        """The pairs (A_i, c_i)."""
        return list(zip(self._operators, self._coefficients, strict=True))

    @property
    def is_exact(self) -> bool:  # type: ignore[override]  # known once the engines are
        """True where every operator is."""
        return all(A.is_exact for A in self._operators)

    @property
    def ranks(self) -> Sharing | None:
        """Those of the first operator: all of them are made by all ranks alike."""
        return self._operators[0].ranks

    @property
    def surrogate(self) -> LinearOperator | None:
        """The combination of the surrogates; None where no operator has one."""
        twins = [A.surrogate for A in self._operators]
        if all(twin is None for twin in twins):
            return None
        return Combination(
            [A if t is None else t for A, t in zip(self._operators, twins, strict=True)], self._coefficients
        )

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the first operator that has any."""
        return next((A.blocks for A in self._operators if A.blocks), {})

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the first operator that has one."""
        return next((A.layout for A in self._operators if A.layout), None)

    def _matvecs(self, V: Tensor) -> Tensor:
        total = torch.zeros_like(V)
        for A, coefficient in self.parts:
            total.add_(A.matvecs(V), alpha=coefficient)
        return total

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v a row, through each operator's own quadratic forms (cheaper than products for some)."""
        total = torch.zeros(V.shape[0], dtype=torch.float64, device=V.device)
        for A, coefficient in self.parts:
            total.add_(A.quadratic_forms(V), alpha=coefficient)
        return total

    def grouped(self, count: int) -> LinearOperator:
        """Return the same combination of the operators by groups, where all of them have the same ones."""
        operators = [A.grouped(count) for A in self._operators]
        if any(A.n_terms != operators[0].n_terms or A.n_terms == 1 for A in operators):
            return self
        same = all(A is B for A, B in zip(operators, self._operators, strict=True))
        return self if same else Combination(operators, self._coefficients)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield combined terms where all operators have the same ones, else the operator itself."""
        if self.n_terms == 1:
            yield 1.0, self
            return
        for pairs in zip(*(A.terms() for A in self._operators), strict=True):
            weights = [weight for weight, _ in pairs]
            scaled = [c * w / weights[0] for c, w in zip(self._coefficients, weights, strict=True)]
            yield weights[0], Combination([term for _, term in pairs], scaled)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return the combined diagonal where every one is known, at the cost of all."""
        total, cost = torch.zeros(self.dim, dtype=torch.float64, device=self.device), 0.0
        for A, coefficient in self.parts:
            known = A.exact_diagonal()
            if known is None:
                return None
            total.add_(known[0], alpha=coefficient)
            cost += known[1]
        return total, cost

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return the combined traces where every operator knows those of the same groups."""
        known = [each for A in self._operators if (each := A.group_traces()) is not None]
        if len(known) < len(self._operators) or not all(torch.equal(weights, known[0][0]) for weights, _ in known):
            return None
        traces = [c * own for (_, own), c in zip(known, self._coefficients, strict=True)]
        return known[0][0], torch.stack(traces).sum(0)

    def exact_diagonal_cost(self) -> float:
        """Return the cost of all diagonals."""
        return sum(A.exact_diagonal_cost() for A in self._operators)

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return that of a single operator, scaled; the errors of several from the same draws are not independent."""
        found = self._operators[0].sampled_trace(draws, seed) if len(self._operators) == 1 else None
        if found is None:
            return None
        c = self._coefficients[0]
        return replace(found, value=c * found.value, std_error=abs(c) * found.std_error)


class Block(Wrapper):
    """The principal submatrix A[s, s]: one layer's curvature, or that of several; see ``LinearOperator.block``."""

    def __init__(self, inner: LinearOperator, where: str | slice | Sequence[str | slice]) -> None:
        self._inner, self._selection = inner, select(where, inner.blocks, inner.dim)
        self.dim = self._selection.size
        self.dtype, self.device = inner.dtype, inner.device
        self.psd, self.n_terms = inner.psd, inner.n_terms
        self.draws = tuple(Block(drawn, self._selection.slices) for drawn in inner.draws)

    @property
    def surrogate(self) -> LinearOperator | None:
        """The same block of the inner surrogate."""
        surrogate = self._inner.surrogate
        return None if surrogate is None else Block(surrogate, self._selection.slices)

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the inner operator that lie within, where they are now."""
        return self._selection.inside(self._inner.blocks)

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the parameter tensors within, where the block is made of whole ones; else None."""
        whole = self._inner.layout
        kept = None if whole is None else whole.of_names(self.blocks)
        return kept if kept is not None and kept.dim == self.dim else None

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._selection.take(self._inner.matvecs(self._selection.place(V)))

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A[s, s] v a row, through the inner forms."""
        return self._inner.quadratic_forms(self._selection.place(V))

    def grouped(self, count: int) -> LinearOperator:
        """Return the inner operator by groups, the same block."""
        inner = self._inner.grouped(count)
        return self if inner is self._inner else Block(inner, self._selection.slices)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield the same block of every inner term."""
        for weight, term in self._inner.terms():
            yield weight, Block(term, self._selection.slices)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return that part of the inner diagonal."""
        known = self._inner.exact_diagonal()
        return None if known is None else (self._selection.take(known[0]), known[1])

    def exact_diagonal_cost(self) -> float:
        """Return that of the inner diagonal."""
        return self._inner.exact_diagonal_cost()


def _parts(A: LinearOperator) -> list[tuple[LinearOperator, float]]:
    return A.parts if isinstance(A, Combination) else [(A, 1.0)]


def _sum(A: LinearOperator, B: Any, sign: float) -> LinearOperator:
    if not isinstance(B, LinearOperator):
        raise TypeError(
            f"+ and - must join two operators; got {type(B).__name__}. Wrap a matrix with aslinearoperator; A + s I is "
            "operators.Shifted(A, s)."
        )
    gathered = _parts(A)
    for other, coefficient in _parts(B):
        for i, (one, own) in enumerate(gathered):
            if one is other:
                gathered[i] = one, own + sign * coefficient
                break
        else:
            gathered.append((other, sign * coefficient))
    return Combination([one for one, _ in gathered], [c for _, c in gathered])
