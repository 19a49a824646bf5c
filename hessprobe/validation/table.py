"""Outcomes as text: rows for a terminal, and the Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ("claim", "predicted", "measured", "std. error", "score", "verdict", "seconds")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return one row of a record as text, in the order of ``HEADER``."""
    if row["verdict"] == "error":
        return [row["claim"], "", "", "", "", "error", f"{row['seconds']:.1f}"]
    predicted = "" if row["predicted"] is None else f"{'<= ' * (row['kind'] == 'bound')}{row['predicted']:.6g}"
    if row["kind"] == "at least":
        predicted = f">= {predicted}"
    error = "" if row["std_error"] is None else f"{row['std_error']:.2g}"
    measured = "nan" if row["measured"] is None else f"{row['measured']:.6g}"
    return [row["claim"], predicted, measured, error, score_text(row), row["verdict"], f"{row['seconds']:.1f}"]


def score_text(row: Mapping[str, Any]) -> str:
    """Return ``z = 1.2``, ``0.93 of bound``, ``0.1 of tolerance``, or nothing."""
    if row["kind"] == "observed":
        return ""
    if row["score"] is None:
        return "not finite"
    if row["kind"] in ("z", "at least"):
        return f"z = {row['score']:.2f}"
    return f"{row['score']:.3g} of {row['kind']}"


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many claims hold, fail, and so on, in one line."""
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("holds", "fails", "error")}
    observed = len(rows) - sum(counts.values())
    words = [f"{counts['holds']} hold", f"{counts['fails']} fail"]
    words += [f"{counts['error']} broke"] if counts["error"] else []
    words += [f"{observed} observed"] if observed else []
    return f"{len(rows)} claims: {', '.join(words)}; {sum(row['seconds'] for row in rows):.0f} s"


def markdown(rows: Sequence[Mapping[str, Any]], figures: Mapping[str, str], machine: Mapping[str, Any]) -> str:
    """Return the table, every claim's statement, source and comparisons, and links to the figures.

    Args:
        rows: of a record.
        figures: claim -> file of its figure, relative to the table.
        machine: the environment of a record.
    """
    lines = ["# Theory against measurement", "", f"{summary(rows)}. Made by `hessprobe validate`.", ""]
    lines += [
        "The numbers of a row are those of its comparison furthest from the claim. *z*: difference over standard "
        "error, 4 at most. *of bound*, *of tolerance*: 1 at most; both come from the theorem or from rounding. "
        "*Observed*: a measurement about which nothing is claimed.",
        "",
    ]
    lines += ["| " + " | ".join(HEADER) + " |", "|---|---:|---:|---:|---:|---|---:|"]
    lines += ["| " + " | ".join([_link(row["claim"]), *cells(row)[1:]]) + " |" for row in rows]
    for row in rows:
        lines += ["", *_section(row, figures)]
    lines += ["", f"torch {machine['torch']}, {machine['threads']} threads, {machine['device']}.", ""]
    return "\n".join(lines)


def _section(row: Mapping[str, Any], figures: Mapping[str, str]) -> list[str]:
    lines = [f"## {row['claim']}", "", f"{row['statement']} *{row['source']}.* **{row['verdict']}**", ""]
    if row["verdict"] == "error":
        return [*lines, f"The check broke: {row['error']}"]
    lines += ["| comparison | predicted | measured | std. error | score |", "|---|---:|---:|---:|---:|"]
    for part in row["parts"]:
        shown = cells({**part, "claim": part["label"], "verdict": "", "seconds": 0.0})
        # A norm in a label would end the cell.
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in shown[:5]) + " |")
    if row["note"]:
        lines += ["", row["note"]]
    if row["claim"] in figures:
        lines += ["", f"![{row['claim']}]({figures[row['claim']]})"]
    return lines


def _link(name: str) -> str:
    return f"[{name}](#{name.replace('/', '')})"
