"""What a record says of differences between checkpoints and of rank correlations, and its CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hessprobe import files
from hessprobe.comparison import differences
from hessprobe.comparison.differences import Line
from hessprobe.comparison.names import UNDECIDED, WITHIN
from hessprobe.records.compare import CompareRecord, Correlation, Difference
from hessprobe.records.record import cleaned
from hessprobe.records.typed import Number, measured_text

_VALUE = ("value", "std_error", "data_std_error", "kind", "low", "high", "confidence")
_JUDGED = ("verdict", "p", "stands", "beyond_data")
_DIFFERENCE = (
    "difference",
    "difference_std_error",
    "difference_data_std_error",
    "difference_kind",
    "difference_low",
    "difference_high",
    *_JUDGED,
)


def difference_of(line: Line, confidence: float) -> Difference:
    """Return a line of a comparison as its record keeps it."""
    found = line.difference
    return Difference(
        measure=line.measure,
        checkpoint=line.label,
        baseline=line.baseline,
        number=Number.of_estimate(found.estimate, confidence),
        verdict=line.verdict,
        p=cleaned(line.p),
        stands=line.stands,
        beyond_data=line.beyond_data,
        correlation=cleaned(found.correlation),
        independent_std_error=cleaned(found.independent),
        gain=cleaned(found.gain),
    )


def correlation_of(found: differences.Correlation) -> Correlation:
    """Return a rank correlation as its record keeps it."""
    ranks = found.ranks
    low, high = ranks.interval
    return Correlation(
        measure=found.measure,
        gap=found.gap,
        tau=cleaned(ranks.tau),
        interval=(cleaned(low), cleaned(high)),
        confidence=ranks.confidence,
        count=ranks.count,
        method=ranks.method,
        undecided=found.undecided,
        pairs=found.pairs,
        verdict=found.verdict,
    )


# Of a difference that is no larger than its data error.
ON_OTHER_DATA = ", may vanish on other data"


def verdict_text(found: Difference, plus_minus: str = "±") -> str:
    """Return the verdict on a difference in words: ``"sharper by 3.1 ± 0.2"``."""
    if found.verdict == UNDECIDED:
        return f"{UNDECIDED}: a bound, not a value" if "bound" in found.number.flags else f"{UNDECIDED}: not finite"
    if found.verdict == WITHIN:
        return f"{WITHIN} ({measured_text(found.number, plus_minus)})"
    alone = "" if found.stands else " (alone)"
    lost = "" if found.beyond_data is not False else ON_OTHER_DATA
    return f"{found.verdict} by {measured_text(found.number, plus_minus, size=True)}{alone}{lost}"


def comparison_csv(record: CompareRecord) -> str:
    """Return one line a checkpoint and measure, with its difference to the baseline."""
    import pandas as pd

    differences = {(one.checkpoint, one.measure): one for one in record.differences}
    paths = {member.label: member.path for member in record.checkpoints}
    lines = []
    for row in record.results:
        key = (row.checkpoint, row.measured.measure)
        line = {"measure": key[1], "operator": row.measured.operator, "checkpoint": key[0], "path": paths[key[0]]}
        line |= _entries(row.measured.number)
        found = differences.get(key)
        if found is not None:
            named = {"value": "difference"}
            line |= {named.get(name, f"difference_{name}"): each for name, each in _entries(found.number).items()}
            line |= {name: getattr(found, name) for name in _JUDGED}
        lines.append(line)
    columns = ["measure", "operator", "checkpoint", "path", *_VALUE, *_DIFFERENCE]
    return pd.DataFrame(lines, columns=columns).to_csv(index=False)


def _entries(number: Number) -> dict[str, Any]:
    low, high = number.interval
    known = {"value": number.value, "std_error": number.std_error, "data_std_error": number.errors.data}
    return {**known, "kind": number.kind, "low": low, "high": high, "confidence": number.confidence}


def write_comparison_csv(path: str | Path, record: CompareRecord) -> None:
    """Write ``comparison_csv`` of the record atomically."""
    text = comparison_csv(record).encode(errors="backslashreplace")
    files.write_atomically(path, lambda file: file.write(text))
