"""What can be compared between checkpoints, and in which words; importable without torch."""

from __future__ import annotations

from hessprobe.measures.table import DEFAULT, TABLE, entry_of

MEASURES = TABLE
DEFAULT_MEASURES = (*DEFAULT, "adaptive-trace")

SHARPER, FLATTER, HIGHER, LOWER = "sharper", "flatter", "higher", "lower"
WITHIN, UNDECIDED = "within error", "undecided"
# Checkpoints that a rank correlation needs for an interval that says anything.
FEWEST = 5


def direction(measure: str, difference: float) -> str:
    """Return the verdict on a checkpoint whose measure exceeds that of the baseline by ``difference``, not 0."""
    up, down = (SHARPER, FLATTER) if entry_of(measure).sharper else (HIGHER, LOWER)
    return up if difference > 0 else down


def grows_with_size(measure: str) -> bool:
    """Return whether a measure adds up over parameters, so that networks of different size differ in it already."""
    return entry_of(measure).extensive


def moved_by_rescaling(measure: str) -> bool:
    """Return whether rescalings that keep the function of a network move the measure, as far as theory tells.

    The pseudo-determinant counts as moved: it stays only where the factors of a layer multiply to 1.
    """
    return "rescaling" not in entry_of(measure).invariances
