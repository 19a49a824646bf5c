"""Conformance as Markdown: cases as rows, tools as columns, and below a line for each cell that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hessprobe.benchmarks.conformance.compare import ABSENT, PARTS

_LONGEST = 220
# Status of a cell -> whether the tool holds the case; None where it was not asked.
HOLDS: dict[str, bool | None] = {
    "right": True,
    "wrong": False,
    "refused": False,
    "crashed": False,
    "missing": None,
    ABSENT: None,
}

_Row = Mapping[str, Any]


def tables(rows: Sequence[_Row]) -> str:
    """Return a table for each part, and below it what went wrong.

    Args:
        rows: of the record, few or all.
    """
    return "\n".join(_part(name, [row for row in rows if row["part"] == name]) for name in PARTS)


def _part(name: str, rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    cases = {row["case"]: row["must_hold"] for row in rows}
    cells = {(row["case"], row["tool"]): row for row in rows}
    versions = {tool: next(row["version"] for row in rows if row["tool"] == tool) for tool in tools}
    head = [f"{tool} {versions[tool]}".strip() for tool in tools]
    lines = [f"## {PARTS[name].title}", "", f"| case | {' | '.join(head)} |", "|---" * (len(tools) + 1) + "|"]
    for case in cases:
        found = [_short(cells[case, tool]) if (case, tool) in cells else "" for tool in tools]
        lines.append(f"| {case} | {' | '.join(found)} |")
    lines.append("| **held** | " + " | ".join(_score([row for row in rows if row["tool"] == tool]) for tool in tools))
    lines[-1] += " |"
    lines += ["", f"### {PARTS[name].title}: what must hold, and what did not", ""]
    for case, must_hold in cases.items():
        lines.append(f"- **{case}**: {must_hold}")
        failing = [cells[case, tool] for tool in tools if (case, tool) in cells]
        lines += [f"    - {row['tool']}: {_said(row)}" for row in failing if HOLDS[row["status"]] is False]
    return "\n".join(lines) + "\n"


def _score(rows: Sequence[_Row]) -> str:
    asked = [HOLDS[row["status"]] for row in rows if HOLDS[row["status"]] is not None]
    return f"{sum(map(bool, asked))} of {len(asked)}" if asked else "n/a"


def _short(row: _Row) -> str:
    """Return a cell of a few letters."""
    status, error, note = row["status"], row["error"], row["note"]
    if status in ("missing", ABSENT):
        return "-" if status == "missing" else ABSENT
    if status == "right":
        return "refuses" if note.startswith("refused:") else "pass"
    if status == "crashed":
        return "**crash**"
    if status == "refused":
        return "**error**"
    if error is None:
        return "**nan**" if note == "not finite" else "**changes state**" if "changed" in note else "**wrong**"
    return f"**{error:.3g}**" if row["rule"] in ("at least", "at most") else f"**off {_share(error)}**"


def _share(error: float) -> str:
    if error >= 10:
        return f"{error:.0f} times"
    return f"{error:.0%}".replace("%", " %") if error >= 0.01 else f"{error:.1g}"


def _said(row: _Row) -> str:
    """Return the sentence about a failing cell."""
    error, note = row["error"], row["note"]
    if row["status"] == "wrong" and error is not None:
        if row["rule"] in ("at least", "at most"):
            return f"{error:.4g} where {note} is asked for."
        return (
            f"off by {_share(error)} of the truth (Euclidean norm)."
            if row["rule"] == "equal"
            else (f"a second answer differs by {_share(error)}.")
        )
    note = note.replace("`", "'")
    text = note if len(note) <= _LONGEST else note[: _LONGEST - 1] + "…"
    return f"`{text}`" if row["status"] == "refused" else text + "."


def page(rows: Sequence[_Row], machine: str, *, incomplete: bool = False) -> str:
    """Return the whole page.

    Args:
        rows: of the record.
        machine: one sentence of versions and machine.
        incomplete: whether the run was cut off.
    """
    note = "Not complete: these were finished.\n\n" if incomplete else ""
    return _HEAD + note + tables(rows) + "\n" + machine + "\n"


_HEAD = """# The same cases on several tools

Each case asks a tool for one number whose truth is known by other means: float64, by plain torch, by differences of
gradients or, where gradients lie, of losses. In a cell:

- pass: right within the tolerance of the case; refuses: an error that says why, where that is as good as an answer;
- **off**: the relative error of an answer that was given without a word, or the number where a limit is asked for;
- **error**: an exception where there is an answer;
- **changes state**: parameters, buffers, modes or the global generator were not left as they were;
- a dash: the tool does not offer it.

Made by `hessprobe bench --conformance --json reports/conformance.json --markdown reports/conformance.md` in an
environment with `constraints-peers.txt`. Cases and adapters are in `hessprobe/benchmarks/conformance`: a package is
used as its own page shows, with the options that help it. The cases were collected where some tool was seen to go
wrong, so that the last row of a table is no mark for a package, and a cell is about the version named.

"""
