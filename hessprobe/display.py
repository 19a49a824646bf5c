"""How results show themselves: plain data, small tables for notebooks, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor


def plain(value: Any) -> Any:
    """Return ``value`` as what JSON has: nan and inf become None, tensors and arrays lists, results their ``to_dict``.

    What is none of these becomes its text.
    """
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [plain(each) for each in value]
    return plain(value.to_dict()) if hasattr(value, "to_dict") else str(value)


def html_table(rows: Sequence[Sequence[object]], *, header: Sequence[str] = (), caption: str = "") -> str:
    """Return an HTML table, its texts escaped.

    Args:
        rows: cells, shown by ``str``; without a header the first of each row names the row.
        header: names of the columns.
        caption: a sentence above.
    """
    lines = ["<table>"]
    if caption:
        lines.append(f"<caption>{escape(caption)}</caption>")
    if header:
        lines.append(f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr>")
    for row in rows:
        first = "td" if header else "th"
        cells = [f"<{first}>{escape(str(row[0]))}</{first}>", *(f"<td>{escape(str(cell))}</td>" for cell in row[1:])]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def draw(result: object, **options: Any) -> Any:
    """Return the matplotlib axes of a figure of a result; see ``hessprobe.report.plotting.axes_of``."""
    # Figures lie far above the results, which import none of them.
    return import_module("hessprobe.report.plotting").axes_of(result, **options)
