"""What the Hessian has beyond the Gauss-Newton matrix: the curvature of the network itself."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from hessprobe.hvp.auto import EXPECTED_MATVECS
from hessprobe.hvp.engines import Engine
from hessprobe.hvp.gauss_newton import GaussNewton
from hessprobe.hvp.hessian import Hessian
from hessprobe.hvp.pool import MemoryBudget
from hessprobe.objective.base import Objective
from hessprobe.operators.base import Combination, LinearOperator
from hessprobe.vectors import ParameterLayout, Sharing


class FunctionalPart(LinearOperator):
    """F = H - G = sum_b w_b sum_c (dl / df_c) d^2 f_c / d theta^2 at ``risk.theta``.

    Indefinite, and 0 where the outputs f are linear in the parameters or the loss has slope zero at them: it fades as
    the training examples are fitted. A product costs one with the Hessian H and one with the Gauss-Newton matrix G,
    and carries the rounding of both.

    Args:
        risk: an objective whose batches have outputs.
        engine: of both, ``"auto"`` or a name in ``gauss_newton.ENGINES``.
        memory: bytes that both together may keep, or a ``MemoryBudget``; half of what is free by default.
        expected_matvecs: about how many products will be asked for.

    Raises:
        TypeError: ``risk`` is no objective.
        ValueError: unknown engine, or ``memory`` not positive.
        UnsupportedError: no outputs, or a loss that is not convex in them.

    References:
        Martens (2020), "New insights and perspectives on the natural gradient method", section 8.
    """

    def __init__(
        self,
        risk: Objective,
        *,
        engine: str = "auto",
        memory: int | MemoryBudget | None = None,
        expected_matvecs: int = EXPECTED_MATVECS,
    ) -> None:
        budget = memory if isinstance(memory, MemoryBudget) else MemoryBudget(memory, risk.device, risk)
        self.hessian = Hessian(risk, engine=engine, memory=budget, expected_matvecs=expected_matvecs)
        self.gauss_newton = GaussNewton(risk, engine=engine, memory=budget, expected_matvecs=expected_matvecs)
        self._difference = Combination([self.hessian, self.gauss_newton], [1.0, -1.0])
        self.dim, self.dtype, self.device, self.n_terms = risk.dim, risk.dtype, risk.device, risk.n_terms

    def __repr__(self) -> str:
        return f"FunctionalPart(dim={self.dim}, engine={self.hessian.engines[0]!r}, risk={self.hessian.risk!r})"

    @property
    def is_exact(self) -> bool:  # type: ignore[override]  # known once the engine is
        """False where products are finite differences."""
        return self.hessian.is_exact

    @property
    def engine(self) -> Engine:
        """That of the Hessian; with ``"auto"`` the first access chooses it."""
        return self.hessian.engine

    @property
    def engines(self) -> tuple[str, str]:
        """``"auto"`` twice: what suits one of the two matrices need not suit the other."""
        return "auto", "auto"

    @property
    def gradient_seconds(self) -> float | None:
        """Time of one gradient over all data; None before the first product."""
        return self.hessian.gradient_seconds

    @property
    def made(self) -> dict[str, float]:
        """Products of both matrices so far, by kind; those of one batch count as a share."""
        return {**self.hessian.made, **self.gauss_newton.made}

    @property
    def engine_note(self) -> str:
        """Which engines run."""
        first, second = self.hessian.engine_note, self.gauss_newton.engine_note
        return first if first == second else f"{first}; Gauss-Newton: {second}"

    @property
    def ranks(self) -> Sharing | None:
        """Those of the Hessian."""
        return self.hessian.ranks

    @property
    def blocks(self) -> dict[str, slice]:
        """The parameter tensors."""
        return self.hessian.blocks

    @property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the parameters."""
        return self.hessian.layout

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._difference.matvecs(V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield each batch's weight and functional part."""
        return self._difference.terms()

    def grouped(self, count: int) -> LinearOperator:
        """Return this matrix with groups of examples as terms; itself where there are no finer ones."""
        finer = self._difference.grouped(count)
        return self if finer is self._difference else finer
