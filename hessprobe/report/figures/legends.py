"""A legend below a figure whose entries fill its rows, as words fill lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hessprobe.report.figures.symbols import length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches: a letter, the line before it with the room between two entries, the border.
_LETTER, _HANDLE, _BORDER = 0.056, 0.4, 0.15


def rows(labels: Sequence[str], width: float) -> list[list[int]]:
    """Return which entries stand in each row below a figure of a width in inches, in their order.

    Args:
        labels: of the entries, as ``symbols.printed`` gives them.
        width: of the figure in inches.
    """
    found: list[list[int]] = []
    left = 0.0
    for index, label in enumerate(labels):
        own = _HANDLE + _LETTER * length(label)
        if not found or own > left:
            found.append([])
            left = width - _BORDER
        found[-1].append(index)
        left -= own
    return found


def below(figure: Figure, handles: Sequence[Any]) -> None:
    """Write a legend below the panels of a figure; a legend of matplotlib has columns, where one long entry costs all.

    Args:
        figure: with constrained layout.
        handles: lines with their labels.
    """
    from matplotlib.offsetbox import HPacker, VPacker

    legend: Any = figure.legend(handles=list(handles), loc="outside lower center", ncol=1)
    (column,) = legend._legend_handle_box.get_children()
    items = column.get_children()
    packed: list[Any] = [
        HPacker(pad=0, sep=legend.columnspacing * legend._fontsize, align="baseline", children=[items[i] for i in row])
        for row in rows([handle.get_label() for handle in handles], figure.get_figwidth())
    ]
    every = VPacker(pad=0, sep=legend.labelspacing * legend._fontsize, align="left", children=packed)
    every.set_figure(figure)
    legend._legend_handle_box.get_children()[:] = [every]
