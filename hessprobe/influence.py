"""The samples behind an estimate, kept so that two estimates from the same probes can be subtracted sample by sample.

An estimate that averages over random probes is, to first order, the truth plus means of samples of mean zero. Two
estimates from the same probes share these, and the error of their difference follows from the differences of the
samples, whatever the correlation between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batches:
    """What each probe says of each batch of data.

    Attributes:
        weights: (B,) shares of the batches, fp64.
        table: (n, B) derivatives of the value along the operator of each batch; their weighted sum over batches moves
            with the value.
        shared: True where one probe served all batches, False where every batch had probes of its own.
    """

    weights: Tensor
    table: Tensor
    shared: bool

    def scaled(self, factor: float) -> Batches:
        """Return those of ``factor`` times the value."""
        return Batches(self.weights, self.table * factor, self.shared)


@dataclass(frozen=True, eq=False)
class Influence:
    """Samples whose means make up the error of a value.

    With rows h_s (n,) and pair terms g_ij, both up to constants in h,

        value - truth = sum_s mean_k (h_sk - E h_s) + mean_{i<j} g_ij,

    the rows independent of each other, the g_ij of mean zero and uncorrelated with each other and with the rows.

    Attributes:
        rows: by name of the stream of probes, (S, n) fp64, n >= 2.
        pairs: by name of the stream, (m,) fp64, i < j.
        entries: by name of the stream, (S, n, m) fp64: of quadratic forms of Rademacher probes the products w * (A w),
            folded to m numbers (``law.fold``). Twice the sum over these of their sample variances is the variance of
            h_s by the law of the probes, far better known than from the rows.
        batches: for the error from the data being a sample, or None.
        crossed: by name of the stream, (n, n) fp64: of rows (1, n) that are themselves quadratic forms w^T B w of
            Rademacher probes, the bilinear forms w_i^T B w_j.
        diagonals: by name of the same streams, (n, m) fp64: vectors with the diagonal of B as their mean, folded.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: Mapping[str, Tensor] = field(default_factory=dict)
    batches: Batches | None = None
    entries: Mapping[str, Tensor] = field(default_factory=dict)
    crossed: Mapping[str, Tensor] = field(default_factory=dict)
    diagonals: Mapping[str, Tensor] = field(default_factory=dict)

    def scaled(self, factor: float) -> Influence:
        """Return the samples of ``factor`` times the value."""
        kinds = (self.rows, self.pairs, self.entries, self.crossed, self.diagonals)
        rows, pairs, *more = ({name: values * factor for name, values in kind.items()} for kind in kinds)
        return Influence(rows, pairs, None if self.batches is None else self.batches.scaled(factor), *more)

    def joined(self, other: Influence) -> Influence:
        """Return the samples of the sum of two values that share no stream; nothing is said of batches.

        Raises:
            ValueError: they share one.
        """
        if set(self.rows) & set(other.rows):
            raise ValueError(f"streams must differ; got {sorted(self.rows)} twice. Sample with other streams.")
        return Influence(
            {**self.rows, **other.rows},
            {**self.pairs, **other.pairs},
            entries={**self.entries, **other.entries},
            crossed={**self.crossed, **other.crossed},
            diagonals={**self.diagonals, **other.diagonals},
        )
