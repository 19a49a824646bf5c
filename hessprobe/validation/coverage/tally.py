"""From the answers of many runs to one cell: shares with their binomial error, widths against the ideal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from hessprobe.validation.coverage.problem import Answer, Trial

# Two-sided normal quantile of 95 %.
_Z = 1.959964
# With fewer runs without a flag than this share a cell as a whole carries the flag.
FEW_PLAIN = 0.1


def wilson(share: float, runs: float) -> tuple[float, float]:
    """Return the 95 % score interval of a probability from a share of ``runs`` trials.

    References:
        Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if runs == 0:
        return 0.0, 1.0
    middle = (share + _Z**2 / (2 * runs)) / (1 + _Z**2 / runs)
    half = _Z / (1 + _Z**2 / runs) * math.sqrt(share * (1 - share) / runs + (_Z / (2 * runs)) ** 2)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def row(
    trial: Trial, question: str, family: str, size: int, found: Sequence[tuple[float, list[Answer]]]
) -> dict[str, Any]:
    """Return the cell of one question.

    Args:
        trial: of the question.
        question: a name in ``trial.questions``.
        family: of the matrices.
        size: of the samples.
        found: for every matrix its scale, for rounding, and its runs.
    """
    held, plain, above, below, count = [], [], [], [], 0
    for scale, answers in found:
        for answer in answers:
            inside = answer.covered(scale)
            held.append(float(inside.mean()))
            above.append(float((~inside & (answer.truth > answer.high)).mean()))
            below.append(float((~inside & (answer.truth < answer.low)).mean()))
            plain.append(not answer.flagged)
            count += len(inside)
    runs, kept = len(held), [share for share, free in zip(held, plain, strict=True) if free]
    low, high = wilson(_mean(held), runs)
    plain_low, plain_high = wilson(_mean(kept), len(kept))
    return {
        "estimator": trial.name,
        "question": question,
        "family": family,
        "size": size,
        "unit": trial.size,
        "nominal": trial.nominal,
        "floor": trial.floor,
        "runs": runs,
        "intervals": count,
        "coverage": _mean(held),
        "coverage_interval": [low, high],
        "flagged": 1 - len(kept) / runs if runs else 0.0,
        "unflagged_runs": len(kept),
        "unflagged_coverage": _mean(kept) if kept else None,
        "unflagged_interval": [plain_low, plain_high],
        "truth_above": _mean(above),
        "truth_below": _mean(below),
        "width": _median([_width(trial, answers) for _, answers in found]),
        "error": _median([_relative_error(scale, answers) for scale, answers in found]),
    }


def verdict(cell: dict[str, Any]) -> str:
    """Return ``"holds"``, ``"low"``, ``"flagged"`` (covers too little, and says so) or ``"refused"``."""
    if cell.get("refused"):
        return "refused"
    if cell["unflagged_runs"] >= FEW_PLAIN * cell["runs"]:
        return "low" if cell["unflagged_coverage"] < cell["floor"] else "holds"
    return "flagged" if cell["coverage"] < cell["floor"] else "holds"


def _width(trial: Trial, answers: Sequence[Answer]) -> float:
    """Return the mean width over that of an ideal normal interval, of the runs on one matrix; nan where exact.

    The ideal half-width is the normal quantile times the standard deviation of the values, here their root mean square
    error r over m runs. As E 1/r = g / sigma, g = sqrt(m / 2) Gamma((m - 1) / 2) / Gamma(m / 2), the ratio is divided
    by g. Where a question has several parts, sums over them.
    """
    shapes = {answer.value.shape for answer in answers}
    if len(answers) < 3 or len(shapes) != 1:
        return math.nan
    runs = len(answers)
    wide = np.stack([answer.high - answer.low for answer in answers]).mean(0)
    errors = np.stack([answer.value - answer.truth for answer in answers])
    spread = np.sqrt(np.square(errors).mean(0))
    bias = math.sqrt(runs / 2) * math.exp(special.gammaln((runs - 1) / 2) - special.gammaln(runs / 2))
    ideal = 2 * float(special.ndtri(0.5 + trial.nominal / 2)) * float(spread.sum())
    return float(wide.sum()) / ideal / bias if ideal > 0 else math.nan


def _relative_error(scale: float, answers: Sequence[Answer]) -> float:
    """Return the median over runs of |error| / |truth|; over the scale of the matrix where a truth is near 0."""
    errors = [np.abs(a.value - a.truth).sum() / max(np.abs(a.truth).sum(), 1e-6 * scale) for a in answers]
    return float(np.median(errors)) if errors else math.nan


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else 0.0


def _median(numbers: Sequence[float]) -> float | None:
    known = [number for number in numbers if not math.isnan(number)]
    return float(np.median(known)) if known else None
