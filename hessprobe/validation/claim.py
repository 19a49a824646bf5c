"""A claim, the numbers that a check of it finds, and how they become a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A correct claim exceeds it once in 16,000 comparisons.
Z_LIMIT = 4.0

KINDS = ("z", "at least", "bound", "tolerance", "observed")


@dataclass(frozen=True)
class Part:
    """One comparison.

    Attributes:
        label: which, in a few words.
        predicted: the number, or the bound, that the claim gives; None where there is none.
        measured: what was found.
        kind: ``"z"``: equal within 4 standard errors; ``"at least"``: not more than 4 standard errors below;
            ``"bound"``: 0 <= measured <= predicted; ``"tolerance"``: within ``tolerance`` of the prediction;
            ``"observed"``: nothing is claimed.
        std_error: of the measurement.
        tolerance: absolute, from the theorem or from rounding.
    """

    label: str
    predicted: float | None
    measured: float
    kind: str
    std_error: float | None = None
    tolerance: float | None = None

    @property
    def score(self) -> float | None:
        """z, or the ratio of the measurement to its bound, or of the gap to its tolerance; None where observed."""
        if self.kind == "observed" or self.predicted is None:
            return None
        gap = self.measured - self.predicted
        if self.kind in ("z", "at least"):
            return _ratio(gap, self.std_error or 0.0)
        if self.kind == "bound":
            return _ratio(self.measured, self.predicted)
        return _ratio(abs(gap), self.tolerance or 0.0)

    @property
    def badness(self) -> float:
        """At most 1 where the claim holds; -inf where nothing is claimed, inf where the score is no number."""
        score = self.score
        if score is None:
            return -math.inf
        if math.isnan(score):
            return math.inf
        if self.kind == "z":
            return abs(score) / Z_LIMIT
        if self.kind == "at least":
            return -score / Z_LIMIT
        if self.kind == "bound" and not self.measured >= 0:
            return math.inf
        return score

    @property
    def holds(self) -> bool:
        """Whether this comparison agrees with the claim."""
        return self.badness <= 1.0

    def row(self) -> dict[str, Any]:
        """Return everything as a dictionary."""
        return {**asdict(self), "score": self.score, "holds": self.holds}


def agrees(label: str, predicted: float, measured: float, std_error: float) -> Part:
    """Return a comparison by z-score."""
    return Part(label, float(predicted), float(measured), "z", std_error=float(std_error))


def at_least(label: str, floor: float, measured: float, std_error: float) -> Part:
    """Return a comparison that fails more than 4 standard errors below ``floor``."""
    return Part(label, float(floor), float(measured), "at least", std_error=float(std_error))


def below(label: str, bound: float, measured: float) -> Part:
    """Return a comparison with an upper bound on a number >= 0."""
    return Part(label, float(bound), float(measured), "bound")


def near(label: str, predicted: float, measured: float, tolerance: float) -> Part:
    """Return a comparison within an absolute tolerance."""
    return Part(label, float(predicted), float(measured), "tolerance", tolerance=float(tolerance))


def seen(label: str, measured: float, std_error: float | None = None) -> Part:
    """Return a measurement about which nothing is claimed."""
    return Part(label, None, float(measured), "observed", std_error=std_error)


@dataclass(frozen=True)
class Series:
    """One line of a figure.

    Attributes:
        label: in the legend.
        x, y: as many of each.
        dashed: for predictions.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    dashed: bool = False

    @classmethod
    def of(
        cls, label: str, x: Sequence[float] | NDArray[Any], y: Sequence[float] | NDArray[Any], *, dashed: bool = False
    ) -> Series:
        """Return a series of anything that can be read as numbers, thinned to at most 400 points."""
        step = max(-(-len(x) // 400), 1)
        return cls(label, tuple(float(v) for v in x[::step]), tuple(float(v) for v in y[::step]), dashed)


@dataclass(frozen=True)
class Curve:
    """A figure: axis titles, lines, and which axes are logarithmic."""

    x: str
    y: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        parts: one comparison or more.
        curve: a figure, where it says more than the numbers.
        note: one sentence for a reader.
    """

    parts: tuple[Part, ...]
    curve: Curve | None = None
    note: str = ""

    @property
    def worst(self) -> Part:
        """The comparison furthest from the claim."""
        return max(self.parts, key=lambda part: part.badness)

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"fails"``, or ``"observed"`` where nothing is claimed."""
        if not self.worst.holds:
            return "fails"
        return "observed" if self.worst.score is None else "holds"


Check = Callable[[], Finding]


@dataclass(frozen=True)
class Claim:
    """A statement that can be wrong.

    Attributes:
        name: ``family/what``.
        statement: one sentence.
        source: paper and theorem; "derived here" where it is the project's own.
        check: measures it, in seconds.
        thorough: the same with more runs or steps, for ``--full``; None: ``check`` serves.
        full: only with ``--full``.
    """

    name: str
    statement: str
    source: str
    check: Check
    thorough: Check | None = None
    full: bool = False

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Outcome:
    """A claim with what was found.

    Attributes:
        claim: which.
        finding: None where the check itself broke.
        seconds: wall time.
        error: what broke.
    """

    claim: Claim
    finding: Finding | None
    seconds: float
    error: str = ""

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"fails"``, ``"observed"`` or ``"error"``."""
        return "error" if self.finding is None else self.finding.verdict

    @property
    def failed(self) -> bool:
        """Whether the claim is not borne out."""
        return self.verdict in ("fails", "error")

    def kept(self) -> dict[str, Any]:
        """Return what was found as plain values, of which ``again`` makes the same outcome."""
        found = None if self.finding is None else asdict(self.finding)
        return {"finding": found, "seconds": self.seconds, "error": self.error}

    @classmethod
    def again(cls, claim: Claim, kept: Mapping[str, Any]) -> Outcome:
        """Return the outcome that ``kept`` was called on."""
        found = kept["finding"]
        if found is None:
            return cls(claim, None, kept["seconds"], kept["error"])
        curve = found["curve"]
        if curve is not None:
            lines = [{**line, "x": tuple(line["x"]), "y": tuple(line["y"])} for line in curve["series"]]
            curve = Curve(**{**curve, "series": tuple(Series(**line) for line in lines)})
        finding = Finding(tuple(Part(**part) for part in found["parts"]), curve, found["note"])
        return cls(claim, finding, kept["seconds"], kept["error"])

    def row(self) -> dict[str, Any]:
        """Return the outcome for a record; the headline numbers are those of the worst comparison."""
        claim, finding = self.claim, self.finding
        about = {"claim": claim.name, "statement": claim.statement, "source": claim.source}
        row: dict[str, Any] = {**about, "verdict": self.verdict, "seconds": self.seconds}
        if finding is None:
            return {**row, "error": self.error}
        row |= finding.worst.row()
        row |= {"note": finding.note, "parts": [part.row() for part in finding.parts]}
        if finding.curve is not None:
            row["curve"] = asdict(finding.curve)
        return row


def _ratio(number: float, scale: float) -> float:
    if scale > 0:
        return number / scale
    return 0.0 if number == 0 else math.copysign(math.inf, number)
