"""What each measure is called, what it means, and where it comes from; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from hessprobe.universal.names import MEANINGS, PAPER


@dataclass(frozen=True)
class Entry:
    """One named measure of a curvature matrix A with eigenvalues lambda_1 >= ... >= lambda_d.

    Attributes:
        unit: of the value; ``"curvature"`` is loss per squared parameter.
        meaning: one sentence.
        reference: author, year.
        number: what the one number of a measure is that is more than a number, empty for the others.
    """

    unit: str
    meaning: str
    reference: str
    number: str = ""


NAMES: dict[str, Entry] = {
    "lambda-max": Entry(
        "curvature", "largest eigenvalue: the curvature of the sharpest direction", "Wu and Simon (2000)"
    ),
    "lambda-min": Entry("curvature", "smallest eigenvalue: negative away from a local minimum", "Wu and Simon (2000)"),
    "spectral-norm": Entry("curvature", "largest |eigenvalue|", "Wu and Simon (2000)"),
    "trace": Entry(
        "curvature", "sum of the eigenvalues: d times the mean curvature of a random direction", "Hutchinson (1990)"
    ),
    "frob": Entry("curvature", "Frobenius norm: root of the sum of squared eigenvalues", "Avron and Toledo (2011)"),
    "logdet": Entry(
        "nats",
        "log det(A + s I) for a positive semidefinite A, 1/2 log det(A^2 + s^2 I) for the Hessian",
        "Ubaru, Chen and Saad (2017)",
    ),
    "density": Entry(
        "curvature",
        "distribution of the eigenvalues; the record holds the curve with its band, quantiles, and shares",
        "Chen et al. (2021)",
        number="the median eigenvalue",
    ),
    "diagonal": Entry(
        "curvature",
        "mean diagonal entry, trace / d; the record holds every entry with its error",
        "Bekas et al. (2007)",
        number="the mean diagonal entry, trace / d",
    ),
    "effective-rank": Entry(
        "eigenvalues", "trace^2 / Frobenius^2: how many equal eigenvalues would give both", "Roy and Vetterli (2007)"
    ),
    "effective-dimension": Entry(
        "eigenvalues",
        "directions sharper than the damping s: sum of l / (l + s) over eigenvalues, for the Hessian l^2 / (l^2 + s^2)",
        "MacKay (1992)",
    ),
}

UNIVERSAL_PREFIX = "universal:"

# (phi, psi, mu) measures, each beside the Hessian-based estimate of the same quantity.
UNIVERSAL: dict[str, Entry] = {
    UNIVERSAL_PREFIX + name: Entry(one.unit, one.meaning, PAPER) for name, one in MEANINGS.items()
}
