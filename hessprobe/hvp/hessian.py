"""The Hessian of an objective as an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from hessprobe import checks
from hessprobe.errors import UnsupportedError
from hessprobe.hvp.auto import EXPECTED_PRODUCTS, Choice, choose
from hessprobe.hvp.chunked import Chunked
from hessprobe.hvp.double_backward import DoubleBackward
from hessprobe.hvp.engine import Engine, Product
from hessprobe.hvp.finite_difference import FiniteDifference
from hessprobe.hvp.forward_over_reverse import ForwardOverReverse
from hessprobe.hvp.gauss_newton import GaussNewton
from hessprobe.hvp.linearized import Linearized
from hessprobe.hvp.memory import budget_bytes
from hessprobe.hvp.pool import ProductPool
from hessprobe.hvp.term import BatchOperator
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.operators.base import LinearOperator

ENGINES: dict[str, Callable[[], Engine]] = {
    "linearized": Linearized,
    "double_backward": DoubleBackward,
    "forward_over_reverse": ForwardOverReverse,
    "finite_difference": FiniteDifference,
}


class Hessian(LinearOperator):
    """H = sum_b w_b H_b, H_b the Hessian of the mean loss of batch b at ``risk.theta``.

    Args:
        risk: the objective.
        engine: ``"auto"`` (times the candidates on the first batch), or a name in ``ENGINES``.
        memory: bytes that may be kept between products; half of what is free by default.
        expected_products: about how many products will be asked for; ``"auto"`` spreads the cost of preparing an
            engine over them.

    Raises:
        ValueError: unknown engine, or ``memory`` not positive.
        UnsupportedError: (at the first product) no engine can differentiate this model twice.

    References:
        Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """

    def __init__(
        self,
        risk: Objective,
        *,
        engine: str = "auto",
        memory: int | None = None,
        expected_products: int = EXPECTED_PRODUCTS,
    ) -> None:
        checks.one_of("engine", engine, ("auto", *ENGINES))
        self.risk = risk
        self.dim, self.dtype, self.device, self.n_terms = risk.dim, risk.dtype, risk.device, risk.n_terms
        self._budget = budget_bytes(memory, risk.device)
        self._expected = checks.positive_int("expected_products", expected_products)
        self._name = engine
        self._engine: Engine | None = None if engine == "auto" else Chunked(ENGINES[engine](), self._budget)
        self._pool = ProductPool(risk, self._make, self._budget)
        self._surrogate: GaussNewton | None = None
        self.choice: Choice | None = None

    @property
    def is_exact(self) -> bool:  # type: ignore[override]  # known once the engine is
        """False where products are finite differences."""
        return self.engine.is_exact

    @property
    def engine(self) -> Engine:
        """The engine in use; with ``"auto"`` the first access chooses it."""
        if self._engine is None:
            with self._pool.context():
                self._choose(next(iter(self.risk.terms())))
        return self._engine  # type: ignore[return-value]  # chosen above

    @property
    def engine_note(self) -> str:
        """Which engine runs, and with ``"auto"`` why the others do not."""
        return self.engine.name if self.choice is None else str(self.choice)

    @property
    def blocks(self) -> dict[str, slice]:
        """The parameter tensors."""
        return self.risk.layout.slices

    @property
    def surrogate(self) -> LinearOperator | None:
        """The Gauss-Newton matrix of the same risk, or None where the objective has no outputs."""
        if self._surrogate is None:
            try:
                self._surrogate = GaussNewton(self.risk, memory=self._budget, expected_products=self._expected)
            except UnsupportedError:
                return None
        return self._surrogate

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._pool.total(V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield each batch's weight and Hessian."""
        for weight, product in self._pool:
            yield weight, BatchOperator(product, self._pool, self)

    def _make(self, batch: BatchLoss, theta: Tensor) -> Product:
        if self._engine is None:
            self._choose(batch)
        return self.engine(batch, theta)

    def _choose(self, batch: BatchLoss) -> None:
        self.choice = choose(ENGINES, batch, self.risk.theta, self._budget, self.n_terms, self._expected)
        self._engine = Chunked(self.choice.engine, self._budget)
