"""Do checkpoints that a measure calls sharper generalise worse? Rank correlation with the generalisation gap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from hessprobe.comparison.names import FEWEST
from hessprobe.comparison.ranks import RankCorrelation, kendall
from hessprobe.estimate import Estimate
from hessprobe.estimators.difference import difference

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
