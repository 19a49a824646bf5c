"""What a figure is before it is drawn: a name, a title, the numbers in words and as a table, and how to draw it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe import checks, files, looks
from hessprobe.report.figures import style as styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]


def table(**columns: Any) -> list[dict[str, Any]]:
    """Return rows of columns: arrays (n,) of one length, and single values that stand in every row.

    Raises:
        ValueError: arrays of different lengths.
    """
    arrays = np.broadcast_arrays(*(np.asarray(column, dtype=object) for column in columns.values()))
    return [dict(zip(columns, values, strict=True)) for values in zip(*map(np.ravel, arrays), strict=True)]


@dataclass(frozen=True)
class Drawn:
    """A figure made from a record.

    Attributes:
        name: what to call its file, without the ending; no other figure of the record has it.
        title: a few words for a heading; they do not stand in the figure.
        alt: a sentence with the numbers, for who cannot see the figure.
        draw: fills an empty figure.
        size: width and height in inches where nobody asks for another width.
        height: height in inches for a width in inches; None keeps the shape of ``size``.
        data: what is drawn, one mapping a row, each with what it has.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Figure], object]
    size: tuple[float, float] = (5.6, 3.6)
    height: Callable[[float], float] | None = None
    data: Rows = ()

    def sized(self, width: float | None = None) -> tuple[float, float]:
        """Return width and height in inches of the figure at a width in inches, 2 to 20, or at its own.

        Raises:
            TypeError, ValueError: a width that is no number in the range.
        """
        if width is None:
            return self.size
        width = checks.real("width", width, low=looks.NARROWEST, high=looks.WIDEST, hint="In inches.")
        return width, self.size[1] * width / self.size[0] if self.height is None else self.height(width)

    def figure(self, width: float | None = None, style: str = looks.STYLES[0]) -> Figure:
        """Return it as a figure of matplotlib; arguments as in ``content``."""
        return styles.build(self.draw, self.sized(width), style)

    def content(self, kind: str, width: float | None = None, style: str = looks.STYLES[0]) -> bytes:
        """Return what stands in a file of it; the same every time.

        Args:
            kind: ``"png"``, ``"svg"`` or ``"pdf"`` with the fonts in it.
            width: in inches, 2 to 20: 3.25 for one column of a journal, 6.75 for two; None for the figure's own.
            style: ``"paper"``, ``"screen"`` with larger letters, or ``"dark"``.

        Raises:
            TypeError, ValueError: another kind or style, or a width out of range.
        """
        return styles.encoded(self.draw, self.sized(width), checks.one_of("kind", kind, looks.FORMATS), style)

    def save(self, path: str | Path, width: float | None = None, style: str = looks.STYLES[0]) -> Path:
        """Write it to ``path``, whose ending chooses the format; other arguments as in ``content``.

        Raises:
            ValueError: another ending, or a folder that is missing or cannot be written.
        """
        target = files.check_output("path", path)
        kind = checks.one_of("format of path", target.suffix.lower().removeprefix("."), looks.FORMATS)
        content = self.content(kind, width, style)
        files.write_atomically(target, lambda file: file.write(content))
        return target

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of what is drawn, in the order of the CSV."""
        return tuple(dict.fromkeys(key for row in self.data for key in row))

    def save_data(self, path: str | Path) -> Path:
        """Write what is drawn as CSV: the columns of all rows, numbers in full, nothing for what is not finite.

        Raises:
            ValueError: a folder that is missing or cannot be written.
        """
        target = files.check_output("path", path)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in self.data)
        files.write_atomically(target, lambda file: file.write(text.getvalue().encode()))
        return target


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, (float, np.floating)) and not np.isfinite(value)):
        return ""
    return repr(float(value)) if isinstance(value, (float, np.floating)) else value
