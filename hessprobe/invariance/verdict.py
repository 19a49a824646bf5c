"""Before and after: difference, ratio, z-score and verdict, with what the theory expects and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from hessprobe.estimate import Estimate, student_quantile
from hessprobe.estimators.difference import difference as subtracted
from hessprobe.invariance.names import CHANGES, INVARIANT, UNDECIDED
from hessprobe.measures.table import entry_of

# So many standard errors apart two numbers are different: among hundreds of comparisons none goes wrong by chance.
SIGMAS = 4.0
LEVEL = float(special.ndtr(SIGMAS))
RESOLUTION = 0.05


@dataclass(frozen=True)
class Theory:
    """What is expected of a measure under a transform of theta.

    Attributes:
        invariant: whether the measure must stay; None where nothing is known.
        reason: why, in one clause.
        predicted: difference after - before where it is known, else None.
    """

    invariant: bool | None
    reason: str
    predicted: float | None = None


@dataclass(frozen=True)
class Compared:
    """Two estimates of one measure, before and after a transform.

    Attributes:
        difference: after - before.
        ratio: after / before; of a logarithmic measure exp(difference), the ratio of the determinants; nan where it has
            no meaning or overflows.
        ratio_error: its standard error.
        error: standard error of the difference.
        bound: what the solver and the rounding of the transform may add to the difference.
        z: difference / (error + bound / 4), beyond 4 (further for few degrees of freedom) where the measure changes;
            its z-score where sampling is all that is uncertain.
        verdict: ``"invariant"``, ``"changes"`` or ``"undecided (error too large)"``.
        samples: common probes behind difference and ratio; 0 where both sides drew their own, or none.
    """

    difference: float
    ratio: float
    ratio_error: float
    error: float
    bound: float
    z: float
    verdict: str
    samples: int = 0

    def contradicts(self, theory: Theory) -> bool:
        """Return whether a decided comparison is not what the theory says: what must stay changes, or by how much."""
        if self.verdict == UNDECIDED:
            return False
        if theory.predicted is not None:
            return abs(self.difference - theory.predicted) > SIGMAS * self.error + self.bound
        return theory.invariant is True and self.verdict == CHANGES


def compare(
    measure: str,
    before: Estimate,
    after: Estimate,
    *,
    rounding: float,
    resolution: float = RESOLUTION,
    common: tuple[Estimate, Estimate] | None = None,
) -> Compared:
    """Return the comparison of two estimates with independent errors, or sample by sample of what is ``common``.

    With r = q * error + bound, q the Student quantile that leaves out what 4 standard errors of a normal law do:
    the measure ``changes`` where |difference| > r; it is ``invariant`` where |difference| <= r and r is at most
    ``resolution`` of the value, so that a larger change would have been seen; else nothing is decided. Neither is it
    where another number of eigenvalues is above rounding before than after.

    Args:
        measure: its name; logarithmic ones have another ratio.
        before: the estimate before the transform.
        after: that after it.
        rounding: relative to the value, how far the transform may move it by rounding alone, >= 0.
        resolution: largest relative uncertainty of an invariance, > 0.
        common: both from the same probes, for difference and ratio, where the two above rest on different ones.
    """
    old, new = (before, after) if common is None else common
    difference, size = new.value - old.value, max(abs(before.value), abs(after.value))
    error, df = _error(old, new, common is not None)
    bound = before.errors.solver + after.errors.solver + rounding * size
    reach = student_quantile(LEVEL, df) * error + bound if error else bound
    z = _over(difference, error + bound / SIGMAS)
    unlike = before.details.get("rank") != after.details.get("rank")
    if unlike or not math.isfinite(difference) or not math.isfinite(reach):
        verdict = UNDECIDED
    elif abs(difference) > reach:
        verdict = CHANGES
    else:
        verdict = INVARIANT if reach <= resolution * size else UNDECIDED
    ratio, ratio_error = _ratio(measure, old, new, common is not None)
    return Compared(difference, ratio, ratio_error, error, bound, z, verdict, 0 if common is None else new.samples)


def _error(old: Estimate, new: Estimate, common: bool) -> tuple[float, float]:
    """Return the standard error of new - old with its degrees of freedom, sample by sample where these are common."""
    if common:
        found = subtracted(old, new).estimate
        return found.std_error, found.df
    return math.hypot(old.std_error, new.std_error), min(old.df, new.df)


def _ratio(measure: str, old: Estimate, new: Estimate, common: bool) -> tuple[float, float]:
    """Return after / before, of logarithms exp(after - before), and its standard error to first order."""
    if entry_of(measure).logarithmic:
        difference = new.value - old.value
        ratio = math.exp(difference) if abs(difference) < 700 else math.nan
        return ratio, ratio * _error(old, new, common)[0]
    if not old.value:
        return math.nan, math.nan
    ratio = new.value / old.value
    return ratio, _error(old.scaled(ratio), new, common)[0] / abs(old.value)


def _over(difference: float, uncertain: float) -> float:
    if uncertain or not difference or math.isnan(difference):
        return difference / (uncertain or 1.0)
    return math.copysign(math.inf, difference)


def expected(measure: str, kind: str, D: Tensor, before: Estimate) -> Theory:
    """Return what H' = D^-1 H D^-1 says of a measure (a permutation: H' = P H P^T).

    Args:
        measure: its name.
        kind: of the transform.
        D: (d,) fp64, the factor of each parameter in theta; ones for a permutation.
        before: the measure before.
    """
    entry = entry_of(measure)
    if kind == "permutation" and "permutation" in entry.invariances:
        return Theory(True, "a permutation of the parameters is orthogonal: the spectrum stays", 0.0)
    if kind != "permutation" and bool((D == 1).all()):
        return Theory(True, "it moves no parameter that is measured", 0.0)
    if kind != "permutation" and "rescaling" in entry.invariances:
        adaptive = "diag|w| H diag|w| stays: the factors of w and of H cancel"
        return Theory(True, adaptive if "adaptive" in entry.needs else "its entry says that no rescaling moves it", 0.0)
    if "permutation" not in entry.invariances:
        return Theory(None, "its entry does not say")
    low, high = float(D.min()), float(D.max())
    spread = f"with factors D from {low:.3g} to {high:.3g}"
    if "range" in before.details:
        return _determinant(D, before)
    if "shift" in entry.options:
        return Theory(False, f"H becomes D^-1 H D^-1 {spread}, but the damping stays")
    return Theory(False, f"H becomes D^-1 H D^-1 {spread}: not orthogonal, so the eigenvalues move")


def _determinant(D: Tensor, before: Estimate) -> Theory:
    """Return the change of the pseudo-determinant: log det(U^T D^-2 U), -2 log det D at full rank."""
    volume = -2 * float(D.log().sum())
    U = before.details["range"]
    predicted = float(torch.linalg.slogdet(U.T @ (U / D.to(U)[:, None] ** 2)).logabsdet)
    if U.shape[1] == U.shape[0]:
        text = f"log|det H| moves by -2 log det D = {_signed(volume)}"
    else:
        null = U.shape[0] - U.shape[1]
        text = f"log pdet H moves by log det(U^T D^-2 U) = {_signed(predicted)} (-2 log det D = {_signed(volume)}, "
        text += f"{null} null directions)"
    stays = abs(predicted) < 1e-6 * max(abs(before.value), 1.0)
    if stays and abs(volume) < 1e-9 * len(D):
        text = "the factors preserve volume, det D = 1"
    return Theory(stays, text, predicted)


def _signed(number: float) -> str:
    return f"{0.0 if abs(number) < 1e-9 else number:.4g}"
