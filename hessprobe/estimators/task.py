"""What trace and diagonal share: the checked request, the known parts, and sums over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe.estimators.budget import Callback, Goal
from hessprobe.estimators.xtrace import Deflation, block_rows, blocks_of, deflation
from hessprobe.operators import BlockDiagonal, LinearOperator, SampledTrace


@dataclass(frozen=True)
class Task:
    """A checked request.

    Attributes:
        operator: A, counted; or its block diagonal, which has the same trace and diagonal.
        parts: A as a sum over the terms that the data error is told from.
        goal: number of probes or tolerance.
        seed: integer.
        law: of the probes.
        basis: deflated directions (k, d), or None.
        given: what the caller gave as ``deflate``; a ``Deflation`` of A is used as it is.
        control: use the surrogate: True, False, None to decide, or ``"sampled"``: with a sampled trace.
        per_block: take the surrogate's products.
        callback: for progress.
    """

    operator: LinearOperator
    parts: LinearOperator
    goal: Goal
    seed: int
    law: str
    basis: Tensor | None
    given: Any
    control: bool | str | None
    per_block: bool
    callback: Callback | None


@dataclass(frozen=True)
class Known:
    """What is known of A before sampling, besides P (A - G) P or P A P.

    Attributes:
        deflated: of A, or None.
        surrogate: G where it is used, else None.
        surrogate_diagonal: its exact diagonal, fp64 (d,), or None.
        surrogate_deflated: of G, or None.
        surrogate_sampled: the trace of G with its error, where that takes the place of its diagonal, or None.
    """

    deflated: Deflation | None = None
    surrogate: LinearOperator | None = None
    surrogate_diagonal: Tensor | None = None
    surrogate_deflated: Deflation | None = None
    surrogate_sampled: SampledTrace | None = None

    @property
    def trace(self) -> float:
        """Return tr A - tr P (A - G) P, or tr A - tr P A P where there is no surrogate."""
        total = self.deflated.trace if self.deflated is not None else 0.0
        if self.surrogate_diagonal is not None:
            total += float(self.surrogate_diagonal.sum())
        if self.surrogate_sampled is not None:
            total += self.surrogate_sampled.value
        if self.surrogate_deflated is not None:
            total -= self.surrogate_deflated.trace
        return total

    def diagonal(self, like: LinearOperator, *, paired: bool) -> Tensor:
        """Return the known part of the diagonal, fp64 (d,); of A alone where not ``paired``."""
        total = torch.zeros(like.dim, dtype=torch.float64, device=like.device)
        if self.deflated is not None:
            total += self.deflated.diagonal()
        if paired and self.surrogate_diagonal is not None:
            total += self.surrogate_diagonal
        if paired and self.surrogate_deflated is not None:
            total -= self.surrogate_deflated.diagonal()
        return total


def known_parts(
    task: Task, *, controlled: bool, deflated: Deflation | None = None, draws: range | None = None
) -> Known:
    """Deflate A, and where ``controlled`` buy the surrogate's exact diagonal and deflate the surrogate as well.

    Args:
        task: the request.
        controlled: use the surrogate.
        deflated: the deflation of A where it has been made already.
        draws: sample the surrogate's trace with these instead of buying its diagonal.

    Raises:
        ValueError: the control variate was insisted on and there is no surrogate whose diagonal, or whose trace by
            sampling, is to be had.
    """
    A = task.operator
    if deflated is None and isinstance(task.given, Deflation):
        deflated = task.given
    if deflated is None and task.basis is not None:
        deflated = deflation(A, task.basis, seed=task.seed)
    surrogate = A.surrogate if controlled else None
    exact = None if surrogate is None or draws is not None else surrogate.exact_diagonal()
    sampled = None if surrogate is None or draws is None else surrogate.sampled_trace(draws, task.seed)
    if controlled and exact is None and sampled is None and task.control:
        raise ValueError(
            "control_variate must be False or 'auto' for an operator without a surrogate of "
            f"{'sampled trace' if task.control == 'sampled' else 'known diagonal'}; got {task.control!r}. "
            "The Hessian of a loss on model outputs has one, its Gauss-Newton matrix."
        )
    if surrogate is None or (exact is None and sampled is None):
        return Known(deflated)
    twin = None if task.basis is None else deflation(surrogate, task.basis, seed=task.seed)
    diagonal = None if exact is None else exact[0].to(device=A.device, dtype=torch.float64)
    return Known(deflated, surrogate, diagonal, twin, sampled)


def exact_diagonal(A: LinearOperator) -> Tensor:
    """Return the diagonal, fp64 (d,): as the operator knows it, or by d products with unit vectors."""
    known = A.exact_diagonal()
    return diagonal_by_terms(A)[0] if known is None else known[0].double()


def diagonal_by_terms(A: LinearOperator) -> tuple[Tensor, Tensor, Tensor]:
    """Return the diagonal, fp64 (d,), weights (B,) and traces (B,) of all terms, by d products with unit vectors."""
    diagonal = torch.zeros(A.dim, dtype=torch.float64, device=A.device)
    weights, traces = [], []
    for weight, term in A.terms():
        own = torch.empty_like(diagonal)
        for start, stop in blocks_of(A.dim, block_rows(A.dim)):
            rows, columns = torch.arange(stop - start), torch.arange(start, stop)
            units = torch.zeros(stop - start, A.dim, dtype=A.dtype, device=A.device)
            units[rows, columns] = 1.0
            own[start:stop] = term.matvecs(units)[rows, columns].double()
        diagonal.add_(own, alpha=weight)
        weights.append(weight)
        traces.append(float(own.sum()))
    return diagonal, torch.tensor(weights, dtype=torch.float64), torch.tensor(traces, dtype=torch.float64)


def sums_of_blocks(A: LinearOperator, diagonal: Tensor) -> dict[str, dict[str, float]]:
    """Return exact block traces in the form of ``details["blocks"]``."""
    return {
        name: {"value": float(diagonal[where].sum()), "std_error": 0.0, "df": float("inf")}
        for name, where in A.blocks.items()
    }


# Groups of a block diagonal: each costs a product, and neighbouring layers beyond these are taken together.
_MAX_GROUPS = 8


def block_diagonal(A: LinearOperator) -> BlockDiagonal | None:
    """Return the block diagonal of A over its modules (weight and bias of a layer together), or None for one module.

    In a piecewise linear network (ReLU, no normalisation by batch statistics) the outputs are linear in the parameters
    of any one layer, so that these blocks of the Hessian and of its Gauss-Newton matrix agree: sampled inside blocks,
    the control variate leaves nothing to sample.
    """
    groups: list[slice] = []
    last = None
    for name, where in A.blocks.items():
        module = name.rpartition(".")[0]
        if module == last and groups:
            groups[-1] = slice(groups[-1].start, where.stop)
        else:
            groups.append(where)
        last = module
    if len(groups) < 2:
        return None
    size = -(-len(groups) // _MAX_GROUPS)
    merged = [slice(groups[i].start, groups[min(i + size, len(groups)) - 1].stop) for i in range(0, len(groups), size)]
    return BlockDiagonal(A, merged)
