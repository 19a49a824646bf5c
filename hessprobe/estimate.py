"""The answer of every estimator: a value, the parts of its error, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from scipy import special

from hessprobe import checks
from hessprobe.influence import Influence
from hessprobe.jackknife import DataError

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
class Estimate:
    """A number with its error and its cost.

    The interval is that of the number for the given data set: ``value -+ (t * errors.probe + errors.solver)`` with
    ``t`` the Student quantile at ``df`` degrees of freedom, cut to ``support``; that of a norm has unequal arms, see
    ``known_square``. The sampling error of the data, ``errors.data``, is a statement about other data sets and widens
    the interval only when asked for.

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
        return max(low, self.support[0]), min(high, self.support[1])

    def _bracket_at(self, confidence: float, include_data: bool) -> tuple[float, float]:
        level = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        low, high = self.bracket or (-math.inf, math.inf)
        if level > self.bracket_confidence + _ROUNDED:
            raise ValueError(
                f"confidence must be at most {self.bracket_confidence:g}, that of the bracket; got {level:g}. "
                "Find it with a smaller delta."
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
        )

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.value:.6g} (95% interval {low:.6g} to {high:.6g}, {self.matvecs:g} products, {self.method})"


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
