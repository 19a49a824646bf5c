"""What a spectral sketch keeps of single batches: their part in deflated eigenvalues and in the chains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.xtrace import Deflation
from hessprobe.krylov.lanczos import LanczosRun
from hessprobe.operators import LinearOperator
from hessprobe.vectors import combine, gram, row_dots

# Batches beyond this many are pooled into groups, which bounds the file; the jackknife error is then known to 9 %.
_MAX_GROUPS = 64


def deflated_part(
    A: LinearOperator, basis: Tensor | None, lower: float | None, given: Deflation | None
) -> tuple[SpectralSketch, Tensor | None]:
    """Return a sketch without chains, and the Ritz vectors of ``basis`` (k, d) as rows.

    The k products are made term by term, or taken from ``given``: S = V A V^T is diagonalised, V turned into Ritz
    vectors, and every group's quadratic forms with them are its influences on the deflated eigenvalues.
    """
    k = 0 if basis is None else basis.shape[0]
    groups = group_count(A, k)
    weights = torch.zeros(groups, dtype=torch.float64)
    theta, residuals = torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
    influence, vectors = torch.zeros(groups, k, dtype=torch.float64), basis
    if basis is not None:
        parts, weights, image = _compressed(A, basis, groups, given)
        compressed = parts.sum(0)
        values, turn = torch.linalg.eigh((compressed + compressed.T) / 2)
        vectors = combine(turn.T, basis)
        missing = combine(turn.T, image) - combine(torch.diag(values), vectors)
        theta, residuals = values.cpu(), row_dots(missing, missing).sqrt().cpu()
        if groups:
            forms = torch.einsum("ji,gjk,ki->gi", turn, parts, turn).cpu()
            influence = forms / weights[:, None]
    blank = without_chains(A, lower, theta, residuals if k < A.dim else torch.zeros_like(residuals), weights, influence)
    return blank, vectors


def without_chains(
    A: LinearOperator, lower: float | None, theta: Tensor, residuals: Tensor, weights: Tensor, influence: Tensor
) -> SpectralSketch:
    """Return a sketch of A that knows Ritz values ``theta`` (k,) and has no chains."""
    empty = torch.zeros(0, 0, dtype=torch.float64)
    return SpectralSketch(
        dim=A.dim,
        lower=lower,
        unit=float(torch.finfo(A.dtype).eps),
        norms=torch.zeros(0, dtype=torch.float64),
        alphas=empty,
        betas=empty,
        lengths=torch.zeros(0, dtype=torch.long),
        theta=theta,
        residuals=residuals,
        weights=weights,
        chain_influence=torch.zeros(0, len(weights), 0, dtype=torch.float64),
        theta_influence=influence,
    )


def influences(A: LinearOperator, run: LanczosRun, groups: int) -> tuple[Tensor, Tensor]:
    """Return group weights (G,) and Q_c A_g q_c (p, G, m), from one more product a chain, made term by term."""
    weights = torch.zeros(groups, dtype=torch.float64)
    starts = run.starts
    influence = torch.zeros(len(starts), groups, run.alphas.shape[1], dtype=torch.float64)
    for group, weight, term in grouped_terms(A, groups):
        influence[:, group] += weight * run.coefficients(term.matvecs(starts))
        weights[group] += weight
    return weights, influence / weights[:, None]


def _compressed(
    A: LinearOperator, basis: Tensor, groups: int, given: Deflation | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum of w_b V A_b V^T a group (at least one, k, k), the weights of the groups, and the rows A v_i."""
    k = len(basis)
    parts = torch.zeros(max(groups, 1), k, k, dtype=torch.float64, device=A.device)
    weights = torch.zeros(groups, dtype=torch.float64)
    # A deflation made by other terms says nothing about these.
    if given is not None and given.term_compressed is not None and len(given.weights) == A.n_terms:
        for index, (weight, known) in enumerate(zip(given.weights.tolist(), given.term_compressed, strict=True)):
            group = index * groups // A.n_terms
            parts[group] += weight * known
            weights[group : group + 1] += weight
        return parts, weights, given.image
    image = torch.zeros_like(basis)
    for group, weight, term in grouped_terms(A, groups):
        product = term.matvecs(basis)
        image.add_(product, alpha=weight)
        parts[group] += weight * gram(basis, product)
        weights[group : group + 1] += weight
    return parts, weights, image


def group_count(A: LinearOperator, k: int) -> int:
    """Return how many groups of terms are told apart: 0 for one term; bounded by the file and by k x k matrices."""
    return 0 if A.n_terms < 2 else min(A.n_terms, _MAX_GROUPS, max(2, (1 << 25) // max(k * k, 1)))


def grouped_terms(A: LinearOperator, groups: int) -> Iterator[tuple[int, float, LinearOperator]]:
    """Yield ``(group, weight, term)`` for every term of A, neighbouring terms in one of ``groups`` groups."""
    for index, (weight, term) in enumerate(A.terms()):
        yield index * groups // A.n_terms, weight, term
