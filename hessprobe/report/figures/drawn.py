"""What a figure is before it is drawn: a name, a title, the numbers in words, and how to draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hessprobe import checks, files
from hessprobe.report.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """A figure made from a record.

    Attributes:
        name: what to call its file, without the ending; no other figure of the record has it.
        title: a few words for a heading; they do not stand in the figure.
        alt: a sentence with the numbers, for who cannot see the figure.
        draw: fills an empty figure.
        size: width and height in inches.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Figure], object]
    size: tuple[float, float] = (5.6, 3.6)

    def figure(self) -> Figure:
        """Return it as a figure of matplotlib."""
        return style.build(self.draw, self.size)

    def content(self, kind: str) -> bytes:
        """Return what stands in a file of ``kind``: ``"png"``, ``"svg"`` or ``"pdf"``; the same every time.

        Raises:
            ValueError: another kind.
        """
        return style.encoded(self.draw, self.size, checks.one_of("kind", kind, style.FORMATS))

    def save(self, path: str | Path) -> Path:
        """Write it to ``path``, whose ending chooses the format.

        Raises:
            ValueError: another ending, or a folder that is missing or cannot be written.
        """
        target = files.check_output("path", path)
        kind = checks.one_of("format of path", target.suffix.lower().removeprefix("."), style.FORMATS)
        content = self.content(kind)
        files.write_atomically(target, lambda file: file.write(content))
        return target
