"""Cells as Markdown: one line a question with its worst cell, and the whole grid below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hessprobe.validation.coverage import tally
from hessprobe.validation.coverage.trials import questions

Cell = dict[str, Any]

HEADER = ("question", "cells", "coverage", "worst cell", "unflagged", "95 %", "flagged", "width", "verdict")
_INTRO = (
    "How often the intervals of every estimator hold the truth, on symmetric matrices drawn by seed from wide families "
    "of spectra, {families} here (exponents, gaps, numbers, sizes and signs of outliers, shares of zeros are drawn "
    "anew for every 20 runs), in eigenvectors that are rotated, localised, coupled in blocks or along the axes, over "
    "batches whose number, sizes and likeness are drawn. The truth is a dense fp64 eigenvalue decomposition by NumPy. "
    "Nominal level 95 %, of eigenvalues 99 %. Made by `hessprobe validate --coverage`."
)
_LEGEND = (
    "*Coverage*: share of the intervals that hold the truth, over all cells of the question. *Worst cell*: the one "
    "whose runs without a flag cover least, the share of those runs, and its 95 % score interval (Wilson). *Flagged*: "
    "share of runs whose result says of itself that its interval may miss. *Width*: median over matrices of the mean "
    "width over that of an ideal normal interval, 2 z times the root mean square error of the values (a bracket of an "
    "eigenvalue is as wide as the tolerance allows, 1 %, however near the value is). A cell under its "
    "floor is made again with {confirm} times as many fresh runs, which alone decide; *low*: it is under the floor "
    "again, without a flag."
)


def failing(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that cover too little without saying so, or could not be made."""
    return [cell for cell in cells if tally.verdict(cell) in ("low", "refused")]


def summary_rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Return one line a question, in the order of ``HEADER``."""
    lines = []
    for name in questions():
        own = [cell for cell in cells if cell["question"] == name]
        if own:
            lines.append(_summary(name, own))
    return lines


def markdown(cells: Sequence[Cell], arguments: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        cells: of a record.
        arguments: of a record.
        machine: the environment of a record.
    """
    bad, families = failing(cells), {cell["family"] for cell in cells if not cell["family"].startswith("gap ")}
    runs, seconds = sum(cell["runs"] for cell in cells), math.fsum(cell["seconds"] for cell in cells)
    verdicts = (
        f"{len(cells)} cells, {runs:,} runs: {len(cells) - len(bad)} hold or say that they may not, {len(bad)} fail"
    )
    lines = ["# Coverage of intervals", "", f"{verdicts}; {seconds / 60:.0f} minutes of one core.", ""]
    lines += [_INTRO.format(families=len(families)), "", _LEGEND.format(confirm=arguments.get("confirm")), ""]
    lines += _table(HEADER, summary_rows(cells))
    if bad:
        lines += ["", "## Cells that fail", "", *_table(_FULL, [_full(cell) for cell in bad])]
    lines += [
        "",
        "## All cells",
        "",
        "*Coverage* (of the runs without a flag where it differs, after a slash), *flagged* in per cent where any, "
        "*width*. **Bold**: fails.",
    ]
    for name in questions():
        lines += _grid(name, [cell for cell in cells if cell["question"] == name])
    lines += ["", f"torch {machine['torch']}, {machine['device']}; source {arguments.get('code')}.", ""]
    return "\n".join(lines)


def _summary(name: str, own: Sequence[Cell]) -> list[str]:
    judged = [cell for cell in own if cell["unflagged_runs"] >= tally.FEW_PLAIN * cell["runs"]]
    worst = min(judged or own, key=lambda cell: cell["unflagged_coverage"] if judged else cell["coverage"])
    bad, runs = failing(own), sum(cell["runs"] for cell in own)
    low, high = worst["unflagged_interval"]
    flagged = math.fsum(cell["flagged"] * cell["runs"] for cell in own) / max(runs, 1)
    widths = [cell["width"] for cell in own if cell["width"] is not None]
    return [
        name,
        str(len(own)),
        f"{math.fsum(cell['coverage'] * cell['runs'] for cell in own) / max(runs, 1):.3f}",
        f"{worst['family']}, {worst['size']} {worst['unit']}",
        "all flagged" if not judged else f"{worst['unflagged_coverage']:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{flagged:.1%}",
        f"{np.median(widths):.2f}" if widths else "exact",
        f"{len(bad)} fail" if bad else "holds",
    ]


_FULL = (
    "question",
    "family",
    "size",
    "runs",
    "coverage",
    "unflagged",
    "95 %",
    "flagged",
    "truth above / below",
    "width",
    "median error",
    "at first",
)


def _full(cell: Cell) -> list[str]:
    if cell["refused"]:
        about = f"refused {cell['refused']} times: {cell['refusal']}"
        return [cell["question"], cell["family"], _size(cell), str(cell["runs"]), about, *[""] * (len(_FULL) - 5)]
    first = cell.get("first")
    low, high = cell["unflagged_interval"]
    return [
        cell["question"],
        cell["family"],
        _size(cell),
        str(cell["runs"]),
        f"{cell['coverage']:.3f}",
        f"{cell['unflagged_coverage']:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{cell['flagged']:.1%}",
        f"{cell['truth_above']:.3f} / {cell['truth_below']:.3f}",
        _number(cell["width"], ".2f"),
        _number(cell["error"], ".2g"),
        "" if first is None else f"{first['unflagged_coverage']:.3f} of {first['unflagged_runs']}",
    ]


def _grid(name: str, own: Sequence[Cell]) -> list[str]:
    if not own:
        return []
    sizes = sorted({cell["size"] for cell in own})
    by_place = {(cell["family"], cell["size"]): cell for cell in own}
    rows = [
        [family, *(_short(by_place.get((family, size))) for size in sizes)]
        for family in dict.fromkeys(cell["family"] for cell in sorted(own, key=lambda cell: str(cell["family"])))
    ]
    return ["", f"### {name}", "", *_table(("family", *(f"{size} {own[0]['unit']}" for size in sizes)), rows)]


def _short(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell["refused"]:
        return "**refused**"
    text = f"{cell['coverage']:.3f}"
    if cell["flagged"] > 0:
        plain = cell["unflagged_coverage"]
        text += f" / {'-' if plain is None else f'{plain:.3f}'}, {cell['flagged']:.0%}"
    text += f", {_number(cell['width'], '.2f')}" if cell["width"] is not None else ""
    return f"**{text}**" if tally.verdict(cell) == "low" else text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return lines + ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]


def _size(cell: Cell) -> str:
    return f"{cell['size']} {cell['unit']}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
