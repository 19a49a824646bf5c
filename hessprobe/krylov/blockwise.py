"""The largest eigenvalue of every diagonal block of a block-diagonal operator, all in one run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import UnsupportedError
from hessprobe.operators import LinearOperator
from hessprobe.vectors import ProbeStream, row_dots

# Eigenvalues of T are looked at from this many steps on.
_FIRST_LOOK = 4


@dataclass(frozen=True)
class BlockEigenvalues:
    """The largest eigenvalue of each block; see ``block_lambda_max``.

    Attributes:
        values: (N,) fp64 Ritz values: none exceeds the largest eigenvalue of its block.
        residuals: (N,) fp64; some eigenvalue of the block lies within it.
        matvecs: products with the whole operator.
    """

    values: Tensor
    residuals: Tensor
    matvecs: float


def block_lambda_max(
    A: LinearOperator, count: int, *, steps: int = 50, rtol: float = 1e-3, seed: int = 0
) -> BlockEigenvalues:
    """Return the largest eigenvalue of each of ``count`` equal diagonal blocks of a block-diagonal operator.

    One product with stacked vectors is a product with every block: Lanczos runs in all blocks at once, with full
    reorthogonalisation in fp64, until every residual is at most rtol * |value|, or for ``steps`` steps.

    Args:
        A: (d, d), zero outside the blocks.
        count: N >= 1 that divides d.
        steps: most Lanczos steps, >= 1; a block of d / N <= steps rows is solved exactly.
        rtol: relative residual, > 0.
        seed: of the random start.

    Raises:
        ValueError: an argument outside its range.
        UnsupportedError: A is not zero outside the blocks: examples see each other.
    """
    steps = min(checks.positive_int("steps", steps), A.dim // checks.positive_int("count", count))
    rtol = checks.real("rtol", rtol, low=0, low_open=True)
    start = ProbeStream(A.dim, checks.resolve_seed(seed), "gaussian", A.dtype, A.device, "start").probe(0)
    _require_uncoupled(A, start, count)
    v = start.double().view(count, -1)
    v = v / v.norm(dim=1, keepdim=True)
    basis = [v]
    T = torch.zeros(count, steps, steps, dtype=torch.float64, device=A.device)
    scale = torch.zeros(count, dtype=torch.float64, device=A.device)
    for step in range(steps):
        w = A.matvecs(v.reshape(1, -1).to(A.dtype)).double().view(count, -1)
        scale = torch.maximum(scale, w.norm(dim=1))
        Q = torch.stack(basis, 1)
        # What is put in place of a vector that is not there lies below the largest Ritz value.
        T[:, step, step] = torch.where(v.norm(dim=1) > 0, (v * w).sum(1), -2 * scale)
        for _ in range(2):
            w = w - torch.einsum("nmj,nm->nj", Q, torch.einsum("nmj,nj->nm", Q, w))
        beta = w.norm(dim=1)
        # A block whose space is spanned goes on from nothing.
        alive = beta > 1e3 * torch.finfo(A.dtype).eps * scale
        values, vectors = torch.linalg.eigh(T[:, : step + 1, : step + 1])
        top = values[:, -1]
        residuals = torch.where(alive, beta * vectors[:, -1, -1].abs(), 0.0)
        if step + 1 == steps or (step + 1 >= _FIRST_LOOK and bool((residuals <= rtol * top.abs()).all())):
            break
        v = torch.where(alive[:, None], w / torch.where(alive, beta, 1.0)[:, None], 0.0)
        T[:, step, step + 1] = T[:, step + 1, step] = torch.where(alive, beta, 0.0)
        basis.append(v)
    return BlockEigenvalues(top.cpu(), residuals.cpu(), float(len(basis)) + 1)


def _require_uncoupled(A: LinearOperator, start: Tensor, count: int) -> None:
    """Refuse an operator whose product with every second block reaches the others."""
    if count < 2:
        return
    half = start.view(count, -1).clone()
    half[1::2] = 0
    product = A.matvecs(half.reshape(1, -1)).view(count, -1)
    inside, outside = (float(row_dots(part, part).sum()) for part in (product[::2], product[1::2]))
    if outside > 1e-6 * inside:
        raise UnsupportedError(
            "The eigenvalues of single examples need examples that do not see each other; here the curvature of one "
            "reaches others. Use batchnorm='eval', and a loss that is a mean over examples; or measure the whole."
        )
