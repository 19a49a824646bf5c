r"""The variance of a quadratic form from the law of its probes: known from the products far better than from the forms.

For q = w^T A w and z = A w the law of the probe gives Var q, and the n products of a run estimate it without bias
(theorems; d the dimension, w on the sphere of radius sqrt(d)):

    Rademacher    Var q = 2 (||A||_F^2 - sum_k a_kk^2)               = 2 sum_k Var e_k,          e = w * z
    Gaussian      Var q = 2 ||A||_F^2                                = 2 E ||z||^2
    sphere        Var q = 2 d / (d + 2) (||A||_F^2 - (tr A)^2 / d)   = 2 E ||z - (q / d) w||^2

sum_k Var e_k is the mean of n - 1 squared norms of orthonormal contrasts between the rows e_1 .. e_n, so that in all
three cases Var q = 2 E h with m = n or n - 1 numbers h_j >= 0. The sample variance of the q_i fails where few
eigenvalues rule: probes that have not seen these give forms that are both low and calm, and nominal 95 % intervals of 8
probes hold 85 to 91 % of the time. The products see all directions at once.

**Degrees of freedom** (asymptotic). No h varies more than the square of one normal number, of relative variance 2: the
variance is known to at least m degrees of freedom, and on a flat spectrum to far more. The spread of the h_j is shrunk
towards that worst case, which counts as eight of them. Over 4,000 seeds and ten spectra (flat, indefinite, one outlier
of either sign, i^-1.5, i^-3, rank one, nearly diagonal) nominal 95 % intervals covered 94 to 98 % with 8 and with 16
probes, at up to 1.13 and 1.06 times the width of a known variance; with n - 1 degrees of freedom 95 to 99 % at up to
1.21 and 1.09 times.

**Blocks.** With Rademacher probes the sum over a block l of w * (A w) has the variance 2 S - C, S = sum_{k in l} Var
e_k, C the squared norm of the rows of the block outside its own columns: between S and 2 S. C is half the mean of
(g_ij - g_ji)^2, g_ij = sum_{k in l} w_ik z_jk, over the pairs of probes that are multiplied together.

References:
    Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix".
    Satterthwaite (1946), "An approximate distribution of estimates of variance components".
    Charikar, Chen, Farach-Colton (2002), "Finding frequent items in data streams" (``vectors.fold``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hessprobe.vectors import FOLDED, fold_into, gram

# Observations that the worst case counts for in the spread of the h_j.
_PRIOR = 8
# Sample variances that the law's may be, of forms that are known by pairs of probes.
_MOST = 16
# fp64 entries of a block of rows that are alive at a time: what a processor's cache holds, and on an accelerator enough
# to keep it busy.
_PIECE, _DEVICE_PIECE = 1 << 15, 1 << 24
# Samples without skewness that are added to those there are.
_FOR_SKEWNESS = 4


class Variance(NamedTuple):
    """A variance, and the variance that it has itself as an estimate."""

    value: float
    square: float


def law_variance(squares: Tensor) -> Variance:
    """Return the variance of one quadratic form from the numbers h_j (m,), m >= 1; see the head of this file."""
    m, mean = len(squares), float(squares.mean())
    own = float((squares - mean).square().sum())
    # The square of the mean of m squared normal numbers is (m + 2) / m times too large.
    worst = 2 * mean**2 * m / (m + 2)
    return Variance(2 * mean, 4 * (own + _PRIOR * worst) / (m - 1 + _PRIOR) / m)


def welch_df(parts: Tensor, count: int, squares: Tensor | None = None) -> float:
    """Return the degrees of freedom of a sum of variances, each measured with ``count`` samples; inf where all are 0.

    With V the sum and Var V the sum of ``squares``, nu = 2 V^2 / Var V - 2, as E V^2 = (E V)^2 + Var V, and at least
    count - 1. For s^2 from n normal numbers, E s^4 = sigma^4 (n + 1) / (n - 1) makes 2 s^4 / (n + 1) an unbiased Var
    s^2: nu is n - 1 for one variance and, at n = 2, three times what 2 s^4 / (n - 1) gives for many.

    Args:
        parts: (B,) variances.
        count: n >= 2.
        squares: (B,) variances of ``parts``; those of normal samples where None.
    """
    spread = float((2 * parts.square() / (count + 1) if squares is None else squares).sum())
    return max(2 * float(parts.sum()) ** 2 / spread - 2, count - 1.0) if spread > 0 else math.inf


def crossed_variance(crossed: Tensor, diagonals: Tensor) -> float:
    """Return the variance of w^T B w, w Rademacher, from two unbiased estimates of it, with B known by bilinear forms.

    Of E (w_i^T B w_j)^2 = ||B||_F^2 and sum_k b_kk^2, the mean of d_i^T d_j, pairs i != j of probes give the law's
    2 (||B||_F^2 - sum_k b_kk^2). The more of B lies off its diagonal, the better it is known: its weight is half the
    share of ||B||_F^2 that does, the rest is that of the samples w_i^T B w_i. It counts for at most 16 of these. As the
    weight is drawn with it, the whole is some percent high (4 % for n = 8 and a flat spectrum).

    Args:
        crossed: (n, n) forms w_i^T B w_j, n >= 2.
        diagonals: (n, m) rows d_i, of mean diag B or folded so that dot products keep theirs.
    """
    n, own = len(crossed), float(crossed.diagonal().var())
    pairs = n * (n - 1)
    square = float(crossed.square().sum() - crossed.diagonal().square().sum()) / pairs
    inner = float(diagonals.sum(0).square().sum() - diagonals.square().sum()) / pairs
    off = square - inner
    if not off > 0:
        return own
    weight = min(off / square, 1.0) / 2
    return weight * min(2 * off, _MOST * own) + (1 - weight) * own


def shrunk_skewness(samples: Tensor) -> float:
    """Return the skewness of samples (n,) times n / (n + 4), as few tell it badly; 0 without spread and for n < 3."""
    n, deviations = len(samples), samples - samples.mean()
    spread = float(samples.std())
    if n < 3 or not spread > 0:
        return 0.0
    third = float((deviations / spread).pow(3).mean()) * n * n / ((n - 1) * (n - 2))
    return third * n / (n + _FOR_SKEWNESS)


def contrasts(rows: Tensor) -> Tensor:
    """Return n - 1 orthonormal contrasts (n - 1, C) between rows (n, C) (Helmert), exactly 0 where all rows are equal.

    The j-th is sqrt(j / (j + 1)) times the distance of row j, counted from 0, from the mean of those before it. The
    squared norms add up to (n - 1) times the sum of the sample variances of the columns.
    """
    offset = rows[1:] - rows[:1]
    counts = torch.arange(1, len(rows), dtype=rows.dtype, device=rows.device)[:, None]
    before = (offset.cumsum(0) - offset) / counts
    return (offset - before) * (counts / (counts + 1)).sqrt()


def with_prior(variances: Tensor, count: int) -> Tensor:
    """Return variances of entries (d,), each from ``count`` samples, with one degree of freedom from their average.

    An entry with few couplings may show no spread in few probes without being exact. None is called exact unless all
    of them show none, and the average over entries stays as it is.
    """
    return ((count - 1) * variances + variances.mean()) / count


@dataclass(frozen=True)
class Law:
    """What one term's products say of its quadratic forms.

    Attributes:
        variance: of one form.
        blocks: (L,) S of each block for Rademacher probes, or None.
        outside: (L,) C of each block, or None where no two probes were multiplied together.
        folded: (n, m) rows e_i, or None; see ``fold``.
    """

    variance: Variance
    blocks: Tensor | None
    outside: Tensor | None
    folded: Tensor | None

    def bounded(self, variances: Tensor) -> Tensor:
        """Return variances of one block sum each (L,), from the samples' own and what the law leaves of them.

        Where C is not known the samples' own are cut to what lies between S and 2 S.
        """
        if self.blocks is None:
            return variances
        known = variances if self.outside is None else 2 * self.blocks - self.outside
        return torch.minimum(torch.maximum(known, self.blocks), 2 * self.blocks)


class Sums(NamedTuple):
    """Sums of w * z of a block of probes, fp64.

    Attributes:
        total: (k,) over all columns: the quadratic forms.
        blocks: (k, L) over those of each block.
    """

    total: Tensor
    blocks: Tensor


def _pieces(rows: Tensor) -> Iterator[slice]:
    width = (_PIECE if rows.device.type == "cpu" else _DEVICE_PIECE) // len(rows) // FOLDED * FOLDED
    for start in range(0, rows.shape[1], max(width, FOLDED)):
        yield slice(start, min(start + max(width, FOLDED), rows.shape[1]))


class LawSums:
    """Collects the h_j of one term, block of probes by block.

    Args:
        law: of the probes.
        slices: of the blocks.
        keep: keep folded rows of Rademacher probes, for differences.
        most: probes after which no more is learned of the law, only the sums are made; None for no such number.
    """

    def __init__(self, law: str, slices: Sequence[slice] = (), *, keep: bool = False, most: int | None = None) -> None:
        self._law, self._slices, self._keep = law, slices, keep
        self._most = most
        # The first row of entries, and the sum of what all have beyond it.
        self._first, self._running = torch.empty(0), torch.empty(0)
        self._seen, self._pairs = 0, 0
        self._squares: list[Tensor] = []
        self._blocks: list[Tensor] = []
        self._outside: list[Tensor] = []
        self._folded: list[Tensor] = []

    def add(self, probes: Tensor, products: Tensor) -> Sums:
        """Add probes w and products z, (k, d) each, k >= 1, and return the sums of their entries w * z.

        A few thousand columns at a time, which a processor's cache holds in fp64: written out whole, the entries alone
        would take longer than the product of a small network.
        """
        count, dim = probes.shape
        none = torch.zeros(0, dtype=torch.float64, device=probes.device)
        total, blocks = none.new_zeros(count), none.new_zeros(count, len(self._slices))
        learns = self._most is None or self._seen < self._most
        signs = learns and self._law == "rademacher"
        # Of the contrasts, in all and within blocks.
        squares, within = none.new_zeros(count), none.new_zeros(count, len(self._slices))
        folded = none.new_zeros(count, min(dim, FOLDED))
        if signs and self._seen == 0:
            self._first, self._running = none.new_empty(dim), none.new_zeros(dim)
        for where in _pieces(probes):
            entries = probes[:, where].double() * products[:, where].double()
            total += entries.sum(1)
            self._into(blocks, entries, where)
            if not signs:
                continue
            if self._keep:
                fold_into(folded, entries, where, dim)
            rows = self._contrasts(entries, where)
            squares += rows.sum(1)
            self._into(within, rows, where)
        if signs:
            # The very first row has nothing before it.
            new = slice(1 if self._seen == 0 else 0, None)
            self._squares.append(squares[new])
            if self._slices:
                self._blocks.append(within[new])
            self._seen += count
            self._add_outside(probes, products)
            if self._keep:
                self._folded.append(folded.cpu())
        elif learns:
            self._squares.append(self._lengths(probes, products, total))
            self._seen += count
        return Sums(total, blocks)

    def _into(self, sums: Tensor, rows: Tensor, where: slice) -> None:
        """Add the columns of each block that are among ``where`` to its sum."""
        for index, block in enumerate(self._slices):
            low, high = max(block.start, where.start), min(block.stop, where.stop)
            if low < high:
                sums[:, index] += rows[:, low - where.start : high - where.start].sum(1)

    def _contrasts(self, entries: Tensor, where: slice) -> Tensor:
        """Return the squares of what rows have beyond the mean of those before, scaled, and go on to their sum.

        Distances are from the first row, so that equal rows have none at all.
        """
        if self._seen == 0:
            self._first[where] = entries[0]
        rows, running = entries - self._first[where], self._running[where]
        for count, row in enumerate(rows, start=self._seen):
            before = running / max(count, 1)
            running += row
            row.sub_(before).square_().mul_(count / (count + 1))
        return rows

    def _lengths(self, probes: Tensor, products: Tensor, forms: Tensor) -> Tensor:
        """Return ||z||^2, of probes on the sphere ||z - (q / d) w||^2, (k,)."""
        share = (forms / probes.shape[1] if self._law == "sphere" else torch.zeros_like(forms))[:, None]
        found = torch.zeros_like(forms)
        for where in _pieces(probes):
            found += (products[:, where].double() - share * probes[:, where].double()).square_().sum(1)
        return found

    def _add_outside(self, probes: Tensor, products: Tensor) -> None:
        if not self._slices or len(probes) < 2:
            return
        found = []
        for where in self._slices:
            forms = gram(probes[:, where], products[:, where])
            found.append((forms - forms.T).square().sum() / 4)
        self._outside.append(torch.stack(found))
        self._pairs += len(probes) * (len(probes) - 1) // 2

    def result(self) -> Law | None:
        """Return what has been found; None before two probes."""
        squares = torch.cat(self._squares) if self._squares else torch.zeros(0)
        if len(squares) < (1 if self._law == "rademacher" else 2):
            return None
        blocks = torch.cat(self._blocks).mean(0) if self._blocks else None
        outside = torch.stack(self._outside).sum(0) / self._pairs if self._outside else None
        return Law(law_variance(squares), blocks, outside, torch.cat(self._folded) if self._folded else None)
