"""Records of a run's points: one row a point, and the same as a flat table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hessprobe import files
from hessprobe.records.record import build_record, result_row, write_record
from hessprobe.records.typed import Number
from hessprobe.tracking.names import ALWAYS
from hessprobe.tracking.point import Point
from hessprobe.tracking.tracker import SharpnessTracker


def point_row(point: Point, confidence: float = 0.95, **facts: Any) -> dict[str, Any]:
    """Return a point as JSON-friendly values.

    Args:
        point: as it was measured.
        confidence: level of the intervals, in (0, 1).
        facts: further entries, e.g. ``checkpoint`` and ``sha256``.
    """
    measures = {result.measure: result_row(result, confidence) for result in point.results}
    return {
        "step": point.step,
        "epoch": point.epoch,
        **facts,
        "lr": point.lr,
        "loss": point.loss,
        "gradient_norm": point.gradient_norm,
        "alignment": None if point.alignment is None else asdict(point.alignment),
        "edge": asdict(point.edge),
        "measures": measures,
        "scores": dict(point.scores),
        "matvecs": point.matvecs,
        "seconds": point.seconds,
        "flags": list(dict.fromkeys(f"{name}:{flag}" for name, row in measures.items() for flag in row["flags"])),
    }


def track_record(tracker: SharpnessTracker, confidence: float = 0.95) -> dict[str, Any]:
    """Return what a tracker has measured as the record that ``hessprobe plot`` draws.

    Args:
        tracker: with or without points.
        confidence: level of the intervals, in (0, 1).
    """
    device = tracker.device
    return build_record(
        "track",
        [point_row(point, confidence) for point in tracker.points],
        arguments=tracker.settings_dict(),
        seed=tracker.settings.seed,
        device=device or torch.device("cpu"),
        notes=_budget_notes(tracker),
    )


def _budget_notes(tracker: SharpnessTracker) -> list[str]:
    pace, notes = tracker.pace, []
    if pace.skipped:
        notes.append(f"{pace.skipped} due measurements were left out to keep the cost budget")
    if pace.budget is not None and pace.share > pace.budget:
        notes.append(
            f"measuring took {pace.spent:.3g} s, {100 * pace.share:.3g} % of the training's time where "
            f"{100 * pace.budget:.3g} % was asked for: the training has been too short to pay for its last point"
        )
    return notes


def write_track(path: str | Path, tracker: SharpnessTracker, confidence: float = 0.95) -> None:
    """Write ``track_record`` as JSON, in one atomic step."""
    write_record(path, track_record(tracker, confidence))


def write_track_csv(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write ``flat_rows`` of a record as CSV, in one atomic step."""
    import pandas as pd

    text = pd.DataFrame(flat_rows(record["results"])).to_csv(index=False).encode(errors="backslashreplace")
    files.write_atomically(path, lambda file: file.write(text))


def flat_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one flat dictionary a point: ``NAME``, ``NAME_error``, ``..._low``, ``..._high``, ``..._data_error``."""
    return [_flat(row) for row in rows]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    alignment, edge = row["alignment"] or {}, row["edge"]
    flat = {key: row.get(key) for key in ("step", "epoch", "checkpoint", "lr", "loss", "gradient_norm")}
    flat |= {"alignment": alignment.get("first"), "alignment_space": alignment.get("space")}
    flat |= {"threshold": edge["plain"], "threshold_sharpness_aware": edge["sharpness_aware"]}
    flat |= {"threshold_preconditioned": edge.get("preconditioned")}
    for name, measured in row["measures"].items():
        low, high = measured["interval"]
        flat |= {name: measured["value"], f"{name}_error": Number.of(measured).error, f"{name}_low": low}
        flat |= {f"{name}_high": high, f"{name}_data_error": measured["errors"].get("data")}
    for index, value in enumerate(eigenvalues(row)[1:], 2):
        flat[f"eigenvalue_{index}"] = value
    return {
        **flat,
        **row["scores"],
        "products": row["matvecs"],
        "seconds": row["seconds"],
        "flags": " ".join(row["flags"]),
    }


def eigenvalues(row: Mapping[str, Any]) -> list[float]:
    """Return the largest eigenvalues of a point, descending."""
    top = row["measures"].get(ALWAYS) or {}
    stored = (top.get("arrays") or {}).get("eigenvalues") or {}
    k = (row["alignment"] or {}).get("k", 1)
    return list((stored.get("values") or [])[:k])
