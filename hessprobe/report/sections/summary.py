"""The page in words that can be quoted; every number is taken from a record."""

from __future__ import annotations

from hessprobe.report.document import Section, Text, section
from hessprobe.report.sections import (
    comparison,
    invariance,
    landscape,
    measures,
    sharpness,
    tracking,
    training,
    validation,
)
from hessprobe.report.sections.page import Page

_LEAD = "Every sentence is made from a record, whose name stands behind it; the last section says how to make it again."


def build(page: Page) -> Section | None:
    """Return the section: first the networks, then one list a question."""
    texts = []
    for module in (training, measures, comparison, sharpness, invariance, landscape, tracking, validation):
        said = tuple(module.sentences(page))
        texts.append(Text(said, listed=True) if said else None)
    return section("summary", "Summary", texts, _LEAD)
