r"""The variance of quadratic forms by the law of their probes, from squared numbers that the products give.

The law of the probes gives the variance of w^T A w as 2 E h, where every product brings one number h >= 0 (see
``linear``): ||A w||^2 for Gaussian probes, ||A w - (w^T A w / d) w||^2 on the sphere, and for Rademacher probes the
squared norms of the n - 1 orthonormal contrasts between the rows w_i * (A w_i).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hessprobe.vectors import row_dots

# Numbers that a row of products is folded to for differences, and the most rows that are kept.
_FOLDED, KEPT = 256, 4096


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


def welch_df(parts: Tensor, count: int) -> float:
    """Return the degrees of freedom of a sum of variances, each measured with ``count`` samples; inf where all are 0.

    For s^2 from n normal numbers E s^4 = sigma^4 (n + 1) / (n - 1), so that sum_b v_b^2 / (n - 1) is too large by that
    factor: nu = (sum v)^2 / (sum v^2 / (n + 1)) - 2 is n - 1 for one variance and, at n = 2, three times what the plain
    formula gives for many.

    References:
        Satterthwaite (1946), with the moments of chi-square put in.
    """
    total, spread = float(parts.sum()), float(parts.square().sum())
    return max(total**2 * (count + 1) / spread - 2, 1.0) if spread > 0 else math.inf


def fold(rows: Tensor) -> Tensor:
    """Return rows (k, d) folded to (k, m), m = min(d, 256), on the CPU: dot products are kept in the mean.

    Every coordinate is added, with a random sign, to one of m sums, the same for all rows of a length: the squared norm
    of a folded row has a relative standard deviation of at most sqrt(2 / m). Rows of up to m entries stay as they are.

    References:
        Charikar, Chen, Farach-Colton (2002), "Finding frequent items in data streams".
    """
    if rows.shape[1] <= _FOLDED:
        return rows.cpu()
    generator = torch.Generator().manual_seed(rows.shape[1])
    where = torch.randint(_FOLDED, (rows.shape[1],), generator=generator).to(rows.device)
    signs = (2 * torch.randint(2, (rows.shape[1],), generator=generator) - 1).to(rows)
    return rows.new_zeros(len(rows), _FOLDED).index_add_(1, where, rows * signs).cpu()


@dataclass
class LawVariance:
    """The variance of w^T A w by the law of the probes, from the products of one term; see the head of this file.

    Attributes:
        law: of the probes.
        total: sum_i e_i, e = w * (A w), fp64 (d,).
        squares: sum_i |e_i|^2.
        forms, form_squares: sums of w_i^T A w_i and of their squares.
        norms: sum_i |A w_i|^2.
        count: probes so far.
        keep: keep folded rows e_i for differences, of Rademacher probes.
        folded: they, block by block.
    """

    law: str
    keep: bool = False
    folded: list[Tensor] = field(default_factory=list)
    total: Tensor | float = 0.0
    squares: float = 0.0
    forms: float = 0.0
    form_squares: float = 0.0
    norms: float = 0.0
    count: int = 0

    def add(self, entries: Tensor, products: Tensor) -> None:
        """Add fp64 rows e_i and the products A w_i, (k, d) each."""
        forms = entries.sum(1)
        self.total = self.total + entries.sum(0)
        self.squares += float(entries.square().sum())
        self.forms += float(forms.sum())
        self.form_squares += float(forms.square().sum())
        self.norms += float(row_dots(products, products).sum())
        self.count += len(entries)
        if self.keep and self.law == "rademacher":
            self.folded.append(fold(entries))

    def variance(self) -> float | None:
        """Return it, >= 0; None before two probes."""
        n = self.count
        if n < 2 or not isinstance(self.total, Tensor):
            return None
        square, d, pairs = self.norms / n, len(self.total), n * (n - 1)
        if self.law == "gaussian":
            return 2 * square
        if self.law == "sphere":
            trace_square = max((self.forms**2 - self.form_squares) / pairs, 0.0)
            return max(2 * d / (d + 2) * (square - trace_square / d), 0.0)
        diagonal = (float(self.total.square().sum()) - self.squares) / pairs
        return max(2 * (square - diagonal), 0.0)
