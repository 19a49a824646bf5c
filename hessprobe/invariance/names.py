"""What the transforms and the measures of a check are called; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from hessprobe.measures.names import NAMES


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


@dataclass(frozen=True)
class Own:
    """A measure that only the check of invariance has.

    Attributes:
        unit: of the value.
        meaning: one sentence.
    """

    unit: str
    meaning: str


OWN: dict[str, Own] = {
    "adaptive-lambda-max": Own("loss", "largest eigenvalue of diag|w| H diag|w|"),
    "adaptive-trace": Own(
        "loss", "trace of diag|w| H diag|w|: mean of u^T H u over u = w * z, a product measure that moves with w"
    ),
    "adaptive-frob": Own(
        "loss", "Frobenius norm of diag|w| H diag|w|: from the variance of u^T H u, u = w * z, z ~ N(0, I)"
    ),
    "pseudo-logdet": Own("nats", "sum of log |eigenvalue| over the eigenvalues of H that are not zero to rounding"),
}

# The factors of w and of H cancel in diag|w| H diag|w|, whatever the rescaling.
RESCALING_INVARIANT = frozenset({"adaptive-lambda-max", "adaptive-trace", "adaptive-frob"})

# Measures whose value is a logarithm: before and after are compared by their difference.
LOGARITHMIC = frozenset({"logdet", "pseudo-logdet"})
# (phi, psi, mu) measures, a share and a count of eigenvalues have other tests, or scales of their own.
MEASURES: tuple[str, ...] = (*(name for name in NAMES if name not in ("density", "diagonal")), *OWN)
# A log-determinant with damping takes more products than all others together, and no transform leaves it.
DEFAULT_MEASURES = ("lambda-max", "trace", "frob", *OWN)
DEFAULT_STRENGTHS = (2.0, 10.0)
# The whole Hessian is written out and diagonalized up to this size.
DENSE_LIMIT = 1024

INVARIANT, CHANGES, UNDECIDED = "invariant", "changes", "undecided (error too large)"
# A transform was left out, or the measure does not exist on this network.
NOT_MEASURED = "not measured"


def default_measures(dim: int) -> tuple[str, ...]:
    """Return the measures that are wanted where none is named: those that a matrix of ``dim`` rows has."""
    return tuple(name for name in DEFAULT_MEASURES if name != "pseudo-logdet" or dim <= DENSE_LIMIT)
