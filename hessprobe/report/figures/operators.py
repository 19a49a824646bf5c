"""The same measures of several matrices side by side: Hessian, Gauss-Newton matrix, functional part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.measures.table import entry_of
from hessprobe.report.figures.density import densities, ridge
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import OPERATORS, entry, short, spread
from hessprobe.report.figures.style import COLORS, GRAY, small

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panels side by side at most, and inches that one needs.
_ACROSS, _PANEL = 4, 1.15
Bars = Mapping[str, Mapping[str, tuple[float, float, float]]]


def figures_across(records: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Return, for every network that was measured under several operators, their numbers and densities side by side.

    Args:
        records: of any commands; those of ``measure`` count. Records of one network and data belong together.

    Raises:
        RecordError: a record lacks an entry.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["command"] == "measure":
            groups.setdefault(_subject(record), []).append(record)
    found = []
    for number, group in enumerate(groups.values()):
        by_operator = {str(row["operator"]): record for record in group for row in record["results"]}
        if len(by_operator) > 1:
            found += _beside(by_operator, "" if number == 0 else f"-{number + 1}")
    return [*found, *_ridges(records)]


def _ridges(records: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Return the spectra of several checkpoints under one operator below each other, in the order of the records."""
    rows: dict[str, dict[str, tuple[Mapping[str, Any], str]]] = {}
    for record in records:
        if record["command"] == "measure":
            given = record["arguments"]
            name = Path(str(given.get("ckpt") or given.get("objective"))).stem
            for index, row in enumerate(record["results"]):
                if "density" in entry_of(row["measure"]).drawn:
                    rows.setdefault(str(row["operator"]), {})[name] = (row, f"results[{index}],")
    return [ridge(f"spectra-{operator}", each) for operator, each in rows.items() if len(each) > 1]


def _subject(record: Mapping[str, Any]) -> str:
    """Return what a record was measured on; that of two records agrees where network, data and parameters do."""
    given = record["arguments"]
    network = (record.get("checkpoint") or {}).get("sha256") or given.get("ckpt")
    data = (record.get("data") or {}).get("fingerprint")
    return repr([network, data, *(given.get(key) for key in ("objective", "params", "batchnorm"))])


def _beside(by_operator: Mapping[str, Mapping[str, Any]], ending: str) -> list[Drawn]:
    bars: dict[str, dict[str, tuple[float, float, float]]] = {}
    rows: dict[str, dict[str, tuple[Mapping[str, Any], str]]] = {}
    for operator, record in by_operator.items():
        title = OPERATORS.get(operator, operator)
        for index, row in enumerate(record["results"]):
            where = f"results[{index}],"
            rows.setdefault(entry(row, "measure", str, where), {})[title] = (row, where)
            if "bar" in entry_of(row["measure"]).drawn:
                bars.setdefault(title, {})[row["measure"]] = spread(row, where)
    drawn = [side_by_side(f"operators{ending}", bars)] if bars else []
    curves = [found for name, found in rows.items() if "density" in entry_of(name).drawn and len(found) > 1]
    return drawn + [densities(f"densities{ending}", found) for found in curves]


def side_by_side(name: str, bars: Bars) -> Drawn:
    """Return one panel a quantity with one bar a matrix, each with its interval.

    Args:
        name: of the figure.
        bars: by matrix, then quantity: value, and how far the interval reaches below and above.
    """
    quantities = list(dict.fromkeys(key for each in bars.values() for key in each))

    def draw(figure: Figure) -> None:
        across = _across(len(quantities), figure.get_figwidth())
        down = -(-len(quantities) // across)
        panels: Any = figure.subplots(down, across, squeeze=False, sharey=True)
        places = np.arange(len(bars))
        for panel, quantity in zip(panels.flat, quantities, strict=False):
            values, below, above = np.array([each.get(quantity, (np.nan,) * 3) for each in bars.values()]).T
            panel.barh(places, values, xerr=np.stack([below, above]), color=COLORS[: len(bars)], height=0.65,
                       error_kw={"lw": 1.0, "capsize": 2.5})  # fmt: skip
            for place in places[np.isnan(values)]:
                panel.annotate("not measured", (0.05, place), xycoords=panel.get_yaxis_transform(), va="center",
                               fontsize=small(), color=GRAY)  # fmt: skip
            panel.axvline(0, color=GRAY, lw=0.8)
            panel.set_title(quantity, loc="left")
            panel.locator_params(axis="x", nbins=3)
            panel.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)
            panel.grid(axis="x")
        for panel in panels.flat[len(quantities) :]:
            panel.remove()
        for panel in panels[:, 0]:
            panel.set_yticks(places, labels=[title.removesuffix(" matrix") for title in bars])
        panels[0, 0].set_ylim(len(bars) - 0.5, -0.5)

    said = [
        f"{quantity}: "
        + ", ".join(f"{title} {short(each[quantity][0])}" for title, each in bars.items() if quantity in each)
        for quantity in quantities
    ]
    data = [
        {"matrix": title, "quantity": quantity, "value": value, "low": value - below, "high": value + above}
        for title, each in bars.items()
        for quantity, (value, below, above) in each.items()
    ]

    def height(width: float) -> float:
        return -(-len(quantities) // _across(len(quantities), width)) * (0.65 + 0.24 * len(bars)) + 0.1

    width = 1.6 + 1.5 * min(len(quantities), _ACROSS)
    title = "Hessian, Gauss-Newton and what is left, side by side"
    return Drawn(name, title, f"{'; '.join(said)}.", draw, (width, height(width)), height, data)


def _across(count: int, width: float) -> int:
    """Return panels side by side: as few rows as there is room for, and rows of about one length."""
    most = max(1, min(_ACROSS, int((width - 0.8) / _PANEL)))
    rows = -(-count // most)
    return -(-count // rows)
