"""The Frobenius norm from random products, with deflation, pair products, block shares and the data error.

With M = P A P (P the projector off deflated directions, or I) and probes E w w^T = I, two unbiased estimates of
||M||_F^2 come from the same n products z_i = M w_i. With f_i = ||z_i||^2 and p_ij = (w_i^T z_j)^2, i != j,

    L = mean f_i,        R = 2 mean f_i - mean p_ij.

Since E[p_ij | w_i] = f_i, the Hoeffding decomposition of the U-statistic mean p_ij is F2 + 2 (L - F2) + D with D
degenerate, so that R = F2 - D: its variance falls as 1/n^2, Var D = E g^2 / (number of pairs) with
g_ij = p_ij - f_i - f_j + F2, while that of L falls as 1/n. L and R are uncorrelated and are averaged with inverse
variances. Writing Var f for the variance of one f_i,

    Var L = Var f / n,        E g^2 = 2 F2^2 + Var f    (Gaussian probes; an upper bound for the other two laws),

which follows from E (w^T u)^4 = 3 |u|^4, or less for the others. Both are estimated from the f_i alone: a weight that
looked at the p_ij would follow their errors and bias the average. Pairs win once n exceeds about 2 (1 + 2 F2^2 / Var
f), that is early on outlier spectra and never on flat ones. Var f is known to 2 n / (k - 1) degrees of freedom, at
most n - 1, from the kurtosis k of the f_i (``budget.spread_df``); to allow for the estimated weight, they go down to
half of this as R takes over.

The norm is the square root; its error is that of F2 over 2 F (delta method). Its interval has unequal arms. With
Gaussian probes f = sum_i l_i^2 z_i^2 has mean m = F2, variance s^2 = 2 sum_i l_i^4 and third cumulant
kappa = 8 sum_i l_i^6. As sample mean and variance have the covariance kappa / n, s goes with the mean as m^c,

    c = kappa m / (2 s^4) = sum_i l_i^6 sum_i l_i^2 / (sum_i l_i^4)^2 >= 1:

a low value comes with a short error bar, and a symmetric interval misses on that side. The term in z^2 by which
Student's ratio differs from a normal z, -kappa z^2 / (3 s^3 sqrt(n)), vanishes for the power m^(-q), q = 4 c / 3 - 1
(asymptotic). On the four spectra of the tests c is 1.14 to 1.54. The interval is that of 1 / m, right for c = 3/2, see
``Estimate.known_square``: over 2,000 seeds, 18 spectra of 100 dimensions (among them rank one, k^-1.5, k^-3, and six
drawn by seed) and Rademacher probes it covered .933 to .966 with 8 probes, .930 to .963 with 12 and .936 to .965 with
24, where that of m^(-1/2) covered .917 to .961, .919 to .961 and .929 to .963, at 1.00 to 1.10 times its width.

References:
    Hall (1992), "On the removal of skewness by transformation".
    Johnson (1978), "Modified t tests and confidence intervals for asymmetrical populations".
    Satterthwaite (1946), "An approximate distribution of estimates of variance components".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.estimators.budget import Callback, Progress, spread_df
from hessprobe.estimators.xtrace import CoordinateSample, Deflation, block_rows, blocks_of, project
from hessprobe.operators import LinearOperator
from hessprobe.vectors import ProbeStream, gram, row_dots

# Elements of one group of probes whose pairs are used; it depends on d alone, so that results do not depend on memory.
_GROUP = 1 << 26
# Probes of a group up to which the products of pairs are kept one by one.
_KEPT = 2048


@dataclass(frozen=True)
class Combined:
    """An estimate of ||M||_F^2 from both kinds of samples.

    Attributes:
        value: the average of L and R with inverse variances.
        variance: of ``value``.
        df: degrees of freedom.
        weight: share of R.
        single: variance of one f_i.
        pair: second moment of g_ij.
    """

    value: float
    variance: float
    df: float
    weight: float
    single: float
    pair: float


@dataclass(frozen=True)
class Pairs:
    """The pair products of a group of probes.

    Attributes:
        size: number of probes g.
        total: sum of (w_i^T P A P w_j)^2 over i < j.
        values: (g (g - 1) / 2,) the summands, row by row, on the CPU; None beyond 2,048 probes.
    """

    size: int
    total: float
    values: Tensor | None = None


# Probes that are multiplied by groups of examples where these are finer than the batches.
_TOLD = 16


@dataclass(frozen=True)
class SquareSamples:
    """What one run brings.

    Attributes:
        squares: (n,) ||P A P w_i||^2.
        forms: (n,) w_i^T P A P w_i.
        pairs: one a group.
        blocks: (n, L) squared norms of the blocks of A P w_i.
        table: (m, B) unbiased estimates of <P A P, P A_b P> from the first m probes, or None for one term.
        weights: (B,) of the terms.
        products: rows P A P w_i of the last group.
    """

    squares: Tensor
    forms: Tensor
    pairs: list[Pairs]
    blocks: Tensor
    table: Tensor | None
    weights: Tensor
    products: Tensor

    def combined(self) -> Combined:
        """Return the estimate of ||P A P||_F^2."""
        return combine_squares(self.squares, self.pairs)


def group_rows(dim: int) -> int:
    """Return the number of probes whose pairs are used together: 64 M entries, at least two."""
    return max(2, _GROUP // dim)


def pair_count(count: int, group: int) -> float:
    """Return the number of pairs that ``count`` probes in groups of ``group`` make."""
    full, rest = divmod(count, group)
    return full * group * (group - 1) / 2 + rest * (rest - 1) / 2


def combine_squares(squares: Tensor, pairs: list[Pairs]) -> Combined:
    """Return the estimate of F2 from squared norms (n,), n >= 2, and the pair products of consecutive groups."""
    count = len(squares)
    mean, single = float(squares.mean()), float(squares.var())
    moment, n_pairs = 2 * mean**2 + single, sum(p.size * (p.size - 1) / 2 for p in pairs)
    df = spread_df(squares)
    alone = Combined(mean, single / count, df, 0.0, single, moment)
    if n_pairs == 0.0 or single == 0.0:
        return alone
    parts = torch.split(squares, [p.size for p in pairs])
    linear = sum((p.size - 1) * float(part.sum()) for p, part in zip(pairs, parts, strict=True))
    remainder = (linear - sum(p.total for p in pairs)) / n_pairs
    var_single, var_pairs = single / count, moment / n_pairs
    weight = var_single / (var_single + var_pairs)
    value = (1 - weight) * mean + weight * remainder
    if not value > 0:
        return alone
    return Combined(value, weight * var_pairs, df * (1 - weight / 2), weight, single, moment)


def expected_variance(measured: Combined, count: int, group: int) -> float:
    """Return the variance to expect of ``count`` probes, from the moments of a pilot."""
    var_single, n_pairs = measured.single / count, pair_count(count, group)
    if n_pairs == 0.0 or var_single == 0.0:
        return var_single
    var_pairs = measured.pair / n_pairs
    return var_single * var_pairs / (var_single + var_pairs)


def sample_squares(
    A: LinearOperator,
    stream: ProbeStream | None,
    start: int,
    count: int,
    deflated: Deflation | None,
    callback: Callback | None = None,
    parts: LinearOperator | None = None,
) -> SquareSamples:
    """Multiply probes ``start .. start + count - 1`` (unit vectors for ``stream`` None), one pass over terms a group.

    Where ``parts`` are finer than the terms of A, only the first 16 probes are multiplied by them (all unit vectors):
    their products add up to those with A, and so many probes say enough about the spread between terms.

    Args:
        A: the operator.
        stream: of shared probes, or None for the unit vectors: their sums, not means, are then exact.
        start: first probe.
        count: probes n.
        deflated: directions taken out, or None.
        callback: called with a ``Progress`` after each group.
        parts: the same matrix as a sum over groups of examples, for the data error; A itself where None.

    Raises:
        NonFiniteError: a product is nan or infinite.
    """
    groups: list[_Group] = []
    basis = None if deflated is None else deflated.basis
    offset = 0.0 if deflated is None else deflated.squared_norm
    seed = 0 if stream is None else stream.seed
    parts = A if parts is None else parts
    told = count if stream is None or parts.n_terms == A.n_terms else min(count, _TOLD)
    for first, stop in blocks_of(count, group_rows(A.dim)):
        probes = _units(A, first, stop) if stream is None else stream.block(start + first, start + stop)
        rows = max(min(told - first, stop - first), 0)
        groups.append(_group(A, parts, probes, basis, CoordinateSample.plan(parts, rows, seed, first)))
        if callback is not None:
            callback(_progress(groups, offset, stop, count, exact=stream is None))
    squares = torch.cat([part.squares for part in groups])
    if not bool(torch.isfinite(squares).all()):
        raise NonFiniteError(
            "products with the operator must be finite; got nan or inf. "
            "Check parameters, data and loss, or use a wider dtype."
        )
    tables = [part.table for part in groups if part.table is not None]
    return SquareSamples(
        squares=squares,
        forms=torch.cat([part.forms for part in groups]),
        pairs=[part.pairs for part in groups],
        blocks=torch.cat([part.blocks for part in groups]),
        table=torch.cat(tables) if tables else None,
        weights=groups[0].weights,
        products=groups[-1].products,
    )


@dataclass(frozen=True)
class _Group:
    squares: Tensor
    forms: Tensor
    pairs: Pairs
    blocks: Tensor
    table: Tensor | None
    weights: Tensor
    products: Tensor


def _products(A: LinearOperator, V: Tensor) -> Tensor:
    return torch.cat([A.matvecs(V[a:b]) for a, b in blocks_of(len(V), block_rows(A.dim))])


def _group(
    A: LinearOperator, parts: LinearOperator, probes: Tensor, basis: Tensor | None, sample: CoordinateSample
) -> _Group:
    """Multiply probes, the leading ones (as many as ``sample`` has rows) by the terms of ``parts``."""
    inside, told = project(basis, probes), len(sample.index)
    total = torch.zeros_like(probes)
    weights, kept = [], []
    for weight, term in parts.terms() if told else ():
        part = _products(term, inside[:told])
        total[:told].add_(part, alpha=weight)
        weights.append(weight)
        if parts.n_terms > 1:
            kept.append(sample.take(part))
    if told < len(inside):
        total[told:] = _products(A, inside[told:])
    names = list(A.blocks.values())
    sums = [row_dots(total[:, where], total[:, where]) for where in names]
    products = project(basis, total)
    forms = gram(probes, products)
    here = sample.take(products[:told])
    return _Group(
        squares=row_dots(products, products).cpu(),
        forms=forms.diagonal().cpu(),
        pairs=_pairs(forms),
        blocks=torch.stack(sums, dim=1).cpu() if sums else torch.zeros(len(probes), 0, dtype=torch.float64),
        table=torch.stack([sample.dots(here, part) for part in kept], dim=1).cpu() if kept else None,
        weights=torch.tensor(weights, dtype=torch.float64),
        products=products,
    )


def _pairs(forms: Tensor) -> Pairs:
    squares = torch.triu(forms, diagonal=1).square()
    count = len(forms)
    kept = squares[*upper(count)].cpu() if count <= _KEPT else None
    return Pairs(count, float(squares.sum()), kept)


def upper(count: int) -> Tensor:
    """Return the positions (2, count (count - 1) / 2) above the diagonal, row by row."""
    return torch.triu_indices(count, count, offset=1)


def _units(A: LinearOperator, start: int, stop: int) -> Tensor:
    units = torch.zeros(stop - start, A.dim, dtype=A.dtype, device=A.device)
    units[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
    return units


def _progress(parts: list[_Group], offset: float, done: int, count: int, *, exact: bool) -> Progress:
    squares = torch.cat([part.squares for part in parts])
    if exact:
        square = float(squares.sum()) * count / done
        return Progress(done, count, math.sqrt(square), 0.0 if done == count else math.inf)
    if done < 2:
        return Progress(done, count, math.sqrt(offset + float(squares.mean())), math.inf)
    estimate = combine_squares(squares, [part.pairs for part in parts])
    norm = math.sqrt(max(offset + estimate.value, 0.0))
    return Progress(done, count, norm, math.sqrt(estimate.variance) / (2 * norm) if norm else 0.0)
