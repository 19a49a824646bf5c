"""What the transforms and the measures of a check are called; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from hessprobe.measures.table import DEFAULT, NAMES, Names
from hessprobe.measures.table import DENSE_LIMIT as DENSE_LIMIT


@dataclass(frozen=True)
class Transform:
    """A kind of function-preserving transform.

    Attributes:
        meaning: one sentence.
        scaled: whether a strength belongs to it.
    """

    meaning: str
    scaled: bool = True


TRANSFORMS: dict[str, Transform] = {
    "unit-rescaling": Transform(
        "the weights into each unit times c, those out of it times 1/c, through positively homogeneous functions; "
        "the factors of a layer multiply to 1"
    ),
    "layer-rescaling": Transform("the weights of one layer times c, those of the next times 1/c"),
    "norm-scale": Transform("the weights before a normalization times c; its eps follows as c^2"),
    "permutation": Transform("the units of a layer in another order", scaled=False),
    "qk-rescaling": Transform("the query weights of attention times c, the key weights times 1/c"),
    "vo-rescaling": Transform("the value weights of attention times c, the output weights times 1/c"),
}


# The (phi, psi, mu) measures and those that are more than a number have other tests; a transformed network has no
# optimizer whose state would be that of its weights.
MEASURES = Names(NAMES, lambda entry: not entry.number and "optimizer" not in entry.needs)
# A log-determinant with damping takes more products than all others together, and no transform leaves it.
DEFAULT_MEASURES = (*DEFAULT, "adaptive-lambda-max", "adaptive-trace", "adaptive-frob", "pseudo-logdet")
DEFAULT_STRENGTHS = (2.0, 10.0)

INVARIANT, CHANGES, UNDECIDED = "invariant", "changes", "undecided (error too large)"
# A transform was left out, or the measure does not exist on this network.
NOT_MEASURED = "not measured"


def default_measures(dim: int) -> tuple[str, ...]:
    """Return the measures that are wanted where none is named: those that a matrix of ``dim`` rows has."""
    return tuple(name for name in DEFAULT_MEASURES if dim <= DENSE_LIMIT or "matrix" not in NAMES[name].needs)
