"""What can be compared between checkpoints, and in which words; importable without torch."""

from __future__ import annotations

from hessprobe.invariance.names import OWN, RESCALING_INVARIANT
from hessprobe.measures.names import NAMES, UNIVERSAL

MEASURES: tuple[str, ...] = (*NAMES, *OWN, *UNIVERSAL)
DEFAULT_MEASURES = ("lambda-max", "trace", "frob", "adaptive-trace")

# Measures that are larger where the loss rises faster around the weights; the others are merely higher or lower.
_SIZES = frozenset(
    {"lambda-max", "spectral-norm", "trace", "frob", "logdet", "diagonal", "pseudo-logdet", *RESCALING_INVARIANT}
)
# Sums over all parameters: a larger network has more of them.
_EXTENSIVE = frozenset(NAMES) - {"lambda-max", "lambda-min", "spectral-norm", "diagonal", "density"}

SHARPER, FLATTER, HIGHER, LOWER = "sharper", "flatter", "higher", "lower"
WITHIN, UNDECIDED = "within error", "undecided"
# Checkpoints that a rank correlation needs for an interval that says anything.
FEWEST = 5


def direction(measure: str, difference: float) -> str:
    """Return what a checkpoint is whose measure differs from that of the baseline by ``difference``, not 0."""
    up, down = (SHARPER, FLATTER) if measure in _SIZES else (HIGHER, LOWER)
    return up if difference > 0 else down


def grows_with_size(measure: str) -> bool:
    """Return whether a measure adds up over all parameters, so that networks of two sizes differ in it anyway."""
    return measure in _EXTENSIVE or measure in (OWN.keys() - {"adaptive-lambda-max"})


def moved_by_rescaling(measure: str) -> bool:
    """Return whether rescalings that keep the function of a network move the measure, as far as theory tells.

    The pseudo-determinant counts as moved: it stays only where the factors of a layer multiply to 1.
    """
    return measure not in RESCALING_INVARIANT
