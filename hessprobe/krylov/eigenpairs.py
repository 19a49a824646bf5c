"""What ``eigsh`` returns: eigenpairs, each with its residual, the error of its value, and bounds on the spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks, display
from hessprobe.estimate import GROUPS, Batches, ErrorParts, Estimate, Influence, data_error
from hessprobe.krylov.certificates import Ends, SpectrumBounds
from hessprobe.operators import LinearOperator
from hessprobe.vectors import Slice, combine, combine_, gram

# Entries of which a residual is summed at a time.
_PIECE = 1 << 18


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
        intervals: one for each eigenvalue, which it lies in with probability ``confidence`` over the random start; see
            ``krylov.certificates``. Of an end that was asked for it is (Ritz value, bound): no eigenvalue lies above.
        exact: every eigenvalue of the operator was found (or the whole space was spanned); errors are rounding.
        bounds: on the spectrum, each of which holds with probability ``confidence``.
        confidence: as asked for.
        which: as asked for.
        matvecs: products counted.
        method: the algorithm.
        seconds: wall-clock time.
        flags: ``"not-converged"``: some pair is not; ``"multiplicity-unverified"``: further copies of the reported
            eigenvalues were not excluded within the products allowed; ``"rounding-limited"``: some pair converged to
            the noise of the products, not to ``tol``; ``"wide-bracket"``: some interval is wider than ``rtol`` asks;
            ``"warm-start"``.
        terms: weights (B,) of the terms and v^T A_b v (B, k') of every vector, or None for an operator of one term.

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0], dtype=torch.float64)))
        >>> pairs = hp.eigsh(A, k=2, which="largest", seed=0)
        >>> pairs.values.round(decimals=6), tuple(pairs.vectors.shape), bool(pairs.converged.all())
        (tensor([4., 2.], dtype=torch.float64), (2, 4), True)
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    intervals: Ends
    exact: bool
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

    def to_dict(self) -> dict[str, Any]:
        """Return values, intervals, residuals and cost as plain data for JSON, without the vectors."""
        names = ("values", "residuals", "converged", "exact", "confidence", "which", "matvecs", "method", "seconds")
        ends = {"low": self.intervals.low, "high": self.intervals.high}
        known = {name: getattr(self, name) for name in (*names, "flags")}
        found: dict[str, Any] = display.plain({**known, "intervals": ends, "data_error": self.data_error})
        return found

    def plot(self) -> Any:
        """Return the axes of a matplotlib figure of the eigenvalues with their errors, and the residuals below.

        Raises:
            ValueError: fewer than two.
        """
        return display.draw(self)

    def _repr_html_(self) -> str:
        columns = (self.values, self.intervals.low, self.intervals.high, self.residuals)
        rows = [
            (i, f"{value:.6g}", f"{low:.6g} to {high:.6g}", f"{residual:.2g}")
            for i, (value, low, high, residual) in enumerate(zip(*(each.tolist() for each in columns), strict=True))
        ]
        header = ("", "eigenvalue", f"{100 * self.confidence:.4g}% interval", "residual")
        caption = f"{len(rows)} of {self.vectors.shape[1]} eigenvalues, {self.matvecs:g} products"
        return display.html_table(rows, header=header, caption=caption)

    @property
    def errors(self) -> Tensor:
        """The larger arm of each interval, (k',) fp64: |lambda - theta| is at most that."""
        return torch.maximum(self.intervals.high - self.values, self.values - self.intervals.low)

    def estimate(self, i: int) -> Estimate:
        """Return eigenvalue ``i`` (0 the largest reported, -1 the smallest) as an ``Estimate``.

        The value is the Ritz value. The kind is ``"exact"`` where the whole space was spanned, ``"bracket"`` where the
        interval has two ends, which hold the eigenvalue with probability ``confidence``; else ``"lower bound"`` at the
        top (no Rayleigh quotient exceeds lambda_max) or ``"upper bound"`` at the bottom. ``details["residual"]`` is
        ||A y - theta y||, within which *some* eigenvalue lies; the data part is the jackknife over terms.

        Raises:
            TypeError, ValueError: ``i`` is not an integer in [-k', k').
        """
        count = len(self.values)
        index = checks.positive_int("i", i, minimum=-count, hint=f"There are {count} pairs, counted from 0.")
        if index >= count:
            raise ValueError(f"i must be an integer < {count}; got {i}. There are {count} pairs, counted from 0.")
        index %= count
        low, high = float(self.intervals.low[index]), float(self.intervals.high[index])
        bounded = math.isfinite(low) and math.isfinite(high)
        kind = "bracket" if bounded else "lower bound" if math.isfinite(low) else "upper bound"
        data = influence = None
        if self.terms is not None:
            weights, forms = self.terms
            data = data_error(weights, forms[:, index])
            influence = Influence(batches=Batches(weights, forms[None, :, index], shared=True))
        residual = float(self.residuals[index])
        return Estimate(
            value=float(self.values[index]),
            errors=ErrorParts(solver=float(self.errors[index]) if bounded else residual).with_data(data),
            matvecs=self.matvecs,
            method=self.method,
            kind="exact" if self.exact else kind,
            bracket=(low, high) if bounded and not self.exact else None,
            bracket_confidence=self.confidence,
            flags=self.flags,
            seconds=self.seconds,
            details={"residual": residual},
            influence=influence,
        )

    @property
    def data_error(self) -> Tensor | None:
        """(k',) fp64 standard errors of the values from the data being a sample; None for an operator of one term."""
        if self.terms is None:
            return None
        weights, forms = self.terms
        found = [data_error(weights, column) for column in forms.T]
        return torch.tensor([math.nan if one is None else one.std_error for one in found], dtype=torch.float64)


@dataclass(frozen=True)
class Refined:
    """Rayleigh-Ritz on given rows with true products; see ``refine``."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    terms: tuple[Tensor, Tensor] | None = None


def refine(A: LinearOperator, rows: Tensor, *, by_terms: bool = True) -> Refined:
    """Return the eigenpairs of A in the span of ``rows``, with true residuals: one product a row.

    Solves M u = theta G u with M = Y A Y^T and G = Y Y^T in fp64, so that rows orthonormal only to their own precision
    do no harm. For an operator of several terms A = sum_b w_b A_b the product is made term by term, and
    v^T A_b v = u^T (Y A_b Y^T) u for every term costs nothing more: the derivative of a simple eigenvalue along A_b,
    hence the infinitesimal jackknife of the eigenvalue over the terms. Where these are fewer than 16 batches that can
    be cut, the terms are groups of examples (``LinearOperator.grouped``).

    Args:
        A: (d, d).
        rows: (k, d), nearly orthonormal; where ranks make the products together, this one's part of them.
        by_terms: False: products are made at once, and nothing is said of terms.
    """
    held = Slice(A.dim, A.ranks)
    products, pieces, weights = torch.zeros_like(rows), [], []
    whole = held.whole(rows)
    summed = A.grouped(GROUPS) if by_terms else A
    for weight, term in summed.terms() if by_terms and summed.n_terms > 1 else ((1.0, A),):
        part = held.of(term.matvecs(whole))
        products.add_(part, alpha=weight)
        pieces.append(gram(rows, part))
        weights.append(weight)
        del part, term
    del whole
    M, G, *pieces = held.summed(torch.stack([gram(rows, products), gram(rows, rows), *pieces]))
    root = torch.linalg.cholesky(G)
    inverse = torch.linalg.inv(root)
    values, U = torch.linalg.eigh(inverse @ ((M + M.T) / 2) @ inverse.T)
    values, *coefficients = held.first(torch.cat([values[None], inverse.T @ U]).flip(1), A.device)
    mixing = torch.stack(coefficients, 1)
    # In place, but not over the rows that were handed in.
    vectors, images = combine(mixing, rows), products
    combine_(mixing, images, images.dtype)
    squares = [_squared_residual(image, value, y) for image, value, y in zip(images, values, vectors, strict=True)]
    residuals = held.summed(torch.stack(squares)).sqrt()
    terms = None
    if len(pieces) > 1:
        per_term = torch.stack([(mixing @ piece * mixing).sum(1) for piece in pieces]).cpu()
        terms = (torch.tensor(weights, dtype=torch.float64), per_term)
    return Refined(values.cpu(), held.whole(vectors), residuals.cpu(), terms)


def _squared_residual(image: Tensor, value: Tensor, vector: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=image.device)
    for own, y in zip(image.split(_PIECE), vector.split(_PIECE), strict=True):  # type: ignore[no-untyped-call]  # untyped in torch
        total += (own.double() - value * y.double()).square().sum()
    return total
