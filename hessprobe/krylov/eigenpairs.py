"""What ``eigsh`` returns: eigenpairs, each with its residual, the error of its value, and bounds on the spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.influence import Batches, Influence
from hessprobe.jackknife import infinitesimal_jackknife
from hessprobe.operators import LinearOperator
from hessprobe.vectors import combine, gram, row_dots


class SpectrumBounds(NamedTuple):
    """Bounds on the whole spectrum that hold with the confidence asked for; None where an end has none.

    Attributes:
        lower: lower bound on lambda_min.
        upper: upper bound on lambda_max.
    """

    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class Progress:
    """Where a running ``eigsh`` stands, after each product.

    Attributes:
        matvecs: products so far.
        max_matvecs: products allowed.
        phase: ``"search"``, or ``"verify"`` while further copies of found eigenvalues are looked for.
        largest, smallest: extreme Ritz values so far: a lower bound on lambda_max, an upper bound on lambda_min.
        largest_residual, smallest_residual: estimated residual norms of the two.
        converged, wanted: pairs converged so far and pairs asked for.
    """

    matvecs: float
    max_matvecs: int
    phase: str
    largest: float
    largest_residual: float
    smallest: float
    smallest_residual: float
    converged: int
    wanted: int


@dataclass(frozen=True, repr=False)
class Eigenpairs:
    """Eigenvalues and eigenvectors with residuals, errors and cost; see ``eigsh``.

    Attributes:
        values: (k',) fp64, descending: Rayleigh quotients.
        vectors: (k', d) orthonormal rows in the operator's dtype.
        residuals: (k',) fp64, ||A y - theta y|| from one true product a pair; some eigenvalue lies within it.
        converged: (k',) bool.
        errors: (k',) fp64, bound on |lambda - theta|: min(r, r^2 / gap), see ``value_errors``.
        data_error: (k',) fp64 standard errors of the values from the data being a sample, or None for an operator of
            one term.
        bounds: (1 - delta) bounds on the spectrum.
        confidence: 1 - delta.
        which: as asked for.
        matvecs: products counted.
        method: the algorithm.
        seconds: wall-clock time.
        flags: ``"not-converged"``: some pair is not; ``"multiplicity-unverified"``: further copies of the reported
            eigenvalues were not excluded within the products allowed; ``"rounding-limited"``: some pair converged to
            the noise of the products, not to ``tol``; ``"warm-start"``.
        terms: weights (B,) of the terms and v^T A_b v (B, k') of every vector, or None for an operator of one term.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    errors: Tensor
    data_error: Tensor | None
    bounds: SpectrumBounds
    confidence: float
    which: str
    matvecs: float
    method: str
    seconds: float
    flags: tuple[str, ...]
    terms: tuple[Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        shown = [f"{value:.6g}" for value in self.values[:3].tolist()]
        shown += ["..."] if len(self.values) > 4 else []
        shown += [f"{value:.6g}" for value in self.values[3:].tolist()[-1:]]
        return (
            f"Eigenpairs({len(self.values)} of {self.vectors.shape[1]}: {', '.join(shown)}; "
            f"largest residual {float(self.residuals.max()):.2g}, {int(self.converged.sum())} converged, "
            f"which={self.which!r}, matvecs={self.matvecs:g})"
        )

    def estimate(self, i: int) -> Estimate:
        """Return eigenvalue ``i`` (0 the largest reported, -1 the smallest) as an ``Estimate``.

        The solver part is the bound on |lambda - theta|, the data part the jackknife over terms. The kind is
        ``"exact"`` for a converged pair; an unconverged one at the top is a ``"lower bound"`` (no Rayleigh quotient
        exceeds lambda_max), at the bottom an ``"upper bound"``. The bracket of the largest eigenvalue is (Ritz value,
        upper bound), that of the smallest (lower bound, Ritz value); others have none.

        Raises:
            TypeError, ValueError: ``i`` is not an integer in [-k', k').
        """
        count = len(self.values)
        index = checks.positive_int("i", i, minimum=-count, hint=f"There are {count} pairs, counted from 0.")
        if index >= count:
            raise ValueError(f"i must be an integer < {count}; got {i}. There are {count} pairs, counted from 0.")
        index %= count
        value = float(self.values[index])
        top = self._is_top(index)
        bracket = None
        if index == 0 and top and self.bounds.upper is not None:
            bracket = (value, self.bounds.upper)
        elif index == count - 1 and not top and self.bounds.lower is not None:
            bracket = (self.bounds.lower, value)
        kind = "exact" if bool(self.converged[index]) else ("lower bound" if top else "upper bound")
        data = None if self.data_error is None else float(self.data_error[index])
        influence = None
        if self.terms is not None:
            weights, forms = self.terms
            influence = Influence(batches=Batches(weights, forms[None, :, index], shared=True))
        return Estimate(
            value=value,
            errors=ErrorParts(data=data, solver=float(self.errors[index])),
            matvecs=self.matvecs,
            method=self.method,
            kind=kind,
            bracket=bracket,
            flags=self.flags,
            seconds=self.seconds,
            details={"residual": float(self.residuals[index])},
            influence=influence,
        )

    def _is_top(self, index: int) -> bool:
        if self.which == "both":
            return 2 * index < len(self.values)
        if self.which == "magnitude":
            return float(self.values[index]) > 0
        return self.which == "largest"


@dataclass(frozen=True)
class Refined:
    """Rayleigh-Ritz on given rows with true products; see ``refine``."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    data_error: Tensor | None
    terms: tuple[Tensor, Tensor] | None = None


def refine(A: LinearOperator, rows: Tensor) -> Refined:
    """Return the eigenpairs of A in the span of ``rows``, with true residuals: one product a row.

    Solves M u = theta G u with M = Y A Y^T and G = Y Y^T in fp64, so that rows orthonormal only to their own precision
    do no harm. For an operator of several terms A = sum_b w_b A_b the product is made term by term, and
    v^T A_b v = u^T (Y A_b Y^T) u for every term costs nothing more: the derivative of a simple eigenvalue along A_b,
    hence the infinitesimal jackknife of the eigenvalue over the terms.

    Args:
        A: (d, d).
        rows: (k, d), nearly orthonormal.
    """
    products, pieces, weights = torch.zeros_like(rows), [], []
    for weight, term in A.terms() if A.n_terms > 1 else ((1.0, A),):
        part = term.matvecs(rows)
        products.add_(part, alpha=weight)
        pieces.append(gram(rows, part))
        weights.append(weight)
    M, G = gram(rows, products), gram(rows, rows)
    root = torch.linalg.cholesky(G)
    inverse = torch.linalg.inv(root)
    values, U = torch.linalg.eigh(inverse @ ((M + M.T) / 2) @ inverse.T)
    mixing = (U.T @ inverse).flip(0)
    values = values.flip(0)
    vectors, images = combine(mixing, rows), combine(mixing, products)
    residuals = torch.stack(
        [_residual(image, value, y) for image, value, y in zip(images, values, vectors, strict=True)]
    )
    data_error = terms = None
    if len(pieces) > 1:
        per_term = torch.stack([(mixing @ piece * mixing).sum(1) for piece in pieces]).cpu()
        spread = [infinitesimal_jackknife(weights, per_term[:, i]) for i in range(len(rows))]
        data_error = None if None in spread else torch.tensor(spread, dtype=torch.float64)
        terms = (torch.tensor(weights, dtype=torch.float64), per_term)
    return Refined(values.cpu(), vectors, residuals.cpu(), data_error, terms)


def _residual(image: Tensor, value: Tensor, vector: Tensor) -> Tensor:
    rest = (image.double() - value * vector.double())[None]
    return row_dots(rest, rest)[0].sqrt()


def value_errors(values: Tensor, residuals: Tensor, other: Tensor, other_residuals: Tensor, rounding: float) -> Tensor:
    """Return a bound on |lambda - theta| for every pair: min(r, R^2 / gap) + rounding.

    Pairs whose intervals theta -+ r overlap form a cluster with R^2 the sum of their r^2; the gap is the distance from
    the cluster to the nearest other pair or Ritz value, less the residual of that one. The linear bound r is rigorous;
    the quadratic one (Kato-Temple) rests on the Ritz values showing where the rest of the spectrum lies.

    Args:
        values: (k,) of the reported pairs, descending.
        residuals: (k,) of the reported pairs.
        other: (j,) further Ritz values, of the rest of the spectrum.
        other_residuals: (j,) their residuals.
        rounding: error of a Rayleigh quotient from rounding in the product.

    References:
        Parlett (1998), "The Symmetric Eigenvalue Problem", sections 4.5 and 11.5-11.7.
    """
    errors = torch.empty_like(values)
    start = 0
    for stop in range(1, len(values) + 1):
        joined = stop < len(values) and values[stop - 1] - values[stop] <= residuals[stop - 1] + residuals[stop]
        if joined:
            continue
        inside = slice(start, stop)
        rest = torch.cat([values[:start], values[stop:], other])
        reach = torch.cat([residuals[:start], residuals[stop:], other_residuals])
        size = float(residuals[inside].square().sum())
        linear = residuals[inside] if stop - start == 1 else residuals[inside].square().sum().sqrt()
        gap = float(((values[inside, None] - rest).abs() - reach).min()) if len(rest) else float("inf")
        errors[inside] = torch.clamp(torch.as_tensor(linear), max=size / gap) if gap > 0 else linear
        start = stop
    return errors + rounding
