"""One sampling loop for everything linear in the operator: trace, diagonal, the trace of each block.

For A = sum_b c_b A_b and probes w with E w w^T = I, each term may use probes of its own:

    T = sum_b c_b (1/n) sum_k w_bk^T A_b w_bk,        E T = tr A,        Var T = sum_b c_b^2 s_b^2 / n,

with s_b^2 the variance of one quadratic form of A_b. A pass with fresh probes costs what a pass with one shared probe
costs; its variance is smaller by 2 sum_{b != b'} c_b c_b' <offdiag A_b, offdiag A_b'> / n (Rademacher). The variances
s_b^2 are estimated term by term and pooled, which gives the error about B times the degrees of freedom of n passes
(Welch-Satterthwaite). The diagonal and the block traces come from w * (A w) in place of w^T A w, at no further product.

The variances s_b^2 come from the law of the probes and the products, see ``law``, or from the samples where only
quadratic forms were made.

References:
    Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix".
    Bekas, Kokiopoulou, Saad (2007), "An estimator for the diagonal of a matrix".
    Satterthwaite (1946), "An approximate distribution of estimates of variance components".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.estimators.budget import Callback, Progress
from hessprobe.estimators.law import Law, LawSums, welch_df, with_prior
from hessprobe.estimators.xtrace import block_rows, blocks_of, project, sketch_fits
from hessprobe.operators import LinearOperator
from hessprobe.vectors import ProbeStream

# Rows of products, folded, that are kept at most for differences.
_KEPT = 4096
# Probes of all terms together, and of each, that the variance of one probe is learned from: by the law of the probes so
# many know it to a few percent, and each takes as long as a tenth of a product of a transformer of 800,000 parameters.
_LEARNED, _FEWEST_LEARNED = 256, 8


@dataclass
class Pooled:
    """A weighted sum of per-term means, with pooled variance, filled term by term.

    Attributes:
        mean: sum_b c_b m_b.
        variance: sum_b c_b^2 s_b^2 / n.
        spread: sum_b (c_b^2 s_b^2 / n)^2 / (n + 1), for the degrees of freedom.
    """

    mean: Tensor
    variance: Tensor
    spread: Tensor

    @classmethod
    def zeros(cls, size: int, device: torch.device) -> Pooled:
        """Return an empty sum of ``size`` numbers."""
        return cls(*(torch.zeros(size, dtype=torch.float64, device=device) for _ in range(3)))

    def add(self, weight: float, mean: Tensor, variance: Tensor, count: int) -> None:
        """Add a term: its weight, sample means and sample variances (ddof 1), each (size,), of ``count`` samples."""
        self.mean.add_(mean, alpha=weight)
        part = variance * (weight * weight / count)
        self.variance.add_(part)
        self.spread.add_(part.square() / (count + 1))

    @property
    def std_error(self) -> Tensor:
        """Standard errors of ``mean``."""
        return self.variance.sqrt()

    @property
    def df(self) -> Tensor:
        """Welch-Satterthwaite degrees of freedom, see ``welch_df``; inf where there is no spread."""
        return torch.where(self.spread > 0, (self.variance.square() / self.spread - 2).clamp_min(1.0), math.inf)


@dataclass
class Series:
    """Running sums of samples (size,) of one term, shifted by the first so that constant samples have no variance."""

    shift: Tensor | None = None
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    count: int = 0

    def add(self, samples: Tensor) -> None:
        """Add fp64 samples (k, size)."""
        if self.shift is None:
            self.shift = samples[0].clone()
        offset = samples - self.shift
        self.total = self.total + offset.sum(0)
        self.squares = self.squares + offset.square_().sum(0)
        self.count += samples.shape[0]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return sample mean and variance (ddof 1), each (size,)."""
        if self.shift is None or self.count < 2:
            raise ValueError(f"samples must be two or more; got {self.count}. One sample has no variance.")
        mean = self.total / self.count
        variance = (self.squares - self.count * mean**2) / (self.count - 1)
        return self.shift + mean, torch.as_tensor(variance).clamp_min(0.0)


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        count: passes n >= 2; each multiplies one fresh probe by every term.
        seed, law, stream: of the probes.
        basis: deflated directions (k, d), or None; samples are then of P A P.
        diagonal: keep per-entry sums, fp64 memory of 5 d.
        vectors: form w * (A w) for block sums even where there is no ``diagonal``; where the operator has no blocks
            only quadratic forms are asked of it.
        paired: make products with the surrogate, not quadratic forms, for the variance that the law of the probes
            gives; it is then subtracted inside blocks and diagonal as well.
        keep: keep probes and products of an operator of one term, where products are made.
    """

    count: int
    seed: int
    law: str = "rademacher"
    stream: str = "probe"
    basis: Tensor | None = None
    diagonal: bool = False
    vectors: bool = False
    paired: bool = False
    keep: bool = False


@dataclass
class LinearSamples:
    """What one run of the loop brings.

    Attributes:
        weights: (B,) term weights.
        raw: (B, n) quadratic forms of P A_b P.
        law: (B,) variances of one form by the law of the probes, and the variances of these; None without products.
        paired_law: the same of A minus surrogate, or None.
        folded: (B, n, m) rows e_i of Rademacher probes folded to m numbers, see ``fold``, or None where they are many.
        paired_folded: the same of A minus surrogate, or None.
        surrogate: (B, n) quadratic forms of the surrogate's terms with the same probes, or None.
        blocks: pooled block sums (L,), in the order of ``A.blocks``; of A minus surrogate where ``paired``.
        diagonal: pooled entries (d,), or None; of A minus surrogate where ``paired``.
        kept: probes and products (n, d) of one term, or None.
    """

    weights: Tensor
    raw: Tensor
    surrogate: Tensor | None
    blocks: Pooled
    diagonal: Pooled | None
    names: tuple[str, ...] = field(default_factory=tuple)
    law: tuple[Tensor, Tensor] | None = None
    paired_law: tuple[Tensor, Tensor] | None = None
    folded: Tensor | None = None
    paired_folded: Tensor | None = None
    kept: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """Passes n."""
        return self.raw.shape[1]

    def checked(self) -> LinearSamples:
        """Return the samples.

        Raises:
            NonFiniteError: one of them is nan or infinite.
        """
        if not bool(torch.isfinite(self.raw).all() and torch.isfinite(self.values(True)).all()):
            raise NonFiniteError(
                "products with the operator must be finite; got nan or inf. "
                "Check parameters, data and loss, or use a wider dtype."
            )
        return self

    def skewness(self, controlled: bool) -> float:
        """Return the skewness of the deviations from the terms' means, weighted as in the sum; 0 without any."""
        samples = self.values(controlled)
        deviations = self.weights[:, None] * (samples - samples.mean(1, keepdim=True))
        spread = float(deviations.square().mean())
        return float(deviations.pow(3).mean()) / spread**1.5 if spread > 0 else 0.0

    def values(self, controlled: bool) -> Tensor:
        """Return the samples (B, n), minus those of the surrogate where ``controlled``."""
        return self.raw - self.surrogate if controlled and self.surrogate is not None else self.raw

    def pooled(self, controlled: bool) -> tuple[float, float, float]:
        """Return value, standard error and degrees of freedom of the sampled trace."""
        return pooled_sum(self.weights, self.values(controlled), self.variances(controlled), self._law(controlled))

    def _law(self, controlled: bool) -> tuple[Tensor, Tensor] | None:
        return self.paired_law if controlled and self.surrogate is not None else self.law

    def variances(self, controlled: bool) -> Tensor:
        """Return the variance of one form of each term (B,): the law's where it is known, else that of the samples."""
        known = self._law(controlled)
        return self.values(controlled).var(1) if known is None else known[0]

    def entries(self, controlled: bool) -> Tensor | None:
        """Return the folded rows behind ``variances``, or None."""
        return self.paired_folded if controlled and self.surrogate is not None else self.folded

    def knows_law(self, controlled: bool) -> bool:
        """Return whether ``variances`` come from the law."""
        return self._law(controlled) is not None


def pooled_sum(
    weights: Tensor, samples: Tensor, variances: Tensor, law: tuple[Tensor, Tensor] | None = None
) -> tuple[float, float, float]:
    """Return sum_b c_b mean_b with its pooled standard error and degrees of freedom.

    Args:
        weights: (B,).
        samples: (B, n), n >= 2.
        variances: (B,) of one sample.
        law: what the law of the probes says of these, and the variances that they have as estimates, or None.
    """
    count = samples.shape[1]
    shares = weights.square() / count
    parts, squares = shares * variances, None if law is None else shares.square() * law[1]
    value = float((weights * samples.mean(1)).sum())
    return value, math.sqrt(float(parts.sum())), welch_df(parts, count, squares)


def sample_linear(
    A: LinearOperator,
    how: Sampling,
    *,
    surrogate: LinearOperator | None = None,
    offset: float = 0.0,
    callback: Callback | None = None,
) -> LinearSamples:
    """Run the loop: one pass over ``A.terms()``, all probes of a term in blocks.

    Args:
        A: the operator.
        how: see ``Sampling``.
        surrogate: sampled with the same probes; its terms match those of ``A`` one to one.
        offset: known part of the trace, for the running value.
        callback: called with a ``Progress`` (in passes) after each block of products.

    Returns:
        The samples.

    Raises:
        NonFiniteError: a product is nan or infinite.
        ValueError: terms of ``A`` and ``surrogate`` that do not match.
    """
    names = tuple(A.blocks)
    blocks = Pooled.zeros(len(names), A.device)
    diagonal = Pooled.zeros(A.dim, A.device) if how.diagonal else None
    weights: list[float] = []
    raw: list[Tensor] = []
    control: list[Tensor] = []
    seen: list[float] = []
    laws: list[Law | None] = []
    paired_laws: list[Law | None] = []
    noise = 0.0
    kept: list[tuple[Tensor, Tensor]] = []
    # Not enumerate, which holds terms while it asks for the next.
    for weight, term, twin in _paired_terms(A, surrogate):
        walk = _Term(A, (weight, term, twin), how, len(weights))
        for stop in walk.run():
            if callback is not None:
                callback(_progress([*seen, walk.part()], walk, noise, (A.n_terms, stop, how.count), offset))
        seen.append(walk.part())
        kept += walk.kept
        noise += weight**2 * float(walk.samples().var()) / how.count
        law, paired_law = walk.law.result(), walk.paired_law.result()
        laws.append(law)
        paired_laws.append(paired_law)
        weights.append(weight)
        raw.append(torch.cat(walk.raw).cpu())
        if twin is not None:
            control.append(torch.cat(walk.control).cpu())
        if walk.blocks.count:
            mean, variance = walk.blocks.moments()
            used = paired_law if twin is not None and how.paired else law
            blocks.add(weight, mean, variance if used is None else used.bounded(variance), how.count)
        if diagonal is not None:
            mean, variance = walk.entries.moments()
            diagonal.add(weight, mean, with_prior(variance, how.count), how.count)
        # The next terms are made without these.
        del walk, term, twin
    samples = LinearSamples(
        torch.tensor(weights, dtype=torch.float64),
        torch.stack(raw),
        torch.stack(control) if control else None,
        blocks,
        diagonal,
        names,
        law=_variances(laws),
        paired_law=_variances(paired_laws),
        folded=_folded(laws),
        paired_folded=_folded(paired_laws),
        kept=(torch.cat([w for w, _ in kept]), torch.cat([z for _, z in kept])) if kept else None,
    )
    return samples.checked()


def _variances(laws: list[Law | None]) -> tuple[Tensor, Tensor] | None:
    known = [law.variance for law in laws if law is not None]
    if len(known) < len(laws):
        return None
    table = torch.tensor(known, dtype=torch.float64)
    return table[:, 0], table[:, 1]


def _folded(laws: list[Law | None]) -> Tensor | None:
    rows = [law.folded for law in laws if law is not None and law.folded is not None]
    return torch.stack(rows) if len(rows) == len(laws) else None


class _Term:
    """The probes of one term, block by block."""

    def __init__(
        self, A: LinearOperator, pair: tuple[float, LinearOperator, LinearOperator | None], how: Sampling, index: int
    ) -> None:
        self.weight, self.term, self.twin = pair
        self.how, self.index, self.cheap_forms = how, index, A.cheap_forms
        # Those of several terms are of use to nobody.
        self.keeps = how.keep and A.n_terms == 1 and sketch_fits(A, how.count)
        self.slices = list(A.blocks.values()) if how.vectors or how.diagonal else []
        self.stream = ProbeStream(A.dim, how.seed, how.law, A.dtype, A.device, how.stream)
        self.raw: list[Tensor] = []
        self.control: list[Tensor] = []
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.blocks, self.entries = Series(), Series()
        keep = how.count * A.n_terms <= _KEPT
        most = max(_FEWEST_LEARNED, -(-_LEARNED // A.n_terms))
        self.law, self.paired_law = (LawSums(how.law, self.slices, keep=keep, most=most) for _ in range(2))

    def samples(self) -> Tensor:
        """Return the values so far, minus those of the surrogate where there is one."""
        return torch.cat(self.raw) - (torch.cat(self.control) if self.control else 0.0)

    def part(self) -> float:
        """Return the weighted mean of the values so far."""
        return self.weight * float(self.samples().mean())

    def run(self) -> Iterator[int]:
        """Sample all probes; yield after each block how many are done."""
        for start, stop in blocks_of(self.how.count, block_rows(self.stream.dim)):
            probes = self.stream.block(start, stop, term=self.index)
            self._block(probes, project(self.how.basis, probes))
            yield stop

    def _block(self, probes: Tensor, inside: Tensor) -> None:
        how, twin = self.how, self.twin
        if self.cheap_forms and not (how.diagonal or self.slices or (how.paired and twin is not None)):
            self.raw.append(self.term.quadratic_forms(inside))
            if twin is not None:
                self.control.append(twin.quadratic_forms(inside))
            return
        products = project(how.basis, self.term.matvecs(inside))
        sums = self.law.add(probes, products)
        self.raw.append(sums.total)
        if self.keeps:
            self.kept.append((probes, products))
        if twin is not None and how.paired:
            products = products - project(how.basis, twin.matvecs(inside))
            own = sums.total
            sums = self.paired_law.add(probes, products)
            self.control.append(own - sums.total)
        elif twin is not None:
            self.control.append(twin.quadratic_forms(inside))
        if self.slices:
            self.blocks.add(sums.blocks)
        if how.diagonal:
            self.entries.add(probes.double() * products.double())


def _paired_terms(
    A: LinearOperator, surrogate: LinearOperator | None
) -> Iterator[tuple[float, LinearOperator, LinearOperator | None]]:
    if surrogate is None:
        for weight, term in A.terms():
            yield weight, term, None
            del term
        return
    # Not zip, which holds terms while it asks for the next.
    twins = iter(surrogate.terms())
    for weight, term in A.terms():
        other, twin = next(twins, (math.nan, None))
        if not math.isclose(weight, other, rel_tol=1e-9):
            raise ValueError(
                f"surrogate terms must carry the weights of the operator's terms; got {other} for {weight}. "
                "Make both from the same risk."
            )
        yield weight, term, twin
        del term, twin
    if next(twins, None) is not None:
        raise ValueError(f"surrogate must have as many terms as the operator, {A.n_terms}; got more.")


def _progress(seen: list[float], walk: _Term, noise: float, where: tuple[int, int, int], offset: float) -> Progress:
    """Return what is known: terms seen stand for those to come, as a random sample of all terms would.

    The error has two parts: that of the probes, known from the spread within each term seen and carried over to the
    terms to come, and that of the terms not seen yet, from the spread between terms (with the factor of a finite
    population, which leaves none of it at the end).
    """
    n_terms, stop, count = where
    parts, known = torch.tensor(seen, dtype=torch.float64), len(seen)
    own = walk.weight**2 * float(walk.samples().var()) / stop if stop > 1 else math.inf
    probes = (noise + own) * (n_terms / known) ** 2
    between = 0.0
    if known < n_terms:
        spread = float(parts.var()) if known > 1 else math.inf
        between = n_terms**2 * spread / known * (1 - known / n_terms)
    done = ((known - 1) * count + stop) / n_terms
    return Progress(done, count, offset + n_terms * float(parts.mean()), math.sqrt(probes + between))
