"""The Hessian of an objective as an operator.

One product with the Hessian, for vectors in any form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeVar

from torch import Tensor

from hessprobe.hvp.auto import EXPECTED_MATVECS, UNSUPPORTED, is_final
from hessprobe.hvp.batch_products import BatchProducts
from hessprobe.hvp.engines import DoubleBackward, Engine, ForwardOverReverse
from hessprobe.hvp.gauss_newton import GaussNewton
from hessprobe.hvp.linearized import Linearized
from hessprobe.hvp.pool import MemoryBudget, holding
from hessprobe.hvp.verification import COMPARED, ProductError, compare
from hessprobe.objective.activations import ActivationRisk
from hessprobe.objective.base import Objective, require_objective
from hessprobe.operators.base import ExactTrace, LinearOperator
from hessprobe.vectors import ParameterLayout, Sharing


def _differences(factor: float = 1.0) -> Engine:
    # Few measurements need it.
    made: Engine = import_module("hessprobe.hvp.differences").FiniteDifference(factor)
    return made


ENGINES: dict[str, Callable[[], Engine]] = {
    "linearized": Linearized,
    "double_backward": DoubleBackward,
    "forward_over_reverse": ForwardOverReverse,
    "finite_difference": _differences,
}


_FINITE = "finite_difference"
# What the products of the surrogate are called beside one's own.
_NEAR = {GaussNewton.name: "surrogate", "forms": "surrogate forms"}


class Hessian(LinearOperator):
    """H = sum_b w_b H_b, H_b the Hessian of the mean loss of batch b at ``risk.theta``.

    Args:
        risk: the objective.
        engine: ``"auto"``, or a name in ``ENGINES``. ``"auto"`` begins with double backward, which needs no
            preparation; once what other engines may save of the products still to come is worth a recording and a race
            on the first batch, in predicted seconds, it goes on with the fastest, if that makes the same product. A
            risk of a kind that this process has measured begins with what was the fastest there.
        memory: bytes that may be kept between products (a product in the making may take as much again), or a
            ``MemoryBudget`` shared with other operators; half of what is free by default.
        expected_matvecs: about how many products will be asked for, where it is more than 60: ``"auto"`` then thinks of
            other engines after the first product. Else it takes as many to be left as have been made.
        wrt: ``"input"`` or the name of a submodule: the Hessian with respect to the inputs, or to what the submodule
            returns, of all examples stacked, in place of the parameters; see ``objective.activations``.
        surrogate_engine: of the Gauss-Newton matrix that estimators may use beside this one, as ``engine``.

    Raises:
        TypeError: ``risk`` is no objective.
        ValueError: unknown engine, or ``memory`` not positive.
        UnsupportedError: (at the first product) no engine can differentiate this model twice, or the product is not
            symmetric.
        MemoryBudgetError: (at the first product) a batch does not fit a named engine and cannot be cut, or with
            ``"auto"`` not even a forward pass of a single example fits. Batches that cannot be cut are then taken
            whole by an engine that keeps nothing.

    References:
        Pearlmutter (1994), "Fast exact multiplication by the Hessian".

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 1).double()
        >>> data = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double(), torch.zeros(2, 1).double())]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.MSELoss(), data)
        >>> H = hp.Hessian(risk)
        >>> H.shape
        (3, 3)
        >>> (H @ torch.tensor([1.0, 0.0, 0.0]).double()).round(decimals=6)
        tensor([10.,  2.,  4.], dtype=torch.float64)
    """

    def __init__(
        self,
        risk: Objective,
        *,
        engine: str = "auto",
        memory: int | MemoryBudget | None = None,
        expected_matvecs: int = EXPECTED_MATVECS,
        surrogate_engine: str = "auto",
        wrt: str | None = None,
    ) -> None:
        self.risk = risk = require_objective("risk", risk) if wrt is None else ActivationRisk(risk, wrt)
        self.dim, self.dtype, self.device, self.n_terms = risk.dim, risk.dtype, risk.device, risk.n_terms
        self._source = BatchProducts(risk, ENGINES, engine, memory, expected_matvecs)
        self._surrogate: GaussNewton | None = None
        self._alone = False
        self._alike: bool | None = None
        self._surrogate_engine = surrogate_engine

    def __repr__(self) -> str:
        return f"Hessian(dim={self.dim}, engine={self.engines[0]!r}, risk={self.risk!r})"

    @property
    def is_exact(self) -> bool:  # type: ignore[override]  # known once the engine is
        """False where products are finite differences."""
        return self.engine.is_exact

    @property
    def engine(self) -> Engine:
        """The engine in use; with ``"auto"`` the first access chooses it."""
        return self._source.engine

    @property
    def engines(self) -> tuple[str, str]:
        """The names of the engines of this matrix and of its surrogate; ``"auto"`` for one that has made no product."""
        own = self._source.engine.name if self._source.chosen else "auto"
        return own, self._surrogate_engine if self._surrogate is None else self._surrogate.engine_name

    @property
    def engine_note(self) -> str:
        """Which engine runs, and with ``"auto"`` why the others do not."""
        return self._source.note

    @property
    def gradient_seconds(self) -> float | None:
        """Time of one gradient over all data; None before the first product."""
        return self._source.gradient_seconds

    @property
    def made(self) -> dict[str, float]:
        """Products so far, and those of the surrogate, by kind as in ``Cost``; those of one batch count as a share."""
        near = {} if self._surrogate is None else self._surrogate.made
        return {"hessian": self._source.pool.made["products"], **{_NEAR.get(kind, kind): n for kind, n in near.items()}}

    @property
    def seconds(self) -> dict[str, float]:
        """The least time of a gradient and of one of each kind in ``made`` over all data, as far as one was made.

        What a plan multiplies by the numbers that it needs. The first product includes what is made for all that
        follow, and is soon undercut by them.
        """
        near = {} if self._surrogate is None else self._surrogate.seconds
        least = self._source.pool.seconds.get("products")
        own = {} if least is None else {"hessian": least}
        gradient = {} if self.gradient_seconds is None else {"gradient": self.gradient_seconds}
        return {**{_NEAR.get(kind, kind): time for kind, time in near.items()}, **own, **gradient}

    @property
    def ranks(self) -> Sharing | None:
        """Those that make products of the risk together."""
        return holding(self.risk)

    @property
    def blocks(self) -> dict[str, slice]:
        """The parameter tensors."""
        return self.risk.layout.slices

    @property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the parameters."""
        return self.risk.layout

    @property
    def surrogate(self) -> LinearOperator | None:
        """The Gauss-Newton matrix of the same risk, out of the same memory.

        None where there are no outputs, or the model or the loss lacks the derivatives that its products need.
        """
        if self._surrogate is None and not self._alone:
            try:
                self._surrogate = self._near()
            except UNSUPPORTED as error:
                if is_final(error):
                    raise
                self._alone = True
        return self._surrogate

    def exact_trace(self) -> ExactTrace | None:
        """Return tr H where it is tr G of the Gauss-Newton matrix, see ``hvp.piecewise``: piecewise linear networks."""
        near = self.surrogate if self._alike is not False and self.is_exact else None
        if near is None or self._alike:
            return None if near is None else near.exact_trace()
        from hessprobe.hvp.piecewise import check_cost, forms_agree, linear_in_layers

        self._alike = False
        with self._source.pool.context():
            # The cheapest first: most networks are told from the first, few of the others have no trace to share.
            known = near.exact_trace() if linear_in_layers(self.risk) else None
            self._alike = known is not None and forms_agree(self.risk, self, near)
        return replace(known, cost=known.cost + check_cost(self.n_terms)) if known is not None and self._alike else None

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return those of the Gauss-Newton matrix where ``exact_trace`` has found the traces to be the same."""
        return self._surrogate.group_traces() if self._alike and self._surrogate is not None else None

    def example_lambda_max(self, *, steps: int = 50, rtol: float = 1e-3, seed: int = 0) -> Any:
        """Return lambda_max(d^2 l_i / d a_i^2) of every example's own loss, for a Hessian made with ``wrt=``.

        N times the largest eigenvalue of each block, N the number of examples: the curvature of the loss along the
        direction in which this example's input or activation changes it most. See ``krylov.blockwise``.

        Args:
            steps: most products, >= 1.
            rtol: relative residual to reach, > 0.
            seed: of the random start, >= 0.

        Raises:
            TypeError: a Hessian with respect to parameters.
            ValueError: an argument outside its range, or examples of different sizes or weights.
            UnsupportedError: examples that see each other.
        """
        if not isinstance(self.risk, ActivationRisk):
            raise TypeError(
                "example_lambda_max needs a Hessian with respect to inputs or activations. Pass wrt='input'."
            )
        count = self.risk.require_alike()
        # Products lie below the eigenvalues that are made of them.
        found = import_module("hessprobe.krylov").block_lambda_max(self, count, steps=steps, rtol=rtol, seed=seed)
        return replace(found, values=found.values * count, residuals=found.residuals * count)

    def _near(self) -> GaussNewton:
        source = self._source
        near = GaussNewton(
            self.risk,
            engine=self._surrogate_engine,
            memory=source.budget,
            expected_matvecs=source.expected_matvecs,
        )
        # What can be differentiated only once may have outputs, a convex loss and no product.
        if not self.is_exact:
            near.require_engine()
        return near

    def product_error(self, seed: int = 0, *, every_coordinate: bool = False) -> ProductError | None:
        """Return what finite differences are off by, see ``compare``; None where products are exact.

        The same products are made by an exact engine where there is one that works (a difference across the kinks of a
        ReLU is wrong at every step), else by differences with a quarter of the step, whose own truncation error is a
        sixteenth. Costs 16 products and 14 of the reference, or d + 8 and d + 6.

        Args:
            seed: of the directions, >= 0.
            every_coordinate: compare all coordinates, for a number that is made of all.
        """
        if self.is_exact:
            return None
        count = self.dim if every_coordinate else COMPARED
        reference = BatchProducts(self.risk, ENGINES, "auto", self._source.budget, count)
        # Whether an exact engine works is known once it has made a product.
        if not self.risk.differentiable_once:
            reference.pool.total(self.risk.theta[None])
        if self.risk.differentiable_once or not reference.engine.is_exact:
            finer = {_FINITE: lambda: _differences(0.25)}
            reference = BatchProducts(self.risk, finer, _FINITE, self._source.budget, count)
        return compare(self.matvecs, reference.pool.total, self.risk.theta, seed, every_coordinate=every_coordinate)

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._source.pool.total(V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield each batch's weight and Hessian."""
        return self._source.terms(self)

    def grouped(self, count: int) -> LinearOperator:
        """Return this matrix with groups of examples as terms; itself where there are no finer ones."""
        return self._source.grouped(self, count)


V = TypeVar("V")


def hvp(risk: Objective, v: V, *, engine: str = "auto", memory: int | MemoryBudget | None = None) -> V:
    """Return H v for the Hessian H of ``risk`` at its present parameters, in the form of ``v``.

    For more than a few products make ``H = Hessian(risk)`` once and use ``H @ v``: what a product can reuse is kept.

    Args:
        risk: the objective.
        v: a flat tensor or NumPy array (d,), or vectors as columns (d, k); or tensors shaped like the parameters: a
            dict by name, or a list or tuple in the order of ``risk.layout.names``. ``risk.layout.flatten`` and
            ``unflatten`` turn one form into the other.
        engine: as in ``Hessian``.
        memory: likewise.

    Raises:
        TypeError: ``risk`` is no objective, or ``v`` none of these or of another dtype.
        ValueError: a wrong shape, or a name too many or too few.
        UnsupportedError: no engine can differentiate this model twice.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 1).double()
        >>> data = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double(), torch.zeros(2, 1).double())]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.MSELoss(), data)
        >>> hp.hvp(risk, torch.tensor([1.0, 0.0, 0.0]).double())
        tensor([10.,  2.,  4.], dtype=torch.float64)
        >>> e = {"weight": torch.tensor([[1.0, 0.0]]).double(), "bias": torch.tensor([0.0]).double()}
        >>> hp.hvp(risk, e)
        {'weight': tensor([[10.,  2.]], dtype=torch.float64), 'bias': tensor([4.], dtype=torch.float64)}
    """
    return Hessian(risk, engine=engine, memory=memory, expected_matvecs=1) @ v
