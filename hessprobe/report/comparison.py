"""What a record says of differences between checkpoints and of rank correlations, and its CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hessprobe import files
from hessprobe.comparison.differences import Line
from hessprobe.comparison.gaps import Correlation
from hessprobe.comparison.names import UNDECIDED, WITHIN
from hessprobe.report.numbers import measured_text
from hessprobe.report.record import estimate_row

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


def difference_row(line: Line, confidence: float) -> dict[str, Any]:
    """Return a line of a comparison as JSON-friendly values, in which nan and inf may still stand."""
    found = line.difference
    return {
        "measure": line.measure,
        "checkpoint": line.label,
        "baseline": line.baseline,
        **estimate_row(found.estimate, confidence),
        "verdict": line.verdict,
        "p": line.p,
        "stands": line.stands,
        "beyond_data": line.beyond_data,
        "correlation": found.correlation,
        "independent_std_error": found.independent,
        "gain": found.gain,
    }


def correlation_row(found: Correlation) -> dict[str, Any]:
    """Return a rank correlation as JSON-friendly values, in which nan may still stand."""
    ranks = found.ranks
    return {
        "measure": found.measure,
        "gap": found.gap,
        "tau": ranks.tau,
        "interval": list(ranks.interval),
        "confidence": ranks.confidence,
        "count": ranks.count,
        "method": ranks.method,
        "undecided": found.undecided,
        "pairs": found.pairs,
        "verdict": found.verdict,
    }


def verdict_text(row: Mapping[str, Any], plus_minus: str = "±") -> str:
    """Return the verdict on a difference in words: ``"sharper by 3.1 ± 0.2"``."""
    if row["verdict"] == UNDECIDED:
        return f"{UNDECIDED}: a bound, not a value" if "bound" in row["flags"] else f"{UNDECIDED}: not finite"
    if row["verdict"] == WITHIN:
        return f"{WITHIN} ({measured_text(row, plus_minus)})"
    alone = "" if row["stands"] else " (alone)"
    lost = "" if row.get("beyond_data") is not False else ", may vanish on other data"
    return f"{row['verdict']} by {measured_text(row, plus_minus, size=True)}{alone}{lost}"


def comparison_csv(record: Mapping[str, Any]) -> str:
    """Return one line a checkpoint and measure, with its difference to the baseline."""
    import pandas as pd

    differences = {(row["checkpoint"], row["measure"]): row for row in record["differences"]}
    paths = {member["label"]: member["path"] for member in record["checkpoints"]}
    lines = []
    for row in record["results"]:
        low, high = row["interval"]
        line = {**row, "path": paths[row["checkpoint"]], "low": low, "high": high}
        line["data_std_error"] = row["errors"]["data"]
        found = differences.get((row["checkpoint"], row["measure"]))
        if found is not None:
            low, high = found["interval"]
            line |= {"difference": found["value"], "difference_std_error": found["std_error"]}
            line |= {"difference_data_std_error": found["errors"]["data"], "difference_kind": found["kind"]}
            line |= {"difference_low": low, "difference_high": high, **{key: found[key] for key in _JUDGED}}
        lines.append(line)
    columns = ["measure", "operator", "checkpoint", "path", *_VALUE, *_DIFFERENCE]
    return pd.DataFrame(lines, columns=columns).to_csv(index=False)


def write_comparison_csv(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write ``comparison_csv`` of the record atomically."""
    text = comparison_csv(record).encode(errors="backslashreplace")
    files.write_atomically(path, lambda file: file.write(text))
