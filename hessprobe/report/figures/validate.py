"""Figures of ``hessprobe validate``: the curve of every claim that has one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures import legends
from hessprobe.report.figures.drawn import Drawn, table
from hessprobe.report.figures.fields import Floats, entry, floats, short
from hessprobe.report.figures.scales import logarithmic
from hessprobe.report.figures.style import COLORS, GRAY
from hessprobe.report.figures.symbols import length, printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches: a letter of a title, a line of a legend or title; lines of a title at most.
_LETTER, _KEY_LINE, _LINES = 0.062, 0.15, 4
# A logarithmic axis of less than this ratio has one power of ten or none.
_FEW = 100.0
# More points than these are a line without markers.
_MARKED = 20
# What tells kinds of one color apart: with markers, and without.
_MARKERS, _DASHES = ("o", "s", "^", "D", "v", "P"), ("-", (0, (1, 1.2)), "-.", (0, (6, 1)), "-", "-")
_THEORY = "--"
# Where a sentence may end early.
_CLAUSE = re.compile(r"[;:] ")
_FORMULA = re.compile(r"\([^()]{1,24}\)")
# Label, x, y, whether it is theory.
_Line = tuple[str, Floats, Floats, bool]


@dataclass(frozen=True)
class _Look:
    """How a series is drawn: its color, which kind of its color it is, and what the legend says of the two."""

    color: str
    kind: int = 0
    name: str = ""
    variant: str = ""


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figures of a record; see ``dispatch.figures_of``."""
    return list(curves(record).values())


def curves(record: Mapping[str, Any]) -> dict[str, Drawn]:
    """Return the figure of each claim that has a curve.

    Raises:
        RecordError: an entry is missing.
    """
    found = [(row, f"results[{index}],") for index, row in enumerate(record["results"])]
    return {entry(row, "claim", str, where): curve(row, where) for row, where in found if row.get("curve")}


def curve(row: Mapping[str, Any], where: str) -> Drawn:
    """Return the curve of a claim under its sentence: theory dashed, what was measured in the same color.

    Args:
        row: of the claim.
        where: the row in words.

    Raises:
        RecordError: an entry is missing.
    """
    claim = entry(row, "claim", str, where)
    found, where = entry(row, "curve", dict, where), f"{where} curve"
    lines = []
    for index, series in enumerate(entry(found, "series", list, where)):
        place = f"{where}, series[{index}],"
        x, y = (floats(entry(series, key, list, place), f"{place} {key}") for key in ("x", "y"))
        lines.append((entry(series, "label", str, place), x, y, entry(series, "dashed", bool, place)))
    titles = {key: entry(found, key, str, where) for key in ("x", "y")}
    scales = {key: "log" if entry(found, f"log_{key}", bool, where) else "linear" for key in ("x", "y")}

    statement = entry(row, "statement", str, where)
    looks = _looks([(label, dashed) for label, _, _, dashed in lines])

    def draw(figure: Figure) -> None:
        panel: Any = figure.subplots()
        for (label, x, y, dashed), look in zip(lines, looks, strict=True):
            (line,) = panel.plot(x, y, color=look.color, lw=1.2, label=_key(label))
            _stroke(line, look, len(x), dashed)
        panel.set(xscale=scales["x"], yscale=scales["y"], xlabel=printed(titles["x"]), ylabel=printed(titles["y"]))
        panel.grid()
        for axis in ("x", "y"):
            every = np.concatenate([each[1 if axis == "x" else 2] for each in lines])
            positive = every[every > 0]
            if scales[axis] == "log" and len(positive) and positive.max() < _FEW * positive.min():
                logarithmic(panel, axis, positive, 1.0)
        figure.suptitle("\n".join(_wrapped(statement, figure.get_figwidth())), fontsize="medium")
        if len(lines) > 1:
            legends.below(figure, _handles(lines, looks))

    def height(width: float) -> float:
        keys = [handle.get_label() for handle in _handles(lines, looks)] if len(lines) > 1 else []
        return (
            _KEY_LINE * (len(legends.rows(keys, width)) + len(_wrapped(statement, width)))
            + 0.7
            + 0.45 * min(width, 4.5)
        )

    data = [line for label, x, y, dashed in lines for line in table(series=label, theory=str(dashed).lower(), x=x, y=y)]
    alt = f"{claim}, {entry(row, 'verdict', str, where)}: {statement}{_compared(row)}"
    return Drawn(claim.replace("/", "-"), claim, alt, draw, (5.0, height(5.0)), height, data)


def _wrapped(sentence: str, width: float) -> list[str]:
    """Return the lines of a title; one that goes on for long ends with a clause, or is cut in its fourth line."""
    room = int((width - 0.2) / _LETTER)
    for end in (len(sentence), *(found.start() for found in reversed([*_CLAUSE.finditer(sentence)]))):
        lines = _filled(printed(sentence[:end]), room)
        if len(lines) <= _LINES:
            return lines
    lines = _filled(printed(sentence), room)
    return [*lines[: _LINES - 1], f"{lines[_LINES - 1][:-1]}\u2026"]


def _filled(text: str, room: int) -> list[str]:
    lines: list[list[str]] = [[]]
    # A short formula in parentheses stays together.
    for word in _FORMULA.sub(lambda found: found[0].replace(" ", "\u00a0"), text).split(" "):
        if lines[-1] and length(" ".join([*lines[-1], word])) > room:
            lines.append([])
        lines[-1].append(word)
    return [" ".join(line) for line in lines]


def _looks(series: Sequence[tuple[str, bool]]) -> list[_Look]:
    """Return how each series looks: theory has the color of what was measured, and kinds of one name have one color.

    Theory belongs to the measured series whose label is in its own, or where there is one of each. Measured labels
    ``name, kind`` whose kind stands with several names are told apart by their markers.
    """
    measured = [label for label, dashed in series if not dashed]
    parts = {label: label.rpartition(", ")[::2] for label in measured}
    kinds = [kind for kind, count in Counter(kind for name, kind in parts.values() if name).items() if count > 1]
    known = {label: parts[label] if parts[label][1] in kinds and parts[label][0] else (label, "") for label in measured}
    colors = dict(zip(dict.fromkeys(name for name, _ in known.values()), COLORS * len(measured), strict=False))
    # Where a name stands alone too, that is the first kind.
    order = ([""] if any(not kind for _, kind in known.values()) else []) + kinds
    single = len(measured) == 1 and len(series) == 2
    free = iter([*COLORS[len(colors) :], *COLORS])
    owners = {label: _owner(label, measured, single) for label, dashed in series if dashed}
    rests = {label: label.replace(owner, "").strip(", ") for label, owner in owners.items() if owner and owner in label}
    shared = [rest for rest, count in Counter(rests.values()).items() if count > 1]
    found = []
    for label, dashed in series:
        if not dashed:
            name, kind = known[label]
            found.append(_Look(colors[name], order.index(kind) % len(_MARKERS), name, kind))
            continue
        owner, rest = owners[label], rests.get(label, "")
        color = next(free) if owner is None else colors[known[owner][0]]
        found.append(_Look(color, 0, "", rest) if rest in shared else _Look(color, 0, label))
    return found


def _owner(label: str, measured: Sequence[str], single: bool) -> str | None:
    # The longest one: "trace" is in "trace, plain", too.
    return max((each for each in measured if each in label), key=len, default=measured[0] if single else None)


def _handles(lines: Sequence[_Line], looks: Sequence[_Look]) -> list[Any]:
    """Return the entries of the legend: a color a name, then in gray what tells its kinds and its theory apart."""
    from matplotlib.lines import Line2D

    found: dict[str, Line2D] = {}
    shared: dict[str, Line2D] = {}
    several = any(look.name and look.variant for look in looks)
    for (_, x, _, dashed), look in zip(lines, looks, strict=True):
        if look.name and look.name not in found:
            found[look.name] = Line2D([], [], color=look.color, lw=1.2, label=_key(look.name))
        if look.variant and look.variant not in shared:
            shared[look.variant] = Line2D([], [], color=GRAY, lw=1.2, label=_key(look.variant))
        # Where kinds are told apart in gray, a name is a color alone.
        for handle in [shared[look.variant]] if look.variant else [] if several and not dashed else [found[look.name]]:
            _stroke(handle, look, len(x), dashed)
    return [*found.values(), *shared.values()]


def _stroke(line: Any, look: _Look, count: int, dashed: bool) -> None:
    """Give a line the dashes and markers of a series of so many points."""
    marked = count <= _MARKED and not dashed
    line.set(linestyle=_THEORY if dashed else "-" if marked else _DASHES[look.kind])
    if marked:
        line.set(marker=_MARKERS[look.kind], markersize=3)
        if look.kind % 2:
            line.set_markerfacecolor("#ffffff")


def _key(label: str) -> str:
    """Return a label for the legend, sums with their sign."""
    name, found = re.subn("^sum of ", "", label)
    if not found:
        return printed(label)
    single = re.search(r" [-+] ", re.sub(r"\([^()]*\)", "", name)) is None
    return f"\u03a3 {printed(name)}" if single else f"\u03a3({printed(name)})"


def _compared(row: Mapping[str, Any]) -> str:
    if row.get("measured") is None:
        return ""
    measured = f" Measured {short(row['measured'])}"
    return f"{measured}." if row.get("predicted") is None else f"{measured}, predicted {short(row['predicted'])}."
