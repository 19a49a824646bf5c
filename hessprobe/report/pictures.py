"""Figures of records as images that stand inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from hessprobe.errors import RecordError
from hessprobe.report.document import Picture
from hessprobe.report.figures import Drawn, figures_of
from hessprobe.report.figures.style import adaptive
from hessprobe.report.sources import Source

# Beyond it, dots are smaller than curves.
_LARGEST_SVG = 120_000
_PIXELS_PER_INCH = 96


def pictures_of(sources: Sequence[Source]) -> tuple[dict[str, tuple[Picture, ...]], dict[str, str]]:
    """Draw every figure of every record.

    Args:
        sources: the records.

    Returns:
        The pictures by label of their record; and by label, why there are none.
    """
    drawn: dict[str, tuple[Picture, ...]] = {}
    undrawn: dict[str, str] = {}
    for source in sources:
        try:
            drawn[source.label] = tuple(picture(each, source) for each in figures_of(source.record, source.path.parent))
        except RecordError as error:
            undrawn[source.label] = str(error)
    return drawn, undrawn


def picture(drawn: Drawn, source: Source) -> Picture:
    """Return a figure as an image, which is dark where the page is.

    An image has no access to the page: whatever stands in its labels, a script in it does not run.
    """
    content, kind = adaptive(drawn.content("svg", style="screen")), "svg+xml"
    if len(content) > _LARGEST_SVG:
        content, kind = drawn.content("png", style="screen"), "png"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    width, height = (round(inches * _PIXELS_PER_INCH) for inches in drawn.size)
    title = f"{drawn.title}: {source.subject}" if source.subject else drawn.title
    return Picture(title, drawn.alt, uri, width, height, source.id, source.label)
