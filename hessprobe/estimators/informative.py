"""Whether an answer says anything: an interval as wide as what the quantity can be at all says nothing."""

from __future__ import annotations

import math
import warnings

from hessprobe.errors import NumericalWarning
from hessprobe.estimate import Estimate

FLAG = "uninformative"
# Where nobody asked for another level.
_CONFIDENCE = 0.95
# An error below this share of the numbers involved is rounding, which a variance of its own makes a root of.
_ROUNDING = 1e-6


def is_uninformative(estimate: Estimate, *, share: bool = False) -> bool:
    """True where the 95 % interval covers all that is possible, or the relative error is above 100 %.

    The relative error is that of the distance from the end of ``support``: from 0 for a norm or an effective dimension,
    from d log(shift) for log det(A + shift I) of a positive semidefinite A. A quantity that may be of either sign and
    any size has no such scale and is never called uninformative.

    Args:
        estimate: with the range its quantity can lie in.
        share: of a part of a whole, whose errors are judged by the whole: only an interval from 0 to 1 says nothing.
    """
    half, (low, high) = estimate.half_width(_CONFIDENCE), estimate.support
    ends = [abs(end) for end in (low, high) if math.isfinite(end)]
    if not ends or not half > _ROUNDING * max(abs(estimate.value), min(ends)):
        return False
    below, above = estimate.value - half <= low, estimate.value + half >= high
    if share:
        return below and above
    return below if math.isfinite(low) else above


def judged(estimate: Estimate, *, share: bool = False) -> Estimate:
    """Return ``estimate`` with the flag ``"uninformative"`` where that is so.

    Args:
        estimate: of a spectral sketch.
        share: see ``is_uninformative``.

    Warns:
        NumericalWarning: with the flag; says what would help. Not of a share, which comes with a density unasked.
    """
    if not is_uninformative(estimate, share=share):
        return estimate
    if share:
        return estimate.with_(flags=(*estimate.flags, FLAG))
    solver = estimate.errors.solver
    by_solver = solver > estimate.half_width(_CONFIDENCE) - solver
    fix = "Raise steps= or shift=" if by_solver else "Raise n_probes=, or give a tolerance (rtol=)"
    (low, high), name = estimate.interval(_CONFIDENCE), estimate.method.split("/")[0]
    warnings.warn(
        f"{name} is not known from {estimate.samples} chains: its 95 % interval, {low:.4g} to {high:.4g}, is as wide "
        f"as all that it can be. {fix}.",
        NumericalWarning,
        stacklevel=4,
    )
    return estimate.with_(flags=(*estimate.flags, FLAG))
