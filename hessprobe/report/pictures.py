"""Figures of records as images that stand inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from hessprobe.errors import RecordError
from hessprobe.report.document import Picture
from hessprobe.report.figures import Drawn, figures_across, figures_of
from hessprobe.report.figures.style import adaptive
from hessprobe.report.sources import Source

# Beyond it, two pictures of dots, one a color scheme, are smaller than curves.
_LARGEST_SVG = 200_000
_PIXELS_PER_INCH = 96
# Figures of a track whose panels its whole has, too.
_PARTS = ("training", "overlap")
# Inches of a column of the page, so that letters are as large in every picture; wider than the other are rows.
_COLUMN, _WIDE = 5.0, 6.9


def pictures_of(sources: Sequence[Source]) -> tuple[dict[str, tuple[Picture, ...]], dict[str, str]]:
    """Draw every figure of every record, and those that put several records side by side.

    Args:
        sources: the records.

    Returns:
        The pictures by label of their record, those of several records by their labels with a plus between; and by
        label, why there are none.
    """
    drawn: dict[str, tuple[Picture, ...]] = {}
    undrawn: dict[str, str] = {}
    together = _together(sources)
    # A ridge of spectra shows the density of each of its records.
    covered = {
        (each.name.replace("spectra-", "density-", 1), source.label) for each, made in together for source in made
    }
    for source in sources:
        try:
            drawn[source.label] = tuple(
                picture(each, [source], covered=(each.name, source.label) in covered or each.name in _PARTS)
                for each in figures_of(source.record, source.path.parent)
            )
        except RecordError as error:
            undrawn[source.label] = str(error)
    for each, made in together:
        label = "+".join(source.label for source in made)
        drawn[label] = (*drawn.get(label, ()), picture(each, made))
    return drawn, undrawn


def _together(sources: Sequence[Source]) -> list[tuple[Drawn, Sequence[Source]]]:
    """Return the figures of several records with the records that they are made from."""
    found: list[tuple[Drawn, Sequence[Source]]] = []
    for command in dict.fromkeys(source.command for source in sources):
        own = [source for source in sources if source.command == command]
        try:
            found += [(each, own) for each in figures_across([source.record for source in own])]
        except RecordError:
            # The record that lacks something is told of where it is drawn alone.
            continue
    return found


def picture(drawn: Drawn, sources: Sequence[Source], *, covered: bool = False) -> Picture:
    """Return a figure as an image, which is dark where the page is.

    An image has no access to the page: whatever stands in its labels, a script in it does not run.

    Args:
        drawn: the figure.
        sources: the records that it is made from.
        covered: whether another picture shows the same beside others.
    """
    inches = drawn.size[0] if drawn.size[0] > _WIDE else min(drawn.size[0], _COLUMN)
    content, dark = adaptive(drawn.content("svg", inches, "screen")), b""
    kind = "svg+xml"
    if len(content) > _LARGEST_SVG:
        content, dark = (drawn.content("png", inches, style) for style in ("screen", "dark"))
        kind = "png"
    width, height = (round(each * _PIXELS_PER_INCH) for each in drawn.sized(inches))
    subject = sources[0].subject if len(sources) == 1 else ""
    title = f"{drawn.title}: {subject}" if subject else drawn.title
    links = tuple((source.id, source.label) for source in sources)
    return Picture(title, drawn.alt, _uri(content, kind), width, height, links, _uri(dark, kind), covered)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}" if content else ""
