"""Differences to a baseline, each with the error of the difference, and what they say in words.

Do checkpoints that a measure calls sharper generalise worse? Rank correlation with the generalisation gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from scipy import special

from hessprobe import checks
from hessprobe.comparison.names import FEWEST, UNDECIDED, WITHIN, direction
from hessprobe.comparison.ranks import RankCorrelation, kendall
from hessprobe.estimate import Estimate
from hessprobe.estimators.difference import Difference, difference


@dataclass(frozen=True)
class Line:
    """One measure of one checkpoint against the baseline.

    Attributes:
        measure: its name.
        label: of the checkpoint.
        baseline: label of the baseline.
        difference: checkpoint - baseline.
        verdict: ``"sharper"``, ``"flatter"``, ``"higher"``, ``"lower"``, ``"within error"``, or ``"undecided"`` where
            one of the two numbers is only a bound, or not finite.
        p: probability of a difference at least as large, beyond what the solver errors explain, where there is none;
            None where undecided.
        stands: whether the verdict holds at the same confidence for all differences together (Holm).
        beyond_data: whether the difference is also beyond the error that the data being a sample gives it, a statement
            about other data of this kind; None where that error is not known, or nothing is decided.
    """

    measure: str
    label: str
    baseline: str
    difference: Difference
    verdict: str
    p: float | None
    stands: bool = False
    beyond_data: bool | None = None

    @property
    def decided(self) -> bool:
        """Whether the two differ beyond the error of the difference."""
        return self.verdict not in (WITHIN, UNDECIDED)


def compare_values(
    values: Mapping[str, Mapping[str, Estimate]], baseline: str, *, confidence: float = 0.95
) -> list[Line]:
    """Return a line for every measure and every checkpoint but the baseline, measure by measure.

    Args:
        values: by label of the checkpoint and name of the measure; what is missing is left out. From the same seed,
            number of probes and data, see ``measure_each``.
        baseline: a label.
        confidence: level in (0, 1) of each difference, and of all that ``stands`` together.

    Returns:
        The lines. ``stands`` follows Holm's step-down rule over all lines that have a p-value: with m of them, the
        k-th smallest must be at most (1 - confidence) / (m - k + 1), as must all smaller ones.

    Raises:
        ValueError: an unknown baseline, or a confidence outside (0, 1).

    References:
        Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    checks.one_of("baseline", baseline, values)
    confidence = checks.real("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    names = dict.fromkeys(name for own in values.values() for name in own)
    lines = [
        _line(name, label, baseline, own[name], values[baseline][name], confidence)
        for name in names
        for label, own in values.items()
        if label != baseline and name in own and name in values[baseline]
    ]
    return _holm(lines, 1 - confidence)


def p_value(estimate: Estimate) -> float:
    """Return P(|T| >= (|value| - solver) / std_error) for Student's t: two-sided, given what these can explain.

    Of a bracket it is the probability that the bracket fails, or 1 where that holds 0.
    """
    if estimate.kind == "bracket" and estimate.bracket is not None:
        low, high = estimate.bracket
        return 1.0 if low <= 0 <= high else 1 - estimate.bracket_confidence
    excess = abs(estimate.value) - estimate.errors.solver
    if excess <= 0:
        return 1.0
    if estimate.std_error == 0.0:
        return 0.0
    t = -excess / estimate.std_error
    return min(1.0, 2 * float(special.ndtr(t) if math.isinf(estimate.df) else special.stdtr(estimate.df, t)))


def _line(measure: str, label: str, baseline: str, value: Estimate, base: Estimate, confidence: float) -> Line:
    found = difference(base, value)
    number, (low, high) = found.estimate.value, found.estimate.interval(confidence)
    if "bound" in found.estimate.flags or not math.isfinite(number) or not math.isfinite(high - low):
        return Line(measure, label, baseline, found, UNDECIDED, None)
    verdict = WITHIN if low <= 0 <= high else direction(measure, number)
    line = Line(measure, label, baseline, found, verdict, p_value(found.estimate))
    if not line.decided or found.estimate.errors.data is None:
        return line
    low, high = found.estimate.interval(confidence, include_data=True)
    return replace(line, beyond_data=not low <= 0 <= high)


def _holm(lines: Sequence[Line], level: float) -> list[Line]:
    judged = sorted((i for i, line in enumerate(lines) if line.p is not None), key=lambda i: lines[i].p or 0.0)
    kept = list(lines)
    for rank, i in enumerate(judged):
        if (lines[i].p or 0.0) > level / (len(judged) - rank):
            break
        kept[i] = replace(lines[i], stands=lines[i].decided)
    return kept


# What is large where a network does worse on new data than on its own.
GAPS = {"loss": "test - training loss", "accuracy": "training - test accuracy"}


@dataclass(frozen=True)
class Correlation:
    """One measure against one gap over the checkpoints that have both.

    Attributes:
        measure: its name.
        gap: name in ``GAPS``.
        ranks: Kendall's tau with its interval.
        undecided: pairs of checkpoints whose order by the measure is within the error of their difference.
        pairs: number of pairs.
    """

    measure: str
    gap: str
    ranks: RankCorrelation
    undecided: int
    pairs: int

    @property
    def verdict(self) -> str:
        """``"rises"`` or ``"falls"`` with the gap, or ``"no order shown"``."""
        if not self.ranks.decided:
            return "no order shown"
        return "rises" if self.ranks.tau > 0 else "falls"


def correlate(
    values: Mapping[str, Mapping[str, Estimate]],
    gaps: Mapping[str, Mapping[str, float]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Iterator[Correlation]:
    """Yield the correlation of every measure with every gap that at least 5 checkpoints have.

    The interval is about the checkpoints as a sample of all that could have been trained; that a measured value has an
    error of its own can turn the order of close pairs only, which are counted as ``undecided``.

    Args:
        values: by label of the checkpoint and name of the measure.
        gaps: by label and name in ``GAPS``.
        confidence: level of intervals, and of the errors behind ``undecided``, in (0, 1).
        seed: see ``kendall``.
    """
    names = dict.fromkeys(name for own in values.values() for name in own)
    for name in names:
        usable = [label for label, own in values.items() if name in own and math.isfinite(own[name].value)]
        close = {
            pair for pair in combinations(usable, 2) if _close(values[pair[0]][name], values[pair[1]][name], confidence)
        }
        for gap in GAPS:
            labels = [label for label in usable if math.isfinite(gaps.get(label, {}).get(gap, math.nan))]
            if len(labels) < FEWEST:
                continue
            x, y = [values[label][name].value for label in labels], [gaps[label][gap] for label in labels]
            pairs = list(combinations(labels, 2))
            ranks = kendall(x, y, confidence=confidence, seed=seed)
            yield Correlation(name, gap, ranks, sum(pair in close for pair in pairs), len(pairs))


def _close(one: Estimate, other: Estimate, confidence: float) -> bool:
    found = difference(one, other).estimate
    return not abs(found.value) > found.half_width(confidence)
