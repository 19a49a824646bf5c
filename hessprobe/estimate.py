"""The answer of every estimator: a value, the parts of its error, and what it cost.

The infinitesimal jackknife: the sampling error of a number that is a weighted sum over batches of data.

The samples behind an estimate, kept so that two estimates from the same probes can be subtracted sample by sample.

An estimate that averages over random probes is, to first order, the truth plus means of samples of mean zero. Two
estimates from the same probes share these, and the error of their difference follows from the differences of the
samples, whatever the correlation between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from hessprobe import checks, display
from hessprobe.errors import about

# Groups of examples that a data error rests on at least, where the examples can be told apart: with 15 degrees of
# freedom the error is known to 18 %, and the 95 % quantile is 9 % above the normal one.
GROUPS = 16


class DataError(NamedTuple):
    """The sampling error of a number that rests on groups of examples.

    Attributes:
        std_error: in the unit of the number.
        df: its degrees of freedom.
    """

    std_error: float
    df: float

    def scaled(self, factor: float) -> DataError:
        """Return the error of ``factor`` times the number."""
        return DataError(self.std_error * abs(factor), self.df)


def data_error(
    weights: Sequence[float] | Tensor, values: Sequence[float] | Tensor, noise: float = 0.0
) -> DataError | None:
    """Return the sampling error of sum_b w_b x_b where each x_b is known up to random noise.

    Where noise is to be expected to add ``noise`` to sum_b w_b^2 (x_b - m)^2, it is taken off: with s^2 the square of
    ``infinitesimal_jackknife`` and f its factor, what is left is s^2 - f * noise, unbiased, and its degrees of freedom
    are those of s^2 times the squared share that is left.

    Args:
        weights: (B,) positive; the shares of the groups.
        values: (B,) finite; x_b.
        noise: >= 0.

    Returns:
        The error, or None for a single group, for weights that are not all positive, and where the noise drowns the
        spread between groups.
    """
    w = _vector("weights", weights)
    total = infinitesimal_jackknife(weights, values) if bool((w > 0).all()) else None
    if total is None:
        return None
    df = jackknife_df(weights)
    if noise == 0.0:
        return DataError(total, df)
    left = 1.0 - correction(w) * noise / total**2 if total > 0 else 0.0
    return DataError(total * math.sqrt(left), df * left**2) if left > 0 else None


def infinitesimal_jackknife(weights: Sequence[float] | Tensor, values: Sequence[float] | Tensor) -> float | None:
    """Return the standard error of sum_b w_b x_b, the B batches being a random sample of all batches.

    With the weighted mean m = (sum_b w_b x_b) / (sum_b w_b) the influence of batch b on the sum is w_b (x_b - m), and

        se^2 = f * sum_b w_b^2 (x_b - m)^2,        f = 1 / (1 - sum_b (w_b / sum_a w_a)^2).

    Theorem: where w_b = n_b / N and x_b is a mean over n_b independent examples of one law, se^2 is unbiased for the
    variance of m. For equal weights 1/B, f = B / (B - 1), and this is the textbook s^2 / B; with that factor the error
    from two batches of 256 and 17 examples would be half of what it is. The formula serves every functional F of an
    operator A = sum_b w_b A_b to first order (asymptotically in N), with x_b the derivative of F along A_b: v^T A_b v
    for a simple eigenvalue with unit eigenvector v.

    Args:
        weights: (B,) finite; the share of each batch, summing to 1 for a mean over the data.
        values: (B,) finite; x_b.

    Returns:
        The standard error in the unit of ``values``, or None for fewer than two batches (or weights that sum to 0, or
        of which one alone is not 0), where nothing can be said.

    Raises:
        ValueError: different lengths, or entries that are not finite.

    References:
        Efron (1982), "The Jackknife, the Bootstrap and Other Resampling Plans"; Cochran (1977), "Sampling Techniques",
        on ratio estimators; Satterthwaite (1946), "An approximate distribution of estimates of variance components".
    """
    w, x = _vector("weights", weights), _vector("values", values)
    if w.shape != x.shape:
        raise ValueError(
            f"values must be as many as weights; got {x.size} and {w.size}. Give one value for each batch."
        )
    total = float(w.sum())
    if w.size < 2 or total == 0.0 or not correction(w) < math.inf:
        return None
    influence = w * (x - float(w @ x) / total)
    # Scaled before squaring, so that values near the smallest or largest floats neither vanish nor overflow.
    largest = float(np.abs(influence).max())
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(correction(w) * float(np.square(influence / largest).sum()))


def own_probes_error(weights: Tensor, means: Tensor, noise: Tensor) -> DataError | None:
    """Return the error that comes from the terms being a sample, where every term has had probes of its own.

    The jackknife over terms, f sum_b c_b^2 (m_b - m)^2 with m the weighted mean, also sees the probe noise
    v_b = Var m_b of each term. Its expectation for independent probes, with shares w_b = c_b / sum c,
    f sum_b c_b^2 ((1 - 2 w_b) v_b + sum_a w_a^2 v_a), is subtracted.

    Args:
        weights: (B,) term weights c_b.
        means: (B,) estimates of the functional of each term.
        noise: (B,) variances of ``means`` from the probes.

    Returns:
        See ``data_error``.
    """
    shares = weights / weights.sum()
    contrast = (1 - 2 * shares) * noise + (shares.square() * noise).sum()
    return data_error(weights, means, float((weights.square() * contrast).sum()))


def shared_probes_error(weights: Tensor, table: Tensor, offset: Tensor | float = 0.0) -> DataError | None:
    """Return the error that comes from the terms being a sample, where one probe has served all of them.

    The noise of the contrasts x_b - sum_a w_a x_a is measured over probes, whatever the terms have in common.

    Args:
        weights: (B,) term weights.
        table: (n, B) samples of the functional of each term, n >= 1; a single one has no noise that could be told.
        offset: (B,) known part of the functional of each term.

    Returns:
        See ``data_error``.
    """
    means, count = table.mean(0) + offset, len(table)
    if count < 2 or not bool((weights > 0).all()):
        return data_error(weights, means)
    contrasts = table - (table @ weights / weights.sum())[:, None]
    return data_error(weights, means, float((weights.square() * contrasts.var(0)).sum()) / count)


def correction(weights: Sequence[float] | Tensor | NDArray[Any]) -> float:
    """Return f = 1 / (1 - sum_b s_b^2), s_b the shares of the weights: B / (B - 1) for equal ones, inf for one.

    It makes up for the mean m being taken from the same batches, see ``infinitesimal_jackknife``.

    Args:
        weights: (B,) finite, their sum not 0.
    """
    shares = _shares(weights)
    left = 1.0 - float(np.square(shares).sum())
    return 1.0 / left if left > 0 else math.inf


def jackknife_df(weights: Sequence[float] | Tensor) -> float:
    """Return the degrees of freedom of ``infinitesimal_jackknife``: B - 1 for equal weights, fewer for unequal ones.

    With shares s_b and S_p = sum_b s_b^p, for x_b normal with variances in proportion to 1 / s_b,

        nu = (1 - S_2)^2 / (S_2 - 2 S_3 + S_2^2),

    twice the squared mean of se^2 over its variance (Satterthwaite). Where x_b is skewed, or of long tails, an interval
    with so many degrees of freedom is an approximation, the better the more batches there are.

    Args:
        weights: (B,) positive.

    Returns:
        nu, 0 for fewer than two batches.
    """
    shares = _shares(weights)
    if shares.size < 2:
        return 0.0
    second, third = float(np.square(shares).sum()), float((shares**3).sum())
    return (1 - second) ** 2 / (second - 2 * third + second**2)


def _shares(weights: Sequence[float] | Tensor | NDArray[Any]) -> NDArray[Any]:
    vector = _vector("weights", weights)
    shares: NDArray[Any] = vector / vector.sum()
    return shares


def _vector(name: str, given: Sequence[float] | Tensor | NDArray[Any]) -> NDArray[Any]:
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    vector = np.asarray(values, dtype=np.float64).reshape(-1)
    if not bool(np.isfinite(vector).all()):
        raise ValueError(f"{name} must be finite; got nan or inf. Check the batch that produced it.")
    return vector


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
            folded to m numbers (``vectors.fold``). Twice the sum over these of their sample variances is the variance
            of h_s by the law of the probes, far better known than from the rows.
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


# What is said of the data error alone.
_OF_DATA = ("data-error-unresolved", "data-error-noisy")
# Where 1 + a t falls below this, skewness a is taken out in a straight line.
_STEEP = 0.35
# Levels that differ by less are the same, made of other sums.
_ROUNDED = 1e-12


def student_quantile(level: float, df: float) -> float:
    """Return the quantile of Student's t with ``df`` degrees of freedom; of the normal law where ``df`` is infinite.

    From ``scipy.special``: importing ``scipy.stats`` for one quantile takes longer than many a measurement.

    Args:
        level: probability in (0, 1).
        df: degrees of freedom, > 0.
    """
    return float(special.ndtri(level) if math.isinf(df) else special.stdtrit(df, level))


# Relative half-width of a norm from which its upper end grows in proportion, see ``known_square``.
_STRAIGHT = 0.3


@dataclass(frozen=True, slots=True)
class ErrorParts:
    """The three sources of error of a curvature number, kept apart because they answer different questions.

    Attributes:
        probe: standard error from random probes, for the number *of this data set*; 0 for an exact path.
        data: standard error from the data being a sample (jackknife over groups of examples); None where it was not
            estimated (examples that cannot be told apart, or no cheap formula).
        solver: half-width of the deterministic error. A bound where a theorem gives one (quadrature between Gauss and
            Radau rules, the residual of an eigenpair); else an estimate (quadrature from shorter rules, finite
            differences, rounding). The function that made the number says which.
        data_df: degrees of freedom of ``data``: one less than the groups where these are equal; see ``jackknife_df``.

    Examples:
        >>> import hessprobe as hp
        >>> parts = hp.ErrorParts(probe=0.5, data=2.0, solver=0.1)
        >>> parts.scaled(2.0)
        ErrorParts(probe=1.0, data=4.0, solver=0.2, data_df=inf)
    """

    probe: float = 0.0
    data: float | None = None
    solver: float = 0.0
    data_df: float = math.inf

    def with_data(self, found: DataError | None) -> ErrorParts:
        """Return the errors with this data part."""
        return replace(self, data=found and found.std_error, data_df=found.df if found else math.inf)

    def scaled(self, factor: float) -> ErrorParts:
        """Return the errors of ``factor`` times the number, ``factor`` >= 0."""
        data = None if self.data is None else self.data * factor
        return replace(self, probe=self.probe * factor, data=data, solver=self.solver * factor)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a number cost.

    Attributes:
        seconds: wall-clock time of the computation.
        gradients: the same in gradients of the loss over the same data, timed in the same process at the start; None
            where none was timed (a matrix that comes from no loss).
        made: products of each kind that were made for this number and for none before it: ``"hessian"`` or the operator
            measured, ``"surrogate"`` products of its Gauss-Newton matrix, ``"surrogate forms"`` v^T G v (a push
            forward), ``"output draws"`` of its sampled trace; a pass over part of the data counts as that part.
    """

    seconds: float = 0.0
    gradients: float | None = None
    made: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class Estimate:
    """A number with its error and its cost.

    The interval is that of the number for the given data set: ``value -+ (t * errors.probe + errors.solver)`` with
    ``t`` the Student quantile at ``df`` degrees of freedom, cut to ``support``; that of a norm has unequal arms, see
    ``known_square``. The sampling error of the data, ``errors.data``, is a statement about other data sets and widens
    the interval only when asked for.

    It is used as the number that it is: ``float(e)``, ``f"{e:.3g}"``; ``str(e)`` adds error and cost.

    Attributes:
        value: the estimate, in the unit of the measured quantity.
        errors: probe, data and solver parts.
        df: degrees of freedom of ``errors.probe``; inf where the standard error is known exactly.
        matvecs: products counted while computing this number; a pass over part of the data counts as that part.
        samples: number of independent samples behind ``errors.probe``; 0 for an exact path.
        method: the algorithm that ran, e.g. ``"hutchinson+ggn"``.
        kind: ``"estimate"``, ``"exact"``, ``"bracket"`` (the interval is ``bracket`` at every level up to
            ``bracket_confidence``), ``"lower bound"`` or ``"upper bound"``.
        bracket: of kind ``"bracket"``, the ends ``(low, high)`` that hold the quantity; of another, bounds that hold
            besides the interval; or None.
        bracket_confidence: probability that the bracket holds, over what was drawn at random; 1 for a theorem. Of an
            eigenvalue a theorem as well, but for rounding; of a quantile of the spectrum an approximation.
        support: range the quantity can lie in; the interval is cut to it.
        flags: machine-readable remarks, e.g. ``"not-converged"``.
        seconds: wall-clock time of the computation.
        details: further named results (per-layer values, arrays), JSON-friendly or tensors.
        influence: the samples behind ``errors.probe``, for the difference to another estimate from the same probes;
            None for an exact path and where the method has none.
        known_square: of a norm F = sqrt(K + x) with x > 0 from random probes: K >= 0; None for other quantities. The
            error of x is about proportional to x, or rises faster, so that a low value comes with a short error bar;
            the interval is formed for 1 / x, which undoes this. With r = t * errors.probe * F / x, the relative
            half-width of sqrt(x), sqrt(x) lies between sqrt(x) (1 + 2 r)^(-1/2) and sqrt(x) (1 - 2 r)^(-1/2), beyond
            r = 0.3 between the former and 0.98 + 2 r times sqrt(x).
        ratio: of a quantity (t / F)^2 with t and F > 0 independent: their estimates, without solver parts. The interval
            is made from theirs, on the scale of logarithms (``_ratio_ends``); None for other quantities.
        skewness: a of the value, its third central moment over ``errors.probe`` cubed; 0 for arms of equal length. The
            error bar is short where the value lies on the side of its short tail: with t the quantile the interval
            goes from value - g(t) to value - g(-t) probe errors, g(t) = (3 / a) ((1 + a t)^(1/3) - 1), in a straight
            line where 1 + a t < 0.35.
        gradient_seconds: time of one gradient over the same data, or None.
        made: see ``Cost``; empty where they were not told apart.

    Examples:
        >>> import hessprobe as hp
        >>> found = hp.Estimate(10.0, hp.ErrorParts(probe=0.5, data=2.0), matvecs=64, samples=64, method="by hand")
        >>> print(found)
        10 (95% interval 9.02002 to 10.98, 64 products, by hand)
        >>> float(found), f"{found:.2f}", found.std_error
        (10.0, '10.00', 0.5)
        >>> low, high = found.interval(include_data=True)
        >>> round(low, 2), round(high, 2)
        (5.96, 14.04)
    """

    value: float
    errors: ErrorParts = ErrorParts()
    df: float = math.inf
    matvecs: float = 0.0
    samples: int = 0
    method: str = ""
    kind: str = "estimate"
    bracket: tuple[float, float] | None = None
    bracket_confidence: float = 1.0
    support: tuple[float, float] = (-math.inf, math.inf)
    flags: tuple[str, ...] = ()
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    influence: Influence | None = field(default=None, repr=False, compare=False)
    known_square: float | None = None
    ratio: tuple[Estimate, Estimate] | None = field(default=None, repr=False, compare=False)
    skewness: float = 0.0
    gradient_seconds: float | None = field(default=None, repr=False, compare=False)
    made: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def cost(self) -> Cost:
        """Seconds, the same in gradients, and the products of each kind."""
        one = self.gradient_seconds
        return Cost(self.seconds, self.seconds / one if one else None, dict(self.made))

    @property
    def std_error(self) -> float:
        """Standard error of the value for this data set (the probe part)."""
        return self.errors.probe

    def interval(self, confidence: float = 0.95, *, include_data: bool = False) -> tuple[float, float]:
        """Return the two-sided interval at level ``confidence``.

        Args:
            confidence: level in (0, 1).
            include_data: add the data part in quadrature, for a statement about the law that the examples are drawn
                from. With standard errors s_p and s_d of probes and data and their degrees of freedom, the quantile is
                Student's at (s_p^2 + s_d^2)^2 / (s_p^4 / nu_p + s_d^4 / nu_d) of them (Satterthwaite): an
                approximation, which covers as it says for normal influences of the groups of examples.

        Raises:
            ValueError: ``confidence`` outside (0, 1) or beyond ``bracket_confidence``, or ``include_data`` where the
                data error is unknown.
        """
        if self.kind == "bracket" and self.bracket is not None:
            return self._bracket_at(confidence, include_data)
        half = self.half_width(confidence, include_data=include_data)
        low, high = self.value - half, self.value + half
        if self.known_square is not None and self.errors.probe > 0 and not include_data and math.isfinite(half):
            low, high = _norm_ends(self.value, self.known_square, half - self.errors.solver)
            low, high = low - self.errors.solver, high + self.errors.solver
        if self.ratio is not None and not include_data:
            low, high = _ratio_ends(*self.ratio, confidence)
            low, high = low - self.errors.solver, high + self.errors.solver
        if self.skewness and self.errors.probe > 0 and not include_data and math.isfinite(half):
            t, solver = (half - self.errors.solver) / self.errors.probe, self.errors.solver
            low = self.value - self.errors.probe * _unskewed(t, self.skewness) - solver
            high = self.value - self.errors.probe * _unskewed(-t, self.skewness) + solver
        return max(low, self.support[0]), min(high, self.support[1])

    def _bracket_at(self, confidence: float, include_data: bool) -> tuple[float, float]:
        level = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        low, high = self.bracket or (-math.inf, math.inf)
        if level > self.bracket_confidence + _ROUNDED:
            raise ValueError(
                about(
                    "confidence",
                    f"must be at most {self.bracket_confidence:g}, that of the bracket; got {level:g}. "
                    "Find it with a larger confidence.",
                )
            )
        more = 0.0
        if include_data:
            more = self.half_width(level, include_data=True) - self.errors.solver
        return max(low - more, self.support[0]), min(high + more, self.support[1])

    def half_width(self, confidence: float = 0.95, *, include_data: bool = False) -> float:
        """Return half the width of the uncut interval; of a norm, to first order in it. See ``interval``."""
        confidence = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        probe, df = self.errors.probe, self.df
        if include_data:
            if self.errors.data is None:
                raise ValueError(
                    "include_data must be False where the data error is unknown; got True. " + self._data_hint()
                )
            probe, df = _joined((probe, df), (self.errors.data, self.errors.data_df))
        if probe == 0.0:
            return self.errors.solver
        quantile = student_quantile(0.5 + confidence / 2, df) if df > 0 else math.inf
        return quantile * probe + self.errors.solver

    def _data_hint(self) -> str:
        """Return what helps where there is no data error: nothing in the data does for a method that has none."""
        if self.kind == "exact":
            return f"The method {self.method!r} does not tell batches apart; a sampling method does."
        return "Give the data in two or more batches, or more probes, and data_error=True, to estimate it."

    def without_data(self) -> Estimate:
        """Return the estimate without anything that it says of the data being a sample."""
        influence = None if self.influence is None else replace(self.influence, batches=None)
        flags = tuple(flag for flag in self.flags if flag not in _OF_DATA)
        return replace(self, errors=self.errors.with_data(None), influence=influence, flags=flags)

    def with_(self, **changes: Any) -> Estimate:
        """Return a copy with some attributes replaced."""
        return replace(self, **changes)

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of ``factor`` times the quantity (value, errors, bracket, support and samples scale)."""
        size = abs(factor)
        ends = sorted((self.support[0] * factor, self.support[1] * factor)) if factor else [0.0, 0.0]
        bracket = None if self.bracket is None else tuple(sorted(end * factor for end in self.bracket))
        kind = {"lower bound": "upper bound", "upper bound": "lower bound"}.get(self.kind, self.kind)
        return replace(
            self,
            value=self.value * factor,
            errors=self.errors.scaled(size),
            support=(ends[0], ends[1]),
            bracket=bracket,  # type: ignore[arg-type]  # two sorted floats
            kind=kind if factor < 0 else self.kind,
            influence=None if self.influence is None else self.influence.scaled(factor),
            known_square=self.known_square * factor * factor if self.known_square is not None and factor > 0 else None,
            skewness=math.copysign(self.skewness, self.skewness * factor),
            ratio=None if self.ratio is None or factor <= 0 else (self.ratio[0].scaled(factor**0.5), self.ratio[1]),
        )

    @property
    def layers(self) -> dict[str, Estimate]:
        """One estimate a parameter tensor, of ``measure(..., per_layer=True)``; empty where none were asked for."""
        return dict(self.details.get("layers") or {})

    def __float__(self) -> float:
        return float(self.value)

    def __format__(self, spec: str) -> str:
        """Return the value in a format of numbers, or ``str(self)`` where none is given."""
        return format(float(self.value), spec) if spec else str(self)

    def __repr__(self) -> str:
        low, high = self.interval(self._level)
        flags = f", flags={self.flags}" if self.flags else ""
        return (
            f"Estimate({self.value:.6g}, std_error={self.std_error:.2g}, {100 * self._level:.4g}% interval "
            f"{low:.6g} to {high:.6g}, matvecs={self.matvecs:g}, method={self.method!r}, kind={self.kind!r}{flags})"
        )

    def __str__(self) -> str:
        cost = f"{self.matvecs:g} products" + (f", {self.method}" if self.method else "")
        return f"{self.value:.6g} ({self._certainty()}, {cost})" + (f" [{', '.join(self.flags)}]" if self.flags else "")

    def _certainty(self) -> str:
        low, high = self.interval(self._level)
        if self.kind == "exact" and self.value - low <= _ROUNDED * abs(self.value) >= high - self.value:
            return "exact"
        if self.kind in ("lower bound", "upper bound"):
            return self.kind
        return f"{100 * self._level:.4g}% interval {low:.6g} to {high:.6g}"

    @property
    def _level(self) -> float:
        """95 %, or the confidence of a bracket that holds with less."""
        return min(0.95, self.bracket_confidence) if self.kind == "bracket" else 0.95

    def row(self, confidence: float = 0.95) -> dict[str, Any]:
        """Return the number, its errors and its cost by name, as records have them; nan and inf may stand in it.

        Raises:
            ValueError: as ``interval``.
        """
        return {
            "value": self.value,
            "std_error": self.std_error,
            "interval": list(self.interval(confidence)),
            "confidence": confidence,
            "matvecs": self.matvecs,
            "samples": self.samples,
            "method": self.method,
            "kind": self.kind,
            "seconds": self.seconds,
            "cost": {"gradients": self.cost.gradients, "made": dict(self.made)},
            "errors": {
                "probe": self.errors.probe,
                "data": self.errors.data,
                "data_df": self.errors.data_df if math.isfinite(self.errors.data_df) else None,
                "solver": self.errors.solver,
            },
            "bracket": None if self.bracket is None else list(self.bracket),
            "bracket_confidence": self.bracket_confidence,
            "flags": list(self.flags),
        }

    def to_dict(self, confidence: float | None = None) -> dict[str, Any]:
        """Return everything that is known as plain data for JSON, with nan and inf as None.

        Args:
            confidence: level of the interval; 0.95 by default, or what a bracket holds with where that is less.

        Raises:
            ValueError: as ``interval``.
        """
        level = self._level if confidence is None else confidence
        found: dict[str, Any] = display.plain({**self.row(level), "df": self.df, "details": self.details})
        return found

    def plot(self, which: str | None = None) -> Any:
        """Return the axes of a matplotlib figure: the density, several eigenvalues, or one bar a layer.

        Args:
            which: ``"density"``, ``"eigenvalues"`` or ``"layers"``; the first that there is by default.

        Raises:
            ValueError: nothing to draw, a single number; the message says what to measure.
        """
        return display.draw(self, which=which)

    def _repr_html_(self) -> str:
        data = "not known" if self.errors.data is None else f"{self.errors.data:.2g}"
        rows = [
            (self.details.get("measure", "value"), f"{self.value:.6g}"),
            ("kind", self._certainty()),
            ("± measurement", f"{self.std_error:.2g}"),
            ("± data", data),
            ("products", f"{self.matvecs:g}"),
            ("seconds", f"{self.seconds:.3g}"),
            ("method", self.method),
        ]
        return display.html_table([*rows, *([("flags", ", ".join(self.flags))] if self.flags else [])])


def _joined(*parts: tuple[float, float]) -> tuple[float, float]:
    """Return standard error and Satterthwaite degrees of freedom of a sum of independent parts (error, df)."""
    total = math.hypot(*(error for error, _ in parts))
    if total == 0.0:
        return 0.0, math.inf
    # In shares of the total, which neither vanish nor overflow when raised to the fourth power.
    spread = sum((error / total) ** 4 / df if df > 0 else math.inf for error, df in parts if error > 0)
    return total, 1 / spread if spread > 0 else math.inf


def _norm_ends(norm: float, known: float, half: float) -> tuple[float, float]:
    """Return the ends of the interval of sqrt(known + x); see ``Estimate.known_square``."""
    share = (math.sqrt(known) / norm) ** 2 if norm > 0 else 1.0
    sampled = 1 - share
    if not sampled > 0:
        return norm - half, norm + half
    r = half / norm / sampled
    # 1 / x within 1 -+ 2 r; from 0.4 on in a straight line, as an end at infinity says nothing.
    up = (1 - 2 * min(r, _STRAIGHT)) ** -0.5 + 2 * max(r - _STRAIGHT, 0.0)
    return norm * math.sqrt(share + sampled / (1 + 2 * r)), norm * math.sqrt(share + sampled * up**2)


def _unskewed(t: float, skewness: float) -> float:
    """Return the ratio of error to standard error that becomes ``t`` where its skewness is taken out.

    T + a T^2 / 3 + a^2 T^3 / 27 is t to the order a of T = (value - truth) / std_error, a sample mean's with sample
    variance; this is its inverse. Where 1 + a t falls below 0.35 its slope of two is kept: beyond it grows at random.

    References:
        Hall (1992), "On the removal of skewness by transformation".
    """
    inner = 1 + skewness * t
    beyond = min(inner - _STEEP, 0.0)
    return 3 / skewness * (math.cbrt(inner - beyond) - 1) + beyond / skewness * math.pow(_STEEP, -2 / 3)


def _ratio_ends(top: Estimate, bottom: Estimate, confidence: float) -> tuple[float, float]:
    """Return the ends of the interval of (t / F)^2 from those of t and F > 0, whose errors are independent.

    log |t / F| is a difference of independent numbers with intervals of their own; its arms are the roots of the sums
    of squares of theirs (MOVER). It needs no symmetry of theirs, and is exact where both are normal. Where the interval
    of t reaches 0, so does that of the ratio.

    References:
        Zou, Donner (2008), "Construction of confidence limits about effect measures: a general approach".
    """
    t, (least, most) = abs(top.value), sorted(top.interval(confidence))
    if top.value < 0:
        least, most = -most, -least
    F, (small, large) = bottom.value, bottom.interval(confidence)
    far = max(most, -least)
    up = math.inf if small <= 0 else math.log(F / small)
    above = math.log(far / t) if t > 0 else math.inf
    high = far / F * (math.exp(math.hypot(above, up) - above) if math.isfinite(above) else 1.0)
    low = 0.0 if least <= 0 else t / F * math.exp(-math.hypot(math.log(t / least), math.log(large / F)))
    return low**2, high**2
